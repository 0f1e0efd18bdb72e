"""Base LightningModule: optimizer, resumable random state, checkpoint metadata."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from zoo.errors import UserError
from zoo.optim import OptimizerConfig
from zoo.private_apis.lightning_api import batch_index, total_training_steps
from zoo.registry import registered_name
from zoo.tokenizers import Tokenizer, from_state
from zoo.training.loss_weights import WeightedLosses
from zoo.training.random_streams import derive, global_seed


class ZooModule(WeightedLosses):
    """Base class of the zoo's LightningModules.

    A module receives everything as constructor arguments and batches; it never reads `trainer.datamodule`. A subclass
    calls `self.save_hyperparameters(ignore=["tokenizer"])` in its `__init__`. All other arguments must be numbers,
    strings, lists or None, so that checkpoints load under `torch.load(weights_only=True)`.

    Args:
        optimizer_config: settings of the optimizer and its schedule.
        tokenizer: stored in checkpoints and restored from them; None where the model reads no text.
    """

    data_arguments: ClassVar[tuple[str, ...]] = ()
    """Constructor arguments that the command line takes from the data module's attributes of the same names."""

    renamed_arguments: ClassVar[dict[str, str]] = {}
    """Old name of a constructor argument -> its new name, or a sentence where the argument no longer exists."""

    def __new__(cls, *_: Any, **arguments: Any) -> Self:
        """Refuse arguments by their old names, also those that `load_from_checkpoint` reads from old checkpoints.

        Raises:
            UserError: an argument was renamed or removed; the message names the new one.
        """
        for name in arguments.keys() & cls.renamed_arguments.keys():
            new = cls.renamed_arguments[name]
            remedy = f"is now called {new}" if new.isidentifier() else f"no longer exists: {new}".removesuffix(": ")
            raise UserError(f"the argument {name} of {cls.__name__} {remedy}")
        return super().__new__(cls)

    def __init__(self, optimizer_config: OptimizerConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        optimizer_config.check()
        self.optimizer_config = optimizer_config
        self.tokenizer = tokenizer
        self.total_steps = 0
        """Optimizer steps of the whole run, which the learning-rate schedule covers; set when training starts."""
        self._warmup_share: float | None = None

    def check_data(self, data: Any) -> None:
        """Compare the module with a data module before a run. The command line calls this; override to add checks.

        Raises:
            UserError: the two do not fit; the message names the options to change.
        """

    @torch.compiler.disable
    def log(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's. Excluded from `torch.compile(module)`, because torch cannot trace Lightning's code."""
        super().log(*args, **kwargs)

    # ---- training

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout from (seed, rank, batch number): a resumed run needs no generator state."""
        torch.manual_seed(derive(global_seed(), "step", self.global_rank, batch_index(self.trainer)))

    @property
    def logs_this_step(self) -> bool:
        """Whether the logger records the current optimizer step."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Here gradients are complete (accumulated, averaged over ranks, unscaled) and not yet clipped.
        if self.logs_this_step:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("grad_norm", nn.utils.get_total_norm(gradients))

    def lr_scale(self, name: str) -> float:
        """Factor on the learning rate of the parameter `name`."""
        return 1.0

    def configure_optimizers(self) -> Any:
        """The optimizer, and its learning-rate schedule over all steps of the run.

        Raises:
            UserError: the number of steps is unlimited, or an optimizer setting is outside its range.
        """
        total_steps = total_training_steps(self.trainer)
        if total_steps == float("inf"):
            raise UserError("the learning-rate schedule needs the number of steps: set trainer.max_steps or max_epochs")
        optimizer = self.optimizer_config.build(self.named_parameters(), self.lr_scale)
        self.total_steps = int(total_steps)
        schedule = LambdaLR(optimizer, lambda step: self.optimizer_config.lr_factor(step, self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def plan_steps(self, total_steps: int) -> dict[str, int]:
        """Change the length of the schedule during a run; the warm-up remains the same share of it.

        Args:
            total_steps: optimizer steps of the whole run.

        Returns:
            The settings that repeat this schedule: `warmup_steps`.
        """
        config = self.optimizer_config
        if self._warmup_share is None:
            self._warmup_share = config.warmup_steps / max(self.total_steps, 1)
        self.total_steps = total_steps
        config.warmup_steps = round(self._warmup_share * total_steps)
        settings = {"warmup_steps": config.warmup_steps}
        self.hparams.update(settings)
        return settings

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the model's registered name and the tokenizer; data modules store their own name and settings."""
        checkpoint["zoo"] = {"model": registered_name(self)}
        if self.tokenizer is not None:
            checkpoint["tokenizer"] = self.tokenizer.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the tokenizer, unless the constructor was given one."""
        if self.tokenizer is None and "tokenizer" in checkpoint:
            self.tokenizer = from_state(checkpoint["tokenizer"])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, except that a missing, unknown or misshapen tensor raises UserError."""
        own = self.state_dict()
        for name in [*own, *state_dict] if strict else []:
            expected, given = (tuple(state[name].shape) if name in state else "missing" for state in (own, state_dict))
            if expected != given:
                raise UserError(
                    f"the checkpoint does not fit this {type(self).__name__}: {name} is {given} in the file and "
                    f"{expected} in the model; drop the settings that change the model's sizes"
                )
        for name, _ in self.named_parameters():
            if name in state_dict and not state_dict[name].isfinite().all():
                raise UserError(
                    f"the checkpoint's tensor {name} is not finite: its run had diverged. Use an earlier checkpoint"
                )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
