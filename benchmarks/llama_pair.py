"""A Llama and transformers' LlamaForCausalLM with equal weights, and the rows that compare them."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from zoo.llama import Llama, LlamaConfig, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
STORIES = Path(os.environ.get("ZOO_DATA", ROOT.parent / "shared" / "data")) / "stories260K" / "stories260K.bin"
SHAPES = {
    "260K": {"vocab_size": 512, "dim": 64, "n_layers": 5, "n_heads": 8, "n_kv_heads": 4, "hidden_dim": 172},
    "15M": {"dim": 288, "n_layers": 6, "n_heads": 6, "max_seq_len": 256},
    "110M": {"dim": 768, "n_layers": 12, "n_heads": 12, "max_seq_len": 1024},
}
Row = dict[str, Any]


def build(shape: str) -> Llama:
    torch.manual_seed(0)
    return Llama(LlamaConfig(**SHAPES[shape]))


def peer_of(model: Llama) -> Any:
    """transformers' model with the weights of `model`."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(model, folder)
        return LlamaForCausalLM.from_pretrained(folder)


def row(benchmark: str, value: float, peer: float, unit: str, **more: Any) -> Row:
    """A result row: the zoo's value, the peer's value and their ratio."""
    return {"benchmark": benchmark, "ours": value, "peer": peer, "ratio": value / peer, "unit": unit, **more}
