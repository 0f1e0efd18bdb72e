"""A time limit for a run: the learning-rate schedule is planned so that it ends when the time does."""

import math
import re
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zoo.errors import UserError

FIRST_STEPS = 10  # steps before the first plan; the first of them is slow and not measured
SHARE = 0.97  # of the time that is planned for; the rest is for the last checkpoint
VALIDATION = 0.05  # of the time of the run, for a validation before one has been measured
ONE_PROCESS = "--budget works on one process only: drop it, or set --trainer.max_steps"
CHANGE = 0.05  # of the steps that the first plan announced, above which the end of the run corrects it
N_VALIDATIONS = 6  # of a run whose settings do not say how many
_UNITS = {"": 1, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "5min" or "1.5h".

    Raises:
        UserError: it is none of these, or not above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)\s*", str(text))
    if match is None or match[2] not in _UNITS or not float(match[1]):
        raise UserError(f"--budget must be a time such as 90s, 5min or 1.5h, not {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def seconds_left(budget: str | None, since: float) -> float | None:
    """Seconds of a time limit that are left; None without one.

    Args:
        budget: as for `parse_duration`.
        since: `time.monotonic()` at the start.

    Raises:
        UserError: none are left.
    """
    if budget is None:
        return None
    passed = time.monotonic() - since
    if passed >= parse_duration(budget):
        raise UserError(f"--budget {budget} is too short: the start of the command alone took {passed:.0f} s; raise it")
    return parse_duration(budget) - passed


def refusal(model: type, seconds: float) -> str:
    """The sentence about a model whose learning-rate schedule is not planned for a time limit, with the remedy.

    Args:
        model: its class.
        seconds: the time limit.
    """
    minutes, rest = divmod(math.ceil(seconds), 60)
    limit = f"{minutes // 1440:02}:{minutes // 60 % 24:02}:{minutes % 60:02}:{rest:02}"
    return (
        f"--budget plans warm-up and cosine decay, and {model.__name__} has another schedule: limit the time with "
        f"--trainer.max_time {limit} instead"
    )


def count_validations(settings: Any) -> int:
    """Number of validations of a run with a time limit: as without the limit, if the Trainer's settings define it."""
    steps, interval = settings.max_steps, settings.val_check_interval
    is_planned = isinstance(interval, int) and settings.check_val_every_n_epoch is None
    return max(1, steps // interval) if is_planned and 0 < interval <= steps else N_VALIDATIONS


class Budget(Callback):
    """End a run after a given time, with its schedule complete.

    The time of the first steps tells how many fit. The plan is renewed during the run by the time of the steps since
    the plan before. The first plan is printed, and at the end the number of steps, where it differs by more than 5 %. A
    pretraining before the first step takes at most half of the time. The run is never longer than the Trainer's
    max_steps. After the last step the model is validated once more, so that the best checkpoint can be the last one.

    Args:
        seconds: seconds of the run, from `since`.
        since: `time.monotonic()` at the start.
        n_validations: validations of the run, the last one included.
        record: called with the settings that repeat the run as it was planned: `total_steps` and those of the module.
    """

    def __init__(
        self, seconds: float, since: float, n_validations: int, record: Callable[[dict[str, Any]], None]
    ) -> None:
        self.since, self.end = since, since + seconds
        self.n_validations, self._record = n_validations, record
        self.validation_seconds = VALIDATION * seconds
        self.planned_steps: int | None = None  # steps of the run, after the first plan
        self._limit = 0  # steps of the run without a limit of time
        self._begin: float | None = None  # of the first step
        self.summary = ""  # the plan in words
        self._announced = 0  # steps of the first plan, which is printed
        self._pretraining_start: tuple[int, float] | None = None  # step and time

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            raise UserError(ONE_PROCESS)
        self._check_left()

    def _check_left(self) -> None:
        """Raises UserError if the time is over before a first step, of a pretraining or of the training."""
        if time.monotonic() >= self.end and self._pretraining_start is None:
            seconds, passed = self.end - self.since, time.monotonic() - self.since
            raise UserError(
                f"--budget of {seconds:.0f} s is too short: {passed:.0f} s had passed before the first step; raise it"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        if not hasattr(module, "plan_steps") or not module.total_steps:
            raise UserError(refusal(type(pl_module), self.end - self.since))
        self._check_left()
        self._limit = module.total_steps
        self._is_warm = False
        self._restart(trainer)
        self._next = trainer.global_step + FIRST_STEPS

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._begin is None:  # the module may have prepared more when the training started
            self._begin = time.monotonic()
            self._restart(trainer)
        if trainer.global_step == self._start_step + 1 and not self._is_warm:  # the first step is slower than others
            self._restart(trainer)
            self._is_warm = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        if trainer.global_step >= self._next:
            self._plan(trainer, module)
        is_over = time.monotonic() >= self.end
        if is_over and trainer.global_step < min(FIRST_STEPS, module.total_steps):
            rank_zero_warn(
                f"--budget was over after {trainer.global_step} of {module.total_steps} steps, too few to learn: the "
                f"training began after {(self._begin or self.end) - self.since:.0f} s; raise --budget"
            )
        if is_over and trainer.global_step < module.total_steps:
            self._set_steps(trainer, module, trainer.global_step)
        if is_over or trainer.global_step >= module.total_steps:
            trainer.should_stop = True  # Lightning validates, saves and ends

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.global_step
        is_complete = self.planned_steps is not None and steps >= self.planned_steps  # not stopped early
        if is_complete and abs(steps - self._announced) > CHANGE * self._announced:
            print(f"zoo: --budget: {steps:,} of {self._limit:,} steps have fitted into the time", file=sys.stderr)

    def on_pretraining_step_end(self, trainer: Trainer, pl_module: LightningModule, step: int, is_last: bool) -> None:
        """Plan a pretraining, after its first steps, so that it ends in half of the time that is left."""
        now, module = time.monotonic(), cast(Any, pl_module)
        if self._pretraining_start is None:
            self._pretraining_start = step, now
            return
        first, start = self._pretraining_start
        if step - first == FIRST_STEPS and not is_last:
            seconds_of_step = max(now - start, 1e-6) / FIRST_STEPS
            self._record(module.plan_pretraining(step + max(1, int((self.end - now) / 2 / seconds_of_step))))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validation_seconds = time.monotonic() - self._validation_start
        self._paused += self.validation_seconds

    def _restart(self, trainer: Trainer) -> None:
        """Measure the time of steps from now on."""
        self._start_step, self._start, self._paused = trainer.global_step, time.monotonic(), 0.0

    def _plan(self, trainer: Trainer, module: Any) -> None:
        """Set the number of steps that fit into the rest of the time."""
        done, now = trainer.global_step, time.monotonic()
        step = max(now - self._start - self._paused, 1e-6) / max(done - self._start_step, 1)
        left = max(SHARE * (self.end - now), 0.0)
        # Validations take their part of the rest; one after the last step is certain.
        progress = done / (done + left / step)
        validations = max(1.0, self.n_validations * (1 - progress)) * self.validation_seconds
        self._set_steps(trainer, module, min(self._limit, done + max(1, int((left - validations) / step))))
        self._next = done + max(FIRST_STEPS, (module.total_steps - done) // 10)
        self._restart(trainer)

    def _set_steps(self, trainer: Trainer, module: Any, total: int) -> None:
        before = (self._begin or self.end) - self.since
        plan = f"the training began after {before:.0f} s; {total:,} of {self._limit:,} steps fit into the time"
        if not self.summary:
            print(f"zoo: --budget: {plan}", file=sys.stderr)
            self._announced = total
        self.summary = plan
        self.planned_steps = total
        trainer.val_check_batch = max(1, -(-total // self.n_validations))
        self._record({"total_steps": total, "val_check_interval": trainer.val_check_batch, **module.plan_steps(total)})
