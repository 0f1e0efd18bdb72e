"""Training on a data module with the settings that the rules choose: the Python API's counterpart of `zoo fit`."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer

from zoo.callbacks.best_weights import BestWeights
from zoo.callbacks.non_finite import NonFinite
from zoo.callbacks.progress import Progress
from zoo.console.messages import quiet_lightning
from zoo.errors import check_counts, check_number
from zoo.private_apis.jsonargparse_api import constructor_types
from zoo.regress_lm.module import RegressLMModule
from zoo.training.choices import by_group, given_arguments, settings_of
from zoo.training.given_settings import check_argument_names, settings_of_model
from zoo.training.random_streams import derive

Model = TypeVar("Model", bound=RegressLMModule)
MONITOR = "val_mae"


def train_on_data(
    cls: type[Model], data: Any, seed: int, max_steps: int | None, progress: bool, settings: Mapping[str, Any]
) -> tuple[Model, Any]:
    """A model with chosen settings, trained on the training split and calibrated on the validation split; and its data.

    Args:
        cls: the class of the model.
        data: a `TextRegression`. Arguments that were given to it are kept, the others may be chosen.
        seed: seed of the initial weights, of the order of rows and of dropout.
        max_steps: optimizer steps; None for as many as the rules choose.
        progress: show a progress line.
        settings: arguments of the model, which are then not chosen.

    Raises:
        UserError: the data cannot be read, an argument is out of range, or training diverges.
    """
    if max_steps is not None:
        check_counts(max_steps=max_steps)
    check_argument_names(cls, settings)
    _check_numbers(cls, settings)
    given: dict[str, Any] = {f"model.{name}": value for name, value in settings.items()}
    given |= {f"data.{name}": value for name, value in given_arguments(data).items()}
    given |= settings_of_model(cls, data, settings)
    given |= {} if max_steps is None else {"trainer.max_steps": max_steps}
    chosen = by_group(given | settings_of(cls.choose_settings(data, given)))
    # The data as the choices want it, with the seed of this run.
    arguments = {**data.hparams, **chosen["data"]}
    data = type(data)(**arguments | {"seed": seed if arguments.get("seed") is None else arguments["seed"]})
    derived = {name: getattr(data, name) for name in cls.data_arguments if hasattr(data, name)}
    with quiet_lightning(), torch.random.fork_rng():
        torch.manual_seed(derive(seed, "weights"))
        model = cls(**{"max_input_len": data.max_input_len, **chosen["model"], **derived})
        model.dropout_seed = seed
        model.check_data(data)
        best = BestWeights(chosen["checkpoint"].get("monitor", MONITOR))
        trainer = Trainer(
            **chosen["trainer"],
            devices=1,
            gradient_clip_val=1.0,
            callbacks=[NonFinite(), best, *([Progress()] if progress else [])],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        trainer.fit(model, datamodule=data)
        # The last validation has calibrated the last weights.
        if best.values and best.values[-1] > min(best.values):
            best.restore(model)
            device = model.device
            batches = (model.with_number_tokens(batch) for batch in data.val_dataloader())
            model.calibrate(model.transfer_batch_to_device(batch, device, 0) for batch in batches)
    model.dropout_seed = None
    return model.eval(), data


def data_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments among the stored settings of a data module: without those that Lightning adds."""
    return {name: value for name, value in stored.items() if not name.startswith("_")}


def _check_numbers(cls: type[RegressLMModule], settings: Mapping[str, Any]) -> None:
    """Raises UserError if an argument of a numeric type is not a number; rules compute with these arguments."""
    types = constructor_types(cls)
    for name, value in settings.items():
        if (kind := types[name][0]) in (int, float):
            check_number(name, value, "such as 64" if kind is int else "a number", lambda _: True, whole=kind is int)
