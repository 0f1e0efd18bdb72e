"""Base LightningModule of language models: loss, perplexity, predictions and text generation for any causal network.

Example: `windows` is a dataset of pairs (tokens, targets), both (T,) int64.

    network = Llama(LlamaConfig(vocab_size=257, dim=64, n_layers=2, n_heads=2))
    module = LanguageModel(network, OptimizerConfig(lr=1e-3))
    lightning.Trainer(max_steps=100).fit(module, DataLoader(windows, batch_size=8))
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.errors import UserError, check_counts
from zoo.generation.decoders import left_pad
from zoo.generation.sampling import stream_tokens
from zoo.layers.linear_nll import IGNORED
from zoo.layers.token_nll import token_nll
from zoo.layers.widen import widen
from zoo.optim import OptimizerConfig
from zoo.tokenizers import Tokenizer
from zoo.training.batches import as_token_batch, check_token_ids
from zoo.training.loss_weights import Counts, Loss
from zoo.training.metrics import SummedLoss, reset_metrics
from zoo.training.module import ZooModule
from zoo.training.protocols import LanguageModelConfig, LanguageModelNetwork, require
from zoo.training.random_streams import derive, global_seed

LARGEST_LOSS = math.log(sys.float_info.max)  # whose exponential is a float


class LanguageModel(ZooModule):
    """Next-token training of a `LanguageModelNetwork`.

    Batches are `TokenBatch`es or plain (tokens, targets) pairs, both (B, T) int64.

    Logged: `train_loss`; for val and test `<split>_loss` in nats per token, `<split>_ppl` per token and, where batches
    carry word counts, `<split>_word_ppl`: exp(summed loss / words), which compares models with different tokenizers.

    A subclass may override `compile_network` (what `compile` compiles) and `training_step`, which returns
    `self.step_loss(batch, Loss("train_loss", mean))`; then steps average over all tokens with accumulation, too.

    Args:
        network: the model, a torch.nn.Module with the members of `LanguageModelNetwork`.
        optimizer_config: settings of the optimizer and its schedule.
        tokenizer: turns text into the network's ids; `sample_text` needs it, and predictions contain texts only with
            it.
        compile: run the training loss through `torch.compile`; the default False runs it eagerly.
    """

    data_arguments: ClassVar[tuple[str, ...]] = ("vocab_size", "tokenizer")
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "loss in nats per token": ("train/loss", "val/loss", "baseline/loss_.*"),
        "perplexity": ("val/ppl", "baseline/ppl_.*"),
        "perplexity per word": ("val/word_ppl",),
    }
    hparam_metrics: ClassVar[tuple[str, ...]] = ("val_loss", "val_ppl")
    item = "tokens"  # unit of the Throughput callback
    model: Any

    def __init__(
        self,
        network: LanguageModelNetwork,
        optimizer_config: OptimizerConfig,
        tokenizer: Tokenizer | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(optimizer_config, tokenizer)
        self.model = network
        self.compiles = compile
        self.perplexity = torch.nn.ModuleDict({split: SummedLoss() for split in ("val", "test")})

    def setup(self, stage: str) -> None:
        """Check the network, and compile it if training starts.

        Raises:
            TypeError: the network lacks a member of `LanguageModelNetwork`, or its config one of `LanguageModelConfig`.
        """
        super().setup(stage)
        require(self.model, LanguageModelNetwork)
        require(self.model.config, LanguageModelConfig)
        if stage == "fit" and self.compiles:
            self.compile_network()

    def training_loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The network's loss, as a training step computes it."""
        return self.model.loss(tokens, targets)

    def compile_network(self) -> None:
        """Compile what a training step runs; called once, when training starts."""
        self.training_loss = torch.compile(self.model.loss)  # type: ignore[method-assign]

    def check_data(self, data: Any) -> None:
        """Compare the windows of a data module with the network's context.

        Raises:
            UserError: the data does not consist of windows of text, or they are longer than the context.
        """
        # Only data of running text has windows.
        if not hasattr(data, "seq_len"):
            raise UserError(f"{type(data).__name__} has no running text for a language model: set --data=TextLM")
        longest = self.model.config.max_seq_len
        if data.seq_len > longest:
            raise UserError(
                f"--data.seq_len {data.seq_len} exceeds the model's context of {longest} tokens: set --data.seq_len to "
                f"at most {longest}"
            )

    def forward(self, batch: Any) -> Tensor:
        """Logits (B, T, V) of tokens (B, T), given as a tensor, a `TokenBatch` or a (tokens, targets) pair."""
        tokens = batch if isinstance(batch, Tensor) else as_token_batch(batch).tokens
        check_token_ids(tokens, self.model.config.vocab_size)
        return self.model(tokens)[0]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check the ids while they are on the CPU."""
        tokens, targets, *_ = as_token_batch(batch)
        check_token_ids(tokens, self.model.config.vocab_size, targets)
        return batch

    # ---- training

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = as_token_batch(batch)
        return self.step_loss(batch, Loss("train_loss", self.training_loss(batch.tokens, batch.targets)))

    def loss_counts(self, batch: Any) -> Counts:
        """Scored tokens of a batch."""
        return [(as_token_batch(batch).targets != IGNORED).sum()]

    def count(self, batch: Any) -> int:
        """Tokens of a training batch."""
        return as_token_batch(batch).tokens.numel()

    def flops_per_item(self, batch: Any) -> float:
        """Floating-point operations of one training token, forward and backward."""
        return self.model.flops_per_token(as_token_batch(batch).tokens.shape[1])

    # ---- evaluation

    def _update(self, split: str, batch: Any) -> None:
        """Add a batch to the split's summed loss."""
        # The mean loss is weighted by the number of scored targets, and the words are summed.
        tokens, targets, _, words = as_token_batch(batch)
        loss = self.model.loss(tokens, targets)
        self.perplexity[split].update(loss, (targets != IGNORED).sum(), words)  # type: ignore[operator]

    def _log_perplexity(self, split: str) -> None:
        """Log the loss and the perplexities of a whole split, over all ranks."""
        metric: Any = self.perplexity[split]
        result = metric.compute()
        reset_metrics(metric)
        loss = result["loss"]
        # sync_dist: the metric has synchronised already, so all ranks hold the same value.
        self.log(f"{split}_loss", loss, prog_bar=True, sync_dist=True)
        self.log(f"{split}_ppl", loss.exp(), sync_dist=True)
        if "loss_per_word" in result:
            self.log(f"{split}_word_ppl", result["loss_per_word"].exp(), sync_dist=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._update("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._log_perplexity("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._update("test", batch)

    def on_test_epoch_end(self) -> None:
        self._log_perplexity("test")

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
        """Score every window of the text.

        Returns:
            For each row "tokens" (number scored), "loss" (nats per token) and "ppl", both NaN where no token is scored;
            "index", its place in the text, where the batch has it; and "text", the scored text, where the module has a
            tokenizer.
        """
        tokens, targets, index, _ = as_token_batch(batch)
        # Mean negative log-likelihood of each row over its scored targets.
        logits = self.scoring_logits(tokens, targets)  # (B, T, V)
        nll = token_nll(widen(logits), targets, IGNORED)  # (B, T)
        is_scored = targets != IGNORED  # (B, T)
        counts = is_scored.sum(1)  # (B,)
        losses = nll.sum(1) / counts  # (B,), NaN without scored targets
        # Copied to the CPU as a batch: every copy waits for a GPU.
        losses, counts, targets, is_scored = (part.cpu() for part in (losses, counts, targets, is_scored))
        index = None if index is None else index.cpu()
        # One dictionary per row, with index and text where they are known.
        rows: list[dict[str, Any]] = [{} for _ in tokens]
        for i, row in enumerate(rows):
            if index is not None:
                row["index"] = int(index[i])
            if self.tokenizer is not None:
                row["text"] = self.tokenizer.decode(targets[i][is_scored[i]].tolist())
            loss = losses[i].item()
            # NaN stays NaN. Beyond the range of a float the perplexity is infinite, as in validation.
            row |= {"tokens": int(counts[i]), "loss": loss, "ppl": math.inf if loss > LARGEST_LOSS else math.exp(loss)}
        return rows

    def scoring_logits(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, T, V) that score targets (B, T) after tokens (B, T)."""
        return self.model(tokens)[0]

    # ---- text

    def stream(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options: Any) -> Iterator[Tensor]:
        """Continue prompts, given as lists of ids: yields the next token of every prompt, (B,), step by step.

        Args:
            prompts: B lists of token ids.
            max_new_tokens: number of steps at most.
            **options: arguments of `zoo.generation.sampling.stream_tokens`.
        """
        tokens, lengths = left_pad(prompts)
        return stream_tokens(self.model, tokens, max_new_tokens, lengths=lengths, **options)

    def sample_text(self, prompt: str, max_new_tokens: int, temperature: float) -> str:
        """`prompt` with its continuation; the draw depends on the run's seed and the step only."""
        if self.tokenizer is None:
            raise UserError(f"{type(self).__name__} cannot sample text without a tokenizer: pass it as tokenizer=")
        # An empty prompt starts from BOS, or from token 0 where the vocabulary lacks it.
        ids = self.tokenizer.encode(prompt) or [self.tokenizer.bos_id or 0]
        seed = derive(global_seed(), "sample", self.global_step)
        steps = self.stream([ids], max_new_tokens, temperature=temperature, seed=seed)
        return self.tokenizer.decode([*ids, *(int(step) for step in steps)])


def required_vocab_size(vocab_size: int | None, tokenizer: Tokenizer | None, model: str) -> int:
    """The vocabulary size of a new model, from its argument or from its tokenizer.

    Args:
        vocab_size: the argument, if given.
        tokenizer: the tokenizer, if given.
        model: class name for the error message.

    Raises:
        UserError: neither is given, the two differ, or the size is below 1.
    """
    # Either of the two is enough; if both are given they must agree.
    if vocab_size is None:
        if tokenizer is None:
            raise UserError(f"{model} needs vocab_size, the number of token ids in its data, or a tokenizer: pass one")
        return tokenizer.vocab_size
    check_counts(vocab_size=vocab_size)
    if tokenizer is not None and tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{model}: vocab_size is {vocab_size}, but the tokenizer has {tokenizer.vocab_size} tokens: pass only "
            "one of them, or equal sizes"
        )
    return vocab_size
