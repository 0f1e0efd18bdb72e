"""The training of a language model, whatever network predicts the next token.

Shared by the zoo's language models (Llama, and the reversible equilibrium model): loss, perplexities, AdamW with
warm-up and cosine, samples and predictions. The network is `self.model`, a plain module with

    forward(tokens (B, T)) -> (logits (B, T, V), hidden (B, T, dim))
    loss(tokens (B, T), targets (B, T)) -> mean negative log-likelihood, targets of -100 ignored
    flops_per_token(T) -> forward and backward arithmetic of one token
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from zoo.generation import left_pad
from zoo.module import ZooModule
from zoo.streams import derive, global_seed


class LanguageModel(ZooModule):
    """Next-token training over a `TextLM`-like DataModule (`tokenizer`, `seq_len`, `stats(split)`).

    Logged: `train_loss`, and for val and test `<split>_loss` (nats per token), `<split>_ppl` (per token) and
    `<split>_word_ppl`, which spreads the same nats over whitespace-separated words and line ends, so that models
    with different tokenizers compare.
    """

    item = "tokens"  # what Throughput counts
    model: Any
    stream_tokens: Callable[..., Iterator[Tensor]]  # (model, prompts (B, T), max_new_tokens, **options): the room's own

    @property
    def data(self) -> Any:
        """The DataModule of the running trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def __init__(self) -> None:
        super().__init__()
        # A NaN must show: torchmetrics would leave it out of the mean, and a diverged model look good.
        self.val_nll, self.test_nll = (MeanMetric(nan_strategy=float("nan")) for _ in range(2))

    def setup(self, stage: str) -> None:
        if "seq_len" not in self.data.hparams:
            raise ValueError(f"{type(self.data).__name__} has no running text for a language model: give --data=TextLM")
        longest, seq_len = self.model.config.max_seq_len, self.data.hparams.seq_len
        if seq_len > longest:
            raise ValueError(f"data.seq_len {seq_len} is beyond the model's max_seq_len {longest}: lower the first")
        self.training_loss = self.model.loss
        if stage == "fit" and self.hparams["compile"]:
            self.compile_training()

    def compile_training(self) -> None:
        self.training_loss = torch.compile(self.model.loss)

    # ---- training

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        loss = self.training_loss(batch[0], batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def count(self, batch: tuple[Tensor, ...]) -> int:
        """Tokens of a training batch."""
        return batch[0].numel()

    def flops_per_item(self, batch: tuple[Tensor, ...]) -> float:
        """Floating-point operations of one training token, forward and backward."""
        return self.model.flops_per_token(batch[0].shape[1])

    # ---- evaluation

    def _update(self, metric: MeanMetric, batch: tuple[Tensor, ...]) -> None:
        inputs, targets = batch[0], batch[1]
        metric.update(self.model.loss(inputs, targets), weight=(targets != -100).sum())

    def _log_perplexity(self, metric: MeanMetric, split: str) -> None:
        # A metric of sums, not a mean of batches' means: exact for ragged last batches and for several ranks.
        loss = metric.compute()
        metric.reset()
        stats = self.data.stats(split)
        self.log(f"{split}_loss", loss, prog_bar=True, sync_dist=True)  # equal on all ranks: the metric has synced
        self.log(f"{split}_ppl", loss.exp(), sync_dist=True)
        self.log(f"{split}_word_ppl", (loss * stats["tokens"] / stats["words"]).exp(), sync_dist=True)

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._update(self.val_nll, batch)

    def on_validation_epoch_end(self) -> None:
        self._log_perplexity(self.val_nll, "val")

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._update(self.test_nll, batch)

    def on_test_epoch_end(self) -> None:
        self._log_perplexity(self.test_nll, "test")

    def predict_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> list[dict[str, Any]]:
        """Score every window of the text: its place, its text, nats per token and perplexity."""
        inputs, targets, index = batch
        logits, _ = self.model(inputs)  # (B, T, V)
        nll = F.cross_entropy(logits.float().mT, targets, reduction="none")  # (B, T), 0 where the target is -100
        scored = targets != -100
        counts = scored.sum(1)
        losses = nll.sum(1) / counts.clamp(min=1)
        texts = [self.data.tokenizer.decode(row[mask].tolist()) for row, mask in zip(targets, scored, strict=True)]
        columns = zip(index.tolist(), texts, counts.tolist(), losses.tolist(), strict=True)
        return [{"index": i, "text": t, "tokens": n, "loss": x, "ppl": math.exp(x)} for i, t, n, x in columns]

    # ---- text

    def stream(self, prompts: list[list[int]], max_new_tokens: int, **options: Any) -> Iterator[Tensor]:
        """The next token of every prompt, (B,), again and again; options as in `zoo generate`."""
        tokens, lengths = left_pad(prompts)
        return self.stream_tokens(self.model, tokens, max_new_tokens, lengths=lengths, **options)

    def sample_text(self, prompt: str, max_new_tokens: int, temperature: float) -> str:
        """`prompt` and what the model makes of it, with a draw that depends on seed and step only."""
        ids = self.data.tokenizer.encode(prompt) or [0]
        seed = derive(global_seed(), "sample", self.global_step)
        steps = self.stream([ids], max_new_tokens, temperature=temperature, seed=seed)
        return self.data.tokenizer.decode([*ids, *(int(step) for step in steps)])
