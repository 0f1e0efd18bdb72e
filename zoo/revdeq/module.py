"""The reversible equilibrium language model in Lightning: `RevDEQLM`."""

from typing import Any

import torch
from torch import Tensor

from zoo.language_model import LanguageModel
from zoo.revdeq.decode import stream_tokens
from zoo.revdeq.model import RevDEQ, RevDEQConfig


class RevDEQLM(LanguageModel):
    """Reversible deep equilibrium language model: one block iterated, exact gradients, memory that N does not grow.

    Beside what every language model logs: `residual`, the training batch's mean |z - f(z)| / |f(z)| after the
    iteration; `evaluations` of f; and `reconstruction_error`, how far the backward pass ended from where the forward
    pass began. Beyond 1e-3 of the latter, training stops with a sentence.

    Args:
        lr: peak learning rate.
        warmup_steps: optimizer steps of linear warm-up.
        min_lr_ratio: the cosine ends at this share of `lr`.
        beta1, beta2: AdamW's decay rates.
        weight_decay: decoupled decay of the matrices.
        compile: run the iterated block through `torch.compile`.
        **architecture: the fields of `RevDEQConfig`. `vocab_size` follows the data's tokenizer.
    """

    stream_tokens = staticmethod(stream_tokens)

    def __init__(
        self,
        lr: float = 3e-4,
        warmup_steps: int = 1000,
        min_lr_ratio: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.01,
        compile: bool = False,
        **architecture: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = RevDEQ(RevDEQConfig(**architecture))

    def compile_training(self) -> None:
        # The block alone, for forward and backward pass must run the same kernels.
        self.model.cell.compile()

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        self.solution = self.model.solve(batch[0])
        loss = self.model.loss(batch[0], batch[1], self.solution)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if self.logs_this_step:
            self.log("residual", self.solution.residual.mean())
            self.log("evaluations", float(self.solution.evaluations))
            self.log("reconstruction_error", self.solution.reconstruction_error)
        del self.solution  # and the state with it
