"""Callback of the sweep: checkpoints, early stopping and TensorBoard events of each member."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from zoo.callbacks import Checkpoint
from zoo.callbacks.loggers import group_names, log_figure
from zoo.icr.error_metrics import error_curves, errors_by_position, mean_errors
from zoo.icr.figures import plot_error_curves
from zoo.icr.sweep.member_checkpoints import MemberCheckpointIO
from zoo.icr.sweep.metadata import member_folder
from zoo.icr.sweep.stacked_model import StackedICR
from zoo.icr.task import Diversity


class MemberTracking(Checkpoint):
    """Save, evaluate and end each member of a stacked model by its own results.

    Args:
        folder: the sweep's folder.
        checkpoint_every: steps between two `checkpoint_step_<n>.ckpt`, which hold weights only; the last one is always
            written. None: only the last.
        patience: consecutive evaluations without an improvement after which a member ends; None: no early stopping.
        min_delta: least decrease of a member's error on the pool's tasks that counts as an improvement.
        eval_every: steps between two evaluations. Checkpoints of such a step are written after its evaluation.
        check_every: steps between two checks that the losses are finite; a divisor of eval_every.
        report: called as report(M, status, **values) when a member's status changes.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint_every: int | None,
        patience: int | None,
        min_delta: float,
        eval_every: int,
        check_every: int,
        report: Callable[..., None],
    ) -> None:
        super().__init__(dirpath=str(folder))
        self.folder, self.checkpoint_every, self.report = folder, checkpoint_every, report
        self.eval_every, self.check_every = eval_every, check_every
        self.patience, self.min_delta = patience, min_delta
        self.records: dict[str, dict[str, Any]] = {}  # by M: the best error, and the evaluations since
        self._loggers: dict[Diversity, TensorBoardLogger] = {}

    def refuse_non_finite(self, trainer: Trainer, name: str) -> None:
        """Members that diverge are reported and removed one by one; the others go on."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self._stack = pl_module
        trainer.strategy.checkpoint_io = MemberCheckpointIO(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"records": self.records}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.records = state_dict["records"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # End members whose loss is not finite.
        step = trainer.global_step
        # Reading the losses makes the host wait for a GPU: only now and then.
        if step % self.check_every == 0 or step == trainer.max_steps:
            losses = zip(pl_module.members, pl_module.last_losses.tolist(), strict=True)
            diverged = [M for M, loss in losses if not math.isfinite(loss)]
            pl_module.remove(self._report_failure(trainer, diverged, "loss"))
        # At an evaluation's step, checkpoints are written after the evaluation.
        if step % self.eval_every and step != trainer.max_steps:
            if self._is_checkpoint_step(trainer):
                self._save_weights(trainer, pl_module.members)
                self._save(trainer, "last.ckpt")
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)  # obeys signals

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """A signal waits for the end of the evaluation, which is short and ends members."""

    def on_validation_batch_start(self, *_: Any) -> None:
        """As above."""

    def how_to_resume(self) -> str:
        return "to continue, give the same command again"

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        if not isinstance(exception, Exception):  # a signal; the sweep reports members that failed
            with self._signals.held():
                for M in pl_module.members:
                    self.report(M, "stopped")
        super().on_exception(trainer, pl_module, exception)

    def _save(self, trainer: Trainer, name: str) -> str:
        """Save the members; the step of the last checkpoint is in their status."""
        path = super()._save(trainer, name)
        for M in self._stack.members:
            self.report(M, "running", step=trainer.global_step)
        return path

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        with self._signals.held():
            self._end_validation(trainer, pl_module)
        super().on_train_batch_end(trainer, pl_module, None, None, 0)  # obeys signals

    def _end_validation(self, trainer: Trainer, pl_module: Any) -> None:
        improved: list[Diversity] = []
        diverged: list[Diversity] = []
        ended: dict[Diversity, str] = {}
        for M in pl_module.members:
            # A member whose error is not finite has diverged and is neither compared nor saved.
            score = mean_errors("val", pl_module.member_errors[M]).get("val_loss", math.nan)
            if not math.isfinite(score):
                diverged.append(M)
                continue
            # Early stopping.
            record = self.records.setdefault(str(M), {"best": math.inf, "waited": 0})
            if score < record["best"] - self.min_delta:
                record |= {"best": score, "waited": 0}
                improved.append(M)
            else:
                record["waited"] += 1
            # A member ends with the last step, or when its patience is exhausted.
            if trainer.global_step == trainer.max_steps:
                ended[M] = "done"
            elif self.patience is not None and record["waited"] >= self.patience:
                ended[M] = "stopped early"
            self._log(trainer, pl_module, M, has_ended=M in ended)
        # Checkpoints, with the members that diverged left out and those that end still included.
        if improved:
            trainer.save_checkpoint(self.folder / "best.ckpt", storage_options=improved)
        pl_module.remove(self._report_failure(trainer, diverged, "error"))
        if saved := pl_module.members if self._is_checkpoint_step(trainer) else list(ended):
            self._save_weights(trainer, saved)
        self._save(trainer, "last.ckpt")
        # Report the members that end, then train on without them.
        for M, status in ended.items():
            self.report(M, status, step=trainer.global_step, **mean_errors("val", pl_module.member_errors[M]))
        pl_module.remove(list(ended))

    def _report_failure(self, trainer: Trainer, members: list[Diversity], value: str) -> list[Diversity]:
        for M in members:
            reason = f"the {value} is no longer finite: lower learning_rate"
            self.report(M, "failed", step=trainer.global_step, error=reason)
        return members

    def _is_checkpoint_step(self, trainer: Trainer) -> bool:
        return self.checkpoint_every is not None and trainer.global_step % self.checkpoint_every == 0

    def _save_weights(self, trainer: Trainer, members: list[Diversity]) -> None:
        path = self.folder / f"checkpoint_step_{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path, weights_only=True, storage_options=members)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        for logger in self._loggers.values():
            logger.finalize("")

    def _log(self, trainer: Trainer, stack: StackedICR, M: Diversity, has_ended: bool) -> None:
        """Write a member's errors to its TensorBoard events, with their figure when it has ended.

        Drawing takes longer than the evaluation of a small member, and the events have the same errors by position.
        """
        if M not in self._loggers:
            self._loggers[M] = TensorBoardLogger(str(member_folder(self.folder, M)), name="", version="")
            group_names(self._loggers[M])
        # Mean errors, errors by position, and at the end the curve of the latter.
        logger, step, errors = self._loggers[M], trainer.global_step, stack.member_errors[M]
        logger.log_metrics(mean_errors("val", errors) | errors_by_position("val", errors), step)
        if has_ended:
            figure = plot_error_curves(error_curves(errors), f"M = {M}, {step:,} steps")
            log_figure(logger, "errors", figure, step)
        logger.save()
