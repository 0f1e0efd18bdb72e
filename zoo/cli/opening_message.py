"""The line that `zoo fit` prints at its start, instead of Lightning's table of submodules."""

import math
import sys
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

from zoo.callbacks.budget import Budget
from zoo.callbacks.progress import total_steps
from zoo.training.language_model import LanguageModel

MOST_EPOCHS = 100  # of a language model; more are advised against
SMALL = 5_000_000  # parameters; for a larger model, a smaller config is advised too


class OpeningMessage(Callback):
    """Print one line when training starts: the model, its parameters, where a run continues, and many epochs.

    The epochs are those of the steps that will be made: all limits of steps and epochs count, and a run with a limit of
    time has none. Of a language model that would read its training text more than 100 times, the line says what to
    change.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        n_parameters = sum(p.numel() for p in pl_module.parameters())
        n_trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        line = f"zoo: {type(pl_module).__name__}, {n_parameters:,} parameters"
        line += f", {n_trained:,} of them trained" if n_trained < n_parameters else ""
        line += f"; continues after step {trainer.global_step:,}" if trainer.global_step else ""
        line += _epochs(trainer, is_language=isinstance(pl_module, LanguageModel), is_small=n_parameters <= SMALL)
        print(line, file=sys.stderr)


def _epochs(trainer: Any, is_language: bool, is_small: bool) -> str:
    """The number of steps of a run of many epochs in epochs, and the advice on too many; "" for fewer than 10."""
    steps = total_steps(trainer)
    has_time_limit = any(isinstance(callback, Timer | Budget) for callback in trainer.callbacks)
    if steps is None or has_time_limit or not math.isfinite(trainer.num_training_batches):
        return ""
    # The last window of an epoch may have fewer batches.
    steps_of_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    epochs = steps / steps_of_epoch
    if epochs < 10:
        return ""
    text = f"; {steps:,} steps are {epochs:,.0f} epochs"
    if is_language and epochs > MOST_EPOCHS:
        text += f": for so short a text set --trainer.max_steps to at most {MOST_EPOCHS * steps_of_epoch:,}"
        text += "" if is_small else ", or take a small config such as tiny/llama"
    return text
