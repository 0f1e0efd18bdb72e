"""LightningModule of the reversible deep equilibrium language model: RevDEQLM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.optim import OptimizerConfig
from zoo.revdeq.model import RevDEQ, RevDEQConfig
from zoo.revdeq.solver import ReconstructionError
from zoo.sharding.tensors import is_sharded
from zoo.tokenizers import Tokenizer
from zoo.training.batches import as_token_batch
from zoo.training.fixed_arguments import field_names
from zoo.training.initial_weights import InitialWeights
from zoo.training.language_model import LanguageModel, required_vocab_size
from zoo.training.loss_weights import Loss
from zoo.training.settings import part


@dataclass
class RevDEQSettings(OptimizerConfig, RevDEQConfig):
    """All settings of a RevDEQ and its training; the optimizer's defaults are the paper's."""

    lr: float = 3e-4
    warmup_steps: int = 1000
    beta2: float = 0.999
    weight_decay: float = 0.01


CHECK_EVERY = 20  # optimizer steps on a GPU after which the errors of the backward passes are read

# Settings of the iteration, on which no stored tensor depends.
ITERATION = ("num_fixed_point_iterations", "fixed_point_tol", "beta", "backward", "keep_every", "solver", "warm_start")


class RevDEQLM(LanguageModel):
    """Reversible deep equilibrium language model: one iterated block, exact gradients, memory independent of depth.

    McCallum et al. 2025, https://arxiv.org/abs/2509.12917.

    Logged in addition to what every language model logs: `residual`, the training batch's mean |z - f(z)| / |f(z)|
    after the iteration; `evaluations`, the number of evaluations of f; `reconstruction_error`, the distance between the
    start of the iteration and the end of the backward pass, relative to the norm of z. Training stops where it exceeds
    1e-3: on a CPU before the optimizer step, on a GPU, whose gradients are then NaN, at most 20 steps later.

    Args:
        vocab_size: number of token ids; the command line takes it from the data's tokenizer.
        weights: checkpoint of a RevDEQLM, also as zoo:NAME, from whose weights training starts. Its sizes replace the
            settings given here; those of the iteration and dropout remain. Default: random weights.
        tokenizer: the tokenizer of the data, stored in checkpoints; the command line takes it from the data.
        compile: run the iterated block through `torch.compile`.
        **settings: the fields of `RevDEQConfig` and `OptimizerConfig`.
    """

    fixed_arguments: ClassVar[tuple[str, ...]] = (
        *LanguageModel.fixed_arguments,
        *field_names(RevDEQConfig, "dropout", *ITERATION),
    )
    network_arguments: ClassVar[tuple[str, ...]] = (
        "num_heads", "block", "num_fixed_point_iterations", "fixed_point_tol", "beta", "solver", "warm_start",
    )  # fmt: skip

    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        **LanguageModel.charts,
        "residual of the iteration": ("train/residual",),
        "evaluations of the block": ("train/evaluations",),
        "reconstruction error": ("train/reconstruction_error",),
    }

    # The backward pass evaluates the block many times, so the parameters are collected together and kept until then.
    sharded_methods: ClassVar[tuple[str, ...] | None] = ("solution_and_loss",)

    def __init__(
        self,
        vocab_size: int | None = None,
        weights: str | None = None,
        tokenizer: Tokenizer | None = None,
        compile: bool = False,
        **settings: Any,
    ) -> None:
        start = InitialWeights(weights, "RevDEQLM", field_names(RevDEQConfig, "vocab_size", "dropout", *ITERATION))
        vocab_size = required_vocab_size(vocab_size, tokenizer, "RevDEQLM")
        start.check_data(tokenizer, vocab_size=(vocab_size, f"set --data.tokenizer {weights}"))
        settings |= start.settings
        config = RevDEQSettings(vocab_size=vocab_size, **settings)
        network = start.build(lambda: RevDEQ(part(config, RevDEQConfig)))
        super().__init__(network, config, tokenizer, compile)
        self._failures: list[Tensor] = []  # of the backward passes on a GPU that have not been checked yet
        self.save_hyperparameters(ignore=["tokenizer"])
        self.hparams.update(start.settings | {"weights": None})  # a checkpoint must not need the file it started from

    def compile_network(self) -> None:
        # The block alone: forward and backward pass must run the same kernels.
        self.model.cell.compile()

    # Not compiled by torch.compile(module), which would reach the forward pass only: the backward pass would round
    # differently, and the inverse would amplify the difference. The argument `compile` compiles the block for both.
    @torch.compiler.disable
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = as_token_batch(batch)
        self.solution, loss = self.model.solution_and_loss(batch.tokens, batch.targets)
        if is_sharded(self.model) and self.logs_this_step:
            _ = self.solution.residual  # computed now: after the backward pass the parameters are divided again
        return self.step_loss(batch, Loss("train_loss", loss))

    def scoring_logits(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.model(tokens, targets)[0]

    def on_after_backward(self) -> None:
        if self.solution.failure.device.type != "cpu":
            self._failures.append(self.solution.failure)
            if self.global_step % CHECK_EVERY == 0:
                self.check_gradients()

    def check_gradients(self) -> None:
        """Raises ReconstructionError if a backward pass since the last check had a wrong gradient; waits for a GPU.

        The callback `NonFinite` calls this before it reports NaN.
        """
        failures, self._failures = self._failures, []
        for error in torch.stack(failures).tolist() if failures else []:
            if error:
                config = self.model.config
                raise ReconstructionError(config.beta, config.num_fixed_point_iterations, error)

    def on_validation_start(self) -> None:
        self.check_gradients()

    def on_train_end(self) -> None:
        self.check_gradients()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if self.logs_this_step:
            self.log("residual", self.solution.residual.mean(), sync_dist=True)
            # On the CPU, as it is used.
            evaluations = torch.tensor(float(self.solution.evaluations), dtype=torch.float32, device="cpu")
            self.log("evaluations", evaluations, sync_dist=True)
            self.log("reconstruction_error", self.solution.reconstruction_error, sync_dist=True)
        del self.solution  # frees the state
