"""Our RegressLM and upstream's of the same sizes, with their training steps and sampling, for benchmarks."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo.optim import AdamW  # noqa: E402
from zoo.regress_lm.decoding import sample  # noqa: E402
from zoo.regress_lm.model import EncoderDecoder, RegressLMConfig  # noqa: E402
from zoo.regress_lm.number_tokenizers import IEEEFloatTokenizer  # noqa: E402
from zoo.regress_lm.vocabulary import NumberVocabulary  # noqa: E402

VOCABULARY = NumberVocabulary(IEEEFloatTokenizer())
CHARACTERS = 99  # ids 2 ... 98 are upstream's, after <pad> and <unk>
SIZES = {"dim": 512, "short": 8, "full": 2048, "long": 8192, "middle": 512, "inputs": 8, "samples": 128, "rows": 4}
SIZES["many"] = 64
TINY = {"dim": 64, "short": 8, "full": 64, "long": 128, "middle": 32, "inputs": 2, "samples": 16, "rows": 2}
TINY["many"] = 16
Row = dict[str, Any]


def peer_of(max_input_len: int, encoder: str = "VANILLA") -> Any:
    """Upstream's model for texts of at most `max_input_len` tokens."""
    from regress_lm import tokenizers, vocabs
    from regress_lm.pytorch.encoders import EncoderType
    from regress_lm.pytorch.model import PyTorchModelConfig

    torch.manual_seed(0)
    architecture = {"d_model": SIZES["dim"], "num_encoder_layers": 2, "num_decoder_layers": 2}
    return PyTorchModelConfig(
        encoder_vocab=vocabs.CharacterVocab(),
        decoder_vocab=vocabs.DecoderVocab(tokenizers.IEEEFloatTokenizer()),
        max_input_len=max_input_len,
        architecture_kwargs=architecture | {"encoder_type": EncoderType[encoder]},
        num_workers=0,
    ).make_model()


def ours_of(max_input_len: int) -> EncoderDecoder:
    """Our model of the same sizes, with random weights."""
    torch.manual_seed(0)
    return EncoderDecoder(
        RegressLMConfig(
            CHARACTERS, VOCABULARY.size, VOCABULARY.length, dim=SIZES["dim"], n_encoder_layers=2,
            n_decoder_layers=2, n_heads=8, max_input_len=max_input_len,
        )
    )  # fmt: skip


def texts(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Tokens (rows, length) without upstream's padding id, and number tokens (rows, 7)."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, CHARACTERS, (rows, length), generator=generator)
    values = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    return tokens, VOCABULARY.encode(values.numpy())


def padded(tokens: Tensor, numbers: Tensor, max_input_len: int) -> dict[str, Tensor]:
    """The batch as upstream's converter makes it: every row padded to max_input_len."""
    return {
        "encoder_input": F.pad(tokens, (0, max_input_len - tokens.shape[1])),
        "input_token_lens": torch.full((len(tokens),), tokens.shape[1]),
        "decoder_input": F.pad(numbers, (1, 0)),
        "decoder_target": F.pad(numbers, (0, 1)),
    }


def stepping(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A training step: forward, backward, AdamW."""
    model.train()
    optimizer = AdamW(model.parameters(), lr=1e-4)

    def step() -> Tensor:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return step


def our_step(model: EncoderDecoder, tokens: Tensor, numbers: Tensor) -> Callable[[], Tensor]:
    return stepping(model, lambda: F.cross_entropy(model(tokens, numbers).mT, numbers))


def their_step(peer: Any, tokens: Tensor, numbers: Tensor) -> Callable[[], Tensor]:
    batch = padded(tokens, numbers, peer.cfg.max_input_len)
    return stepping(peer, lambda: peer.compute_losses_and_metrics(batch)[0].mean())


def sampling(model: EncoderDecoder, tokens: Tensor, num_samples: int) -> Callable[[], Any]:
    return lambda: VOCABULARY.decode(sample(model, VOCABULARY, tokens, None, num_samples).ids)


def their_sampling(peer: Any, tokens: Tensor, num_samples: int) -> Callable[[], Any]:
    batch = padded(tokens, torch.zeros(len(tokens), 7, dtype=torch.int64), peer.cfg.max_input_len)
    inputs = {name: batch[name] for name in ("encoder_input", "input_token_lens")}
    return lambda: peer.decode(inputs, num_samples)


def row(benchmark: str, ours: float, peer: float, unit: str, **more: Any) -> Row:
    return {"benchmark": benchmark, "ours": ours, "peer": peer, "ratio": ours / peer, "unit": unit, **more}
