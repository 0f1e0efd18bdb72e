"""The line that `zoo fit` prints at its start, instead of Lightning's table of submodules."""

import math
import sys
from typing import Any

from lightning.pytorch import Callback

from zoo.training.language_model import LanguageModel

MOST_EPOCHS = 100  # of a language model; more are advised against


class OpeningMessage(Callback):
    """Print one line when training starts: the model, its parameters, where a run continues, and many epochs.

    Of a language model that would read its training text more than 100 times, the line says what to change.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        n_parameters = sum(p.numel() for p in pl_module.parameters())
        n_trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        line = f"zoo: {type(pl_module).__name__}, {n_parameters:,} parameters"
        line += f", {n_trained:,} of them trained" if n_trained < n_parameters else ""
        line += f"; continues after step {trainer.global_step:,}" if trainer.global_step else ""
        epochs = trainer.max_steps * trainer.accumulate_grad_batches / trainer.num_training_batches
        if trainer.max_steps > 0 and math.isfinite(trainer.num_training_batches):
            line += f"; {trainer.max_steps:,} steps are {epochs:,.0f} epochs" if epochs >= 10 else ""
            if isinstance(pl_module, LanguageModel) and epochs > MOST_EPOCHS:
                line += ": for so short a text set fewer --trainer.max_steps, or take a small config such as tiny/llama"
        print(line, file=sys.stderr)
