"""What every model of the zoo owes to its users, whatever it computes."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule

from zoo.streams import derive, global_seed


class ZooModule(LightningModule):
    """Base of the zoo's LightningModules: a checkpoint that explains itself, and randomness that can be resumed.

    A subclass calls `self.save_hyperparameters()` with scalars only, so that its checkpoints load under
    `torch.load(weights_only=True)`.
    """

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Start dropout and its like from (seed, rank, batch): a resumed run then needs no generator's state."""
        assert self.trainer is not None
        torch.manual_seed(derive(global_seed(), "step", self.global_rank, self.trainer.fit_loop.total_batch_idx))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the classes, so that `--ckpt_path FILE` alone rebuilds model and data; keep the tokenizer."""
        data = getattr(self.trainer, "datamodule", None)
        checkpoint["zoo"] = {"model": class_path(self), "data": class_path(data) if data is not None else None}
        if (tokenizer := getattr(data, "tokenizer", None)) is not None:
            checkpoint["tokenizer"] = tokenizer.state()


    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; a tensor of another shape, or one too many or too few, is a ValueError of one sentence."""
        own = self.state_dict()
        for name in [*own, *state_dict] if strict else []:
            here, there = (tuple(s[name].shape) if name in s else "missing" for s in (own, state_dict))
            if here != there:
                raise ValueError(
                    f"the checkpoint does not fit this {type(self).__name__}: {name} is {there} in the file and {here} "
                    "in the model; drop the settings that change the model's sizes"
                )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def class_path(instance: object) -> str:
    """`package.module.Class` of an object: how a config names it."""
    return f"{type(instance).__module__}.{type(instance).__qualname__}"
