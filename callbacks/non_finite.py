"""Stops training, or skips the step, when the loss or a gradient is not finite."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.errors import Diverged, check_choice, check_counts
from zoo.sharding.tensors import total_norm

SMALLEST_SCALE = 2.0**-10  # a healthy fp16 loss scale is far above 1


class NonFinite(Callback):
    """Check the loss and the gradients of every optimizer step, and `val_loss`, for NaN and infinity.

    Gradients that an fp16 gradient scaler skips are not an error, unless its scale has fallen to almost nothing. On a
    GPU the result of the checks is read every `every_n_steps` steps, so that the host does not wait for the device. A
    module's method `check_gradients`, if it has one, is called first and may raise a more precise error.

    Args:
        action: "stop" ends training with exit code 1; "skip" leaves such a step out, logs the number of such steps as
            `skipped_steps`, and continues. "skip" reads the result at every step, also on a GPU.
        every_n_steps: optimizer steps between two readings on a GPU, at least 1. On a CPU every step is read.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop", every_n_steps: int = 20) -> None:
        check_choice("--non_finite.action", action, ("stop", "skip"))
        check_counts(**{"--non_finite.every_n_steps": every_n_steps})
        self.action = action
        self.every_n_steps = every_n_steps
        self.skipped_steps = 0
        self._unread: list[tuple[int, Tensor]] = []  # steps and values () on the device, which must be finite

    def state_dict(self) -> dict[str, Any]:
        return {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped_steps = state_dict["skipped_steps"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unread = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        # Gradients are accumulated, averaged over ranks and unscaled here, so all ranks decide alike.
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # the scaler skips overflowing steps itself
        # The norm of all gradients is finite only if every element is.
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return
        norm = total_norm(gradients)
        if self.action == "skip":
            if not norm.isfinite():
                optimizer.zero_grad()  # sets gradients to None: the optimizer then changes nothing
                self.skipped_steps += 1
        else:
            self._note(trainer, norm)
        if self.skipped_steps:
            pl_module.log("skipped_steps", float(self.skipped_steps))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # With fp16, overflows are normal; an extremely small scale means that every step overflows.
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            if trainer.global_step % self.every_n_steps == 0 and scaler.get_scale() < SMALLEST_SCALE:
                raise Diverged(
                    f"training has diverged at step {trainer.global_step}: every fp16 gradient overflows. "
                    f"Lower --model.lr, or set --mixed_precision.dtype bf16{_last_checkpoint(trainer)}"
                )
            return
        # A non-finite loss is noted even if the gradients are finite.
        loss = outputs["loss"] if isinstance(outputs, dict) and "loss" in outputs else outputs
        if isinstance(loss, Tensor) and self.action == "stop":
            self._note(trainer, loss.detach() if loss.ndim == 0 else loss.detach().abs().amax())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._read(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Early stopping would end such a run as if it had converged.
        loss = trainer.callback_metrics.get("val_loss")
        if trainer.state.fn == "fit" and not trainer.sanity_checking and loss is not None and not loss.isfinite():
            raise Diverged(
                f"training has diverged: val_loss is {loss.item()} after step {trainer.global_step}. "
                f"Lower --model.lr, or set --trainer.gradient_clip_val{_last_checkpoint(trainer)}"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer)

    def _note(self, trainer: Trainer, value: Tensor) -> None:
        """Check a value () of this step: at once on a CPU, later on a GPU, for which the host would wait."""
        self._unread.append((trainer.global_step, value))
        if value.device.type == "cpu" or trainer.global_step % self.every_n_steps == 0:
            self._read(trainer)

    def _read(self, trainer: Trainer) -> None:
        """Raises Diverged if a value since the last reading is not finite; waits for the device."""
        unread, self._unread = self._unread, []
        bad = []
        for dtype in {value.dtype for _, value in unread}:  # in bf16-true the loss is fp32
            steps, values = zip(*(each for each in unread if each[1].dtype == dtype), strict=True)
            numbers = torch.stack(values).tolist() if len(values) > 1 else [values[0].item()]
            bad += [step for step, number in zip(steps, numbers, strict=True) if not math.isfinite(number)]
        if bad:
            step = min(bad)
            # A model may know the reason.
            if (check := getattr(trainer.lightning_module, "check_gradients", None)) is not None:
                check()
            raise Diverged(
                f"training has diverged: the loss or a gradient is not finite at step {step}. Lower --model.lr, or "
                "set --trainer.gradient_clip_val; --non_finite.action skip leaves out such steps"
                + _last_checkpoint(trainer)
            )


def _last_checkpoint(trainer: Trainer) -> str:
    """The end of a sentence that names the newest checkpoint with finite weights."""
    path = getattr(trainer.checkpoint_callback, "last_model_path", "")
    return f". The last good checkpoint is {path}" if path else ""
