"""Signals during a step, a validation or a save: exit code, step of last.ckpt, and the bits of the resumed run."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from lightning.pytorch import Callback

from benchmarks.commands import exit_code
from benchmarks.fault_kinds.cases import Kind, Outcome, failure, wanted
from benchmarks.fault_kinds.kills import wait_for_training
from benchmarks.fault_kinds.runs import (
    Watch,
    difference,
    resume,
    saved_step,
    scenario,
    start,
    uninterrupted,
)

SENT = {  # name -> signals in the order in which they are sent, exit code
    "SIGINT": ([signal.SIGINT], 130),
    "SIGINT twice": ([signal.SIGINT, signal.SIGINT], 130),
    "SIGTERM": ([signal.SIGTERM], 143),
    "SIGHUP": ([signal.SIGHUP], 129),
    "SIGUSR1": ([signal.SIGUSR1], 0),
}
MOMENTS = ("a step", "a validation", "a save", "a random time")


def combination(index: int) -> tuple[str, str]:
    """The signals and the moment of a case: all combinations, one after the other."""
    names = [*SENT]
    return names[index % len(names)], MOMENTS[index // len(names) % len(MOMENTS)]


class SendDuring(Callback):
    """Sends signals to its own process during a step, a validation or a save, and notes the step.

    It writes to the file `sent` the number of optimizer steps done at that time, and to `saved` the step of last.ckpt
    at the beginning of the second step after it, which is reached where training continues.
    """

    def __init__(self, signals: list[signal.Signals], moment: str, number: int) -> None:
        self.signals, self.moment, self.number = signals, moment, number
        self.sent_at = -1

    def _send(self, step: int) -> None:
        if self.sent_at < 0:
            self.sent_at = step
            Path("sent").write_text(str(step))
            for signum in self.signals:
                os.kill(os.getpid(), signum)
                time.sleep(0.001)  # the handler runs before the next signal

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.moment == "a step" and trainer.global_step == self.number:
            self._send(trainer.global_step)
        if 0 <= self.sent_at <= trainer.global_step - 2 and not Path("saved").exists():
            Path("saved").write_text(str(saved_step(Path())))

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.moment == "a validation" and batch_idx == 1:
            self._send(trainer.global_step)

    def prepare(self) -> None:
        """Send the signals within the first call of torch.save, if that is the moment."""
        if self.moment == "a save":
            original: Callable[..., None] = torch.save

            def save(content: Any, *args: Any, **options: Any) -> None:
                if isinstance(content, dict) and "global_step" in content:
                    self._send(content["global_step"])
                original(content, *args, **options)

            torch.save = save  # type: ignore[assignment]


def try_signal(index: int, rng: Random, folder: Path) -> Outcome:
    """Send signals to a run, check its end, resume it, and compare it with the uninterrupted run."""
    name, moment = combination(index)
    what = scenario(index // (len(SENT) * len(MOMENTS)) + index)
    signals, code = SENT[name]
    about = f"{what}, {name} during {moment}"
    expected = uninterrupted(what, folder.parent)
    sender = SendDuring(signals, moment, number=rng.randrange(1, 4))
    pid = start(what.argv(), folder, "signalled", [Watch(), sender], sender.prepare)
    if moment == "a random time" and wait_for_training(pid, folder / "training"):
        delay = rng.uniform(0, 0.8 * float((expected / "training").read_text()))
        time.sleep(delay)
        about += f" ({delay:.3f} s after training started)"
        for signum in signals:
            os.kill(pid, signum)
            time.sleep(0.05)
    got = exit_code(pid)
    finished = moment == "a random time" and (folder / "training").read_text() != "" and got == 0
    problems = []
    if got != code and not finished:
        problems.append(f"the exit code is {got}, not {code}")
    if "Traceback" in (folder / "signalled.err").read_text(errors="replace"):
        problems.append("a traceback was printed")
    if not problems and moment != "a random time":
        problems += _wrong_step(folder, name, moment)
    if trouble := ("" if code == 0 and got == 0 else resume(what, folder)) or difference(expected, folder):
        problems.append(trouble)
    return failure(f"{about}: {'; '.join(problems)}") if problems else wanted("resumed" if code else "continued")


def _wrong_step(folder: Path, name: str, moment: str) -> list[str]:
    """The errors in the step that was saved because of a signal."""
    sent = int((folder / "sent").read_text())
    if name == "SIGINT twice":  # stops immediately: nothing more needs to be saved
        return []
    if name == "SIGUSR1":
        saved = int((folder / "saved").read_text()) if (folder / "saved").exists() else -1
        return [] if saved >= sent or not (folder / "saved").exists() else [f"after step {sent} step {saved} is saved"]
    saved = saved_step(folder)
    # A step is completed first; SIGTERM and SIGHUP interrupt a validation.
    leaves_validation = moment == "a validation" and name != "SIGINT"
    right = {sent + 1} if moment == "a step" else {sent} if leaves_validation else {sent, sent + 1}
    return [] if saved in right else [f"the signal came at step {sent}, but step {saved} is saved"]


SIGNALS = Kind(
    "signals",
    "SIGINT once and twice, SIGTERM, SIGHUP, SIGUSR1 during a step, a validation, a save, or at a random time: exit "
    "code, saved step, and the bits of the resumed run",
    try_signal,
    cases=60,
    quick=5,
    seconds=90,
    gigabytes=8,
    case_name=lambda index: " during ".join(combination(index)),
)
