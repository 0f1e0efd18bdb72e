"""Small training runs of every model, how they are started and resumed, and their uninterrupted counterparts."""

import functools
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from lightning.pytorch import Callback

from benchmarks.commands import exit_code, fork_command

QUIET = [
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu",
    "--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=2", "--trainer.log_every_n_steps=1",
    "--samples.max_new_tokens=0",
]  # fmt: skip
SMALL_LLAMA = ["--model.dim=32", "--model.n_layers=2", "--model.n_heads=2", "--model.dropout=0.1"]
MODELS = {  # config in configs/tiny -> options that make it smaller
    "llama": [*SMALL_LLAMA, "--data.seq_len=32", "--data.batch_size=4", "--model.warmup_steps=2"],
    "revdeq": ["--data.seq_len=16", "--data.batch_size=4", "--model.hidden_size=32", "--model.warmup_steps=2"],
    "icr": ["--data.batch_size=16", "--model.d_model=32", "--model.n_layers=2", "--model.warmup_steps=2"],
    "mini_rlm": ["--data.batch_size=8"],
    "regress_lm": ["--model.dim=32", "--data.batch_size=8", "--model.warmup_steps=2"],
    "llama_classifier": [*SMALL_LLAMA, "--data.batch_size=8", "--model.warmup_steps=2"],
}
EPOCHS = ["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0", "--trainer.limit_train_batches=7"]
BOUNDS = {  # how long a run is, how many batches a step accumulates, when it validates -> options
    "max_steps": ["--trainer.max_steps=9", "--trainer.val_check_interval=3"],
    "max_steps, accumulate 2": [
        "--trainer.max_steps=6", "--trainer.val_check_interval=4", "--trainer.accumulate_grad_batches=2"
    ],
    "max_epochs": ["--trainer.max_steps=-1", "--trainer.max_epochs=2", *EPOCHS],
    "max_epochs, accumulate 3": [
        "--trainer.max_steps=-1", "--trainer.max_epochs=3", *EPOCHS, "--trainer.accumulate_grad_batches=3"
    ],
    "max_epochs and max_steps, two validations per epoch": [
        "--trainer.max_steps=12", "--trainer.max_epochs=2", *EPOCHS[:1], *EPOCHS[2:], "--trainer.val_check_interval=3"
    ],
}  # fmt: skip
COMPARED = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")  # parts of a checkpoint


class Scenario(NamedTuple):
    """A run to interrupt.

    Args:
        model: a key of `MODELS`.
        bound: a key of `BOUNDS`.
    """

    model: str
    bound: str

    def argv(self) -> list[str]:
        """The words of `zoo fit`; the run's folder is `run` in the working directory."""
        return ["fit", f"--config=tiny/{self.model}", "--output_dir=run", *QUIET, *MODELS[self.model],
                *BOUNDS[self.bound]]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.model} ({self.bound})"


def scenario(index: int) -> Scenario:
    """All pairs of a model and a bound, one after the other; neighbours differ in the model and in the bound."""
    models, bounds = [*MODELS], [*BOUNDS]
    return Scenario(models[index % len(models)], bounds[(index + index // len(models)) % len(bounds)])


class Watch(Callback):
    """Creates the file `training` when training starts, and writes into it how many seconds training took."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = time.monotonic()
        Path("training").touch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        Path("training").write_text(str(time.monotonic() - self.start))


def use_callbacks(callbacks: Sequence[Callback]) -> None:
    """Let the command line of this process add these callbacks to its Trainer."""
    from zoo.cli import command_line

    command_line.ZooCLI = functools.partial(command_line.ZooCLI, callbacks=callbacks)  # type: ignore[misc]


def start(argv: list[str], folder: Path, name: str, callbacks: Sequence[Callback] = (), prepare: Any = None) -> int:
    """Start a command in `folder`, and return the number of its process."""
    folder.mkdir(parents=True, exist_ok=True)

    def before() -> None:
        torch.set_num_threads(1)
        use_callbacks(callbacks)
        if prepare:
            prepare()

    return fork_command(argv, folder, name, before)


def uninterrupted(of: Scenario, shared: Path) -> Path:
    """The folder in which this scenario ran once without interruption; it runs if it has not yet."""
    folder = shared / "uninterrupted" / "".join(letter if letter.isalnum() else "-" for letter in str(of))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "done").exists():
            code = exit_code(start(of.argv(), folder, "fit", [Watch()]))
            if code != 0:
                raise RuntimeError(f"the uninterrupted run of {of} ended with {code}: {last_line(folder / 'fit.err')}")
            (folder / "done").touch()
    return folder


def resume(of: Scenario, folder: Path) -> str:
    """Resume the run in `folder` to its end, or restart it if no checkpoint was saved; "" or what went wrong."""
    code = exit_code(start(resume_argv(of, folder), folder, "resume"))
    return "" if code == 0 else f"resuming ended with {code}: {last_line(folder / 'resume.err')}"


def resume_argv(of: Scenario, folder: Path) -> list[str]:
    has_checkpoint = (folder / "run" / "last.ckpt").exists()
    return [*of.argv(), f"--ckpt_path={'last' if has_checkpoint else 'auto'}"]  # auto starts again after config.yaml


def difference(expected: Path, folder: Path) -> str:
    """ "" if the last and the best checkpoint of two runs are equal bit by bit, else the first difference."""
    for name in ("last.ckpt", "best.ckpt"):
        files = [side / "run" / name for side in (expected, folder)]
        if not files[1].exists():
            return f"{name} is missing"
        one, other = (torch.load(file, weights_only=True) for file in files)
        for part in COMPARED:
            if place := unequal(one[part], other[part], part):
                return f"{name} differs at {place}"
    return ""


def unequal(one: Any, other: Any, place: str) -> str:
    """The place of the first difference between two nested values; "" if there is none."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same_bits = one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
        return "" if same_bits else place
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return place
        return next(filter(None, (unequal(one[key], other[key], f"{place}.{key}") for key in one)), "")
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = enumerate(itertools.zip_longest(one, other))
        return next(filter(None, (unequal(a, b, f"{place}.{i}") for i, (a, b) in pairs)), "")
    return "" if one == other else f"{place} ({one!r}, then {other!r})"


def saved_step(folder: Path) -> int:
    """The optimizer step of last.ckpt; -1 if there is none."""
    path = folder / "run" / "last.ckpt"
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else -1


def last_line(file: Path) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()] if file.exists() else []
    return lines[-1][:300] if lines else "(no message)"


def isolate(shared: Path) -> None:
    """Let commands cache their text in `shared`."""
    os.environ["ZOO_CACHE"] = str(shared / "cache")
