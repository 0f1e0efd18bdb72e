"""What every model of the zoo owes to its users, whatever it computes."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import Adafactor
from torch.optim.lr_scheduler import LambdaLR

from zoo.optim import AdamW, MuonAdamW, warmup_cosine
from zoo.streams import derive, global_seed


class ZooModule(LightningModule):
    """Base of the zoo's LightningModules: a checkpoint that explains itself, randomness that can be resumed, and the
    optimizer that its settings name.

    A subclass calls `self.save_hyperparameters()` with scalars only, so that its checkpoints load under
    `torch.load(weights_only=True)`; among them `lr`, `warmup_steps`, `min_lr_ratio`, `weight_decay`, and if it likes
    `beta1`, `beta2` and `optimizer` ("adamw", "adafactor", or with `muon_lr` "muon").
    """

    # ---- training

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Start dropout and its like from (seed, rank, batch): a resumed run then needs no generator's state."""
        assert self.trainer is not None
        torch.manual_seed(derive(global_seed(), "step", self.global_rank, self.trainer.fit_loop.total_batch_idx))

    @property
    def logs_this_step(self) -> bool:
        """Whether what is logged in the step at hand will be seen."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Here gradients are whole (accumulated, averaged over ranks, unscaled) and not yet clipped.
        if self.logs_this_step:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("grad_norm", nn.utils.get_total_norm(grads))

    def lr_scale(self, name: str) -> float:
        """What a parameter's learning rate is multiplied by."""
        return 1.0

    def configure_optimizers(self) -> Any:
        """Weight decay on matrices only; linear warm-up, then cosine, step by step.

        With "muon" the matrices inside layers are Muon's, at `muon_lr`; all else is AdamW's.
        """
        h: Any = self.hparams
        kind, betas = h.get("optimizer", "adamw"), (h.get("beta1", 0.9), h.get("beta2", 0.95))
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        hidden = [p for name, p in trained.items() if kind == "muon" and ".layers." in name and p.ndim == 2]
        others = [p for p in trained.values() if not any(p is q for q in hidden)]
        scale = {id(p): self.lr_scale(name) for name, p in trained.items()}
        groups = [
            {"params": [p for p in others if (p.ndim >= 2) == matrix and scale[id(p)] == part], "lr": h.lr * part}
            | {"weight_decay": h.weight_decay if matrix else 0.0}
            for part in sorted({*scale.values()}, reverse=True)
            for matrix in (True, False)
        ]
        optimizer: torch.optim.Optimizer
        if kind == "adafactor":
            optimizer = Adafactor(groups, lr=h.lr)
        elif kind == "muon":
            optimizer = MuonAdamW(hidden, groups, muon_lr=h.muon_lr, lr=h.lr, betas=betas)
        elif kind == "adamw":
            optimizer = AdamW(groups, lr=h.lr, betas=betas)
        else:
            raise ValueError(f"optimizer is adamw, adafactor or muon, not {kind!r}")
        total = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, h.warmup_steps, total, h.min_lr_ratio))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- checkpoints

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


def class_path(of: object) -> str:
    """`package.module.Class` of a class or of an object: how a config names it."""
    cls = of if isinstance(of, type) else type(of)
    return f"{cls.__module__}.{cls.__qualname__}"
