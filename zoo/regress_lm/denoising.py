"""Pretraining of RegressLM's encoder by span denoising: the encoder reads corrupted texts, and a decoder, which is not
used afterwards, generates the spans (see `span_corruption`). Without dropout, as in the pretraining of T5 1.1."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError, check_counts, check_number
from zoo.generation.decoders import evaluating
from zoo.optim import OptimizerConfig, ResumedSchedule
from zoo.regress_lm.model import Encoder, EncoderDecoder
from zoo.regress_lm.span_corruption import Corrupted, corrupt, count_spans
from zoo.training.batches import Row, bucketed, collate
from zoo.training.random_streams import derive, stream

CLIP = 1.0  # largest norm of the gradient
WARMUP = 0.05  # share of the steps


@dataclass
class DenoisingConfig:
    """Settings of span denoising.

    Args:
        steps: optimizer steps, at least 1.
        batch_size: texts per step, at least 1.
        corrupted_share: share of a text's tokens that are corrupted, between 0 and 1.
        mean_span: mean number of tokens of a span, at least 1.
        seed: seed of the order of the texts, their corruption and the decoder's initial weights.
    """

    steps: int
    batch_size: int = 64
    corrupted_share: float = 0.15
    mean_span: float = 3.0
    seed: int = 0

    def check(self) -> None:
        """Raises UserError if a setting is outside its range."""
        check_counts(steps=self.steps, batch_size=self.batch_size)
        check_number("corrupted_share", self.corrupted_share, "between 0 and 1", lambda share: 0 < share < 1)
        check_number("mean_span", self.mean_span, "at least 1", lambda length: 1 <= length < float("inf"))
        check_number("seed", self.seed, "an integer", lambda seed: True, whole=True)


class SentinelEncoder(nn.Module):
    """An encoder whose embedding table is continued by sentinels."""

    def __init__(self, encoder: Encoder, n_sentinels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.sentinels = nn.Parameter(torch.randn(n_sentinels, encoder.config.dim))

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        return self.encoder(tokens, mask, torch.cat([self.encoder.embedding.weight, self.sentinels]))


class Denoising:
    """A run of span denoising, a step at a time. Each step is a function of the weights, the seed and its number.

    Args:
        encoder: trained in place.
        texts: token ids; texts of fewer than 2 tokens are not used, and those beyond the encoder's max_input_len are
            divided.
        optimizer_config: optimizer and learning rate; the warm-up is 5% of the steps.
        config: settings.

    Attributes:
        step: number of steps done.
        n_texts: number of texts that are used.

    Raises:
        UserError: no text has 2 tokens, or a setting is out of range.
    """

    def __init__(
        self,
        encoder: Encoder,
        texts: Sequence[Sequence[int]],
        optimizer_config: OptimizerConfig,
        config: DenoisingConfig,
    ) -> None:
        config.check()
        self.config, self.step = config, 0
        self._vocab_size = encoder.config.vocab_size
        limit = encoder.config.max_input_len
        parts = [text[i : i + limit] for text in texts for i in range(0, len(text), limit)]
        parts = [part for part in parts if len(part) > 1]
        if not parts:
            raise UserError("there are no texts of at least 2 tokens to pretrain the encoder on")
        # One array, which is smaller than lists of integers.
        self._starts = np.cumsum([0, *map(len, parts)])  # (N + 1,)
        self._tokens = np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
        self.n_texts, self._epoch = len(parts), -1
        longest = int(np.diff(self._starts).max())
        counts = [count_spans(n, config.corrupted_share, config.mean_span) for n in range(2, longest + 1)]
        self.network = self._network(encoder, max(s for _, s in counts), max(c + s for c, s in counts))
        self._optimizer_config = optimizer_config
        self.set_steps(config.steps)
        self._optimizer = self._optimizer_config.build(self.network.named_parameters())
        self._schedule = ResumedSchedule(
            self._optimizer, lambda step: self._optimizer_config.lr_factor(step, self.config.steps)
        )

    def _network(self, encoder: Encoder, n_sentinels: int, target_len: int) -> EncoderDecoder:
        """The encoder with sentinels, and a decoder of one layer that generates their ids and those of the texts."""
        # Id 0 starts the targets and is not scored, so that text ids are one higher there.
        sizes = replace(
            encoder.config,
            number_vocab_size=1 + self._vocab_size + n_sentinels,
            number_len=target_len,
            n_decoder_layers=1,
        )
        with torch.random.fork_rng():
            torch.manual_seed(derive(self.config.seed, "denoising", "weights"))
            network = EncoderDecoder(sizes, SentinelEncoder(encoder, n_sentinels))
        return network.to(encoder.embedding.weight)

    # ---- training

    def set_steps(self, steps: int) -> None:
        """Set the number of steps of the run, and with it the learning-rate schedule."""
        self.config = replace(self.config, steps=steps)
        self._optimizer_config = replace(self._optimizer_config, warmup_steps=round(WARMUP * steps))

    def train_step(
        self, rank: int = 0, ranks: int = 1, add_up: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ) -> float:
        """Do the next step, and return its loss: the mean cross-entropy of the target tokens in nats.

        Args:
            rank: rank of this process.
            ranks: number of processes; each computes its share of the step's texts.
            add_up: adds up a tensor over all processes.

        Raises:
            UserError: the loss or the gradient is not finite.
        """
        corrupted = self.batch(self.step)
        n_targets = sum(len(text.targets) for text in corrupted)
        self._optimizer.zero_grad()
        loss = torch.zeros((), dtype=torch.float32, device=self.network.positions.device)
        if own := corrupted[rank::ranks]:
            with evaluating(self.network):
                loss = self._summed_loss(own) / n_targets
            loss.backward()
        trained = [p for p in self.network.parameters() if p.requires_grad]
        if ranks > 1:
            loss = add_up(loss.detach())
            for parameter in trained:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = add_up(gradient)
        norm = nn.utils.clip_grad_norm_(trained, CLIP)
        if not (loss.isfinite() and norm.isfinite()):
            raise UserError(
                f"pretraining diverged at step {self.step + 1}: its loss or gradient is not finite; lower --model.lr"
            )
        self._optimizer.step()
        self._schedule.step()
        self.step += 1
        return loss.item()

    def batch(self, step: int) -> list[Corrupted]:
        """The corrupted texts of a step."""
        size, c = min(self.config.batch_size, self.n_texts), self.config
        # Each epoch has a new order, in which a step has texts of similar length; those that fill no step are left out.
        epoch, place = divmod(step, self.n_texts // size)
        if self._epoch != epoch:
            shuffle = stream(c.seed, "denoising", "order", epoch)
            order = torch.randperm(self.n_texts, device="cpu", generator=shuffle)
            lengths = torch.from_numpy(np.diff(self._starts))
            self._epoch, self._order = epoch, bucketed(order, lengths, size, shuffle).tolist()
        generator = stream(c.seed, "denoising", "corruption", step)
        used = self._order[place * size : (place + 1) * size]
        texts = [self._tokens[self._starts[i] : self._starts[i + 1]].tolist() for i in used]
        return [corrupt(text, self._vocab_size, generator, c.corrupted_share, c.mean_span) for text in texts]

    def _summed_loss(self, corrupted: Sequence[Corrupted]) -> Tensor:
        """Sum of the cross-entropy of all target tokens in nats."""
        inputs = collate([Row(text.inputs, (0.0,), 0, "") for text in corrupted])
        ids = [torch.tensor(text.targets) + 1 for text in corrupted]
        targets = nn.utils.rnn.pad_sequence(ids, batch_first=True)  # (B, L), padded with 0
        device = self.network.positions.device
        mask = None if inputs.padding_mask is None else inputs.padding_mask.to(device)
        targets = targets.to(device)
        logits = self.network(inputs.tokens.to(device), targets, mask)  # (B, L, V)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=0, reduction="sum")

    # ---- checkpoints

    @property
    def digest(self) -> str:
        """A digest of the texts."""
        return hashlib.blake2b(self._starts.tobytes() + self._tokens.tobytes(), digest_size=8).hexdigest()

    def _head(self) -> Iterator[tuple[str, Tensor]]:
        """Names and parameters of all but the encoder."""
        for name, parameter in self.network.named_parameters():
            if not name.startswith("encoder.encoder."):
                yield name, parameter

    def state_dict(self) -> dict[str, Any]:
        """All that continues the run, except for the encoder's weights."""
        return {
            "step": self.step,
            "texts": self.digest,
            "batch_size": self.config.batch_size,
            "head": {name: parameter.detach() for name, parameter in self._head()},
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a run, whose encoder weights are loaded already.

        Args:
            state: from `state_dict`, checked by `check_state`.

        Raises:
            UserError: it was a run on other texts, in other batches or of other sizes.
        """
        if state["texts"] != self.digest:
            raise UserError(
                "the texts to pretrain on have changed since the checkpoint: restore them, or start a new run"
            )
        if state["batch_size"] != self.config.batch_size:
            raise UserError(
                f"a step of pretraining has {self.config.batch_size} texts here and {state['batch_size']} in the "
                "checkpoint: resume with the same --data.batch_size and number of processes"
            )
        own, stored = dict(self._head()), state["head"]
        shapes = [{name: tuple(tensor.shape) for name, tensor in of.items()} for of in (own, stored)]
        try:
            if shapes[0] != shapes[1]:
                raise ValueError
            self._optimizer.load_state_dict(state["optimizer"])
        except (KeyError, TypeError, ValueError):  # torch's, for the state of another optimizer
            raise UserError("the checkpoint's pretraining does not fit this model: use another checkpoint") from None
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(stored[name])
        self.step = state["step"]
        self._schedule.load_state_dict({"last_epoch": self.step, "_step_count": self.step + 1})


def check_state(state: Any) -> dict[str, Any]:
    """The state of a pretraining in a checkpoint: of a `Denoising`, or the number of steps of one that is complete.

    Raises:
        UserError: it is neither.
    """
    types = {"step": int, "texts": str, "batch_size": int, "head": dict, "optimizer": dict}
    is_known = isinstance(state, dict) and (state.keys() == types.keys() or state.keys() == {"step"})
    if not is_known or not all(isinstance(value, types[name]) for name, value in state.items()) or state["step"] < 0:
        raise UserError("the checkpoint's pretraining is damaged: use another checkpoint")
    head = state.get("head", {})
    if not all(isinstance(tensor, Tensor) and tensor.isfinite().all() for tensor in head.values()):
        raise UserError("the checkpoint's pretraining has values that are not finite: use another checkpoint")
    return state
