"""A Llama as a Hugging Face folder with its tokenizer: config.json, generation_config.json, model.safetensors."""

import json
from pathlib import Path
from typing import Any

from zoo.export.tokenizer_json import tokenizer_files
from zoo.llama.checkpoints import save_checkpoint
from zoo.llama.model import Llama, LlamaConfig
from zoo.tokenizers import Tokenizer


def write_hugging_face(model: Llama, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Write the files into an empty folder.

    Args:
        model: the model.
        tokenizer: its tokenizer, if it has one.
        folder: an existing folder.

    Raises:
        UserError: the files cannot express the tokenizer.
    """
    config = model.config
    texts = {} if tokenizer is None else tokenizer_files(tokenizer, config.max_seq_len)
    save_checkpoint(model, folder)
    stops = stop_tokens(config, tokenizer)
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": stops or None}
    if tokenizer is not None:
        tokens["bos_token_id"] = tokenizer.bos_id
    generation = dict(tokens)
    if config.n_rows > config.vocab_size:  # rows of padding, whose ids are never generated
        generation["suppress_tokens"] = list(range(config.vocab_size, config.n_rows))
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")) | tokens
    texts |= {"config.json": json.dumps(settings, indent=2), "generation_config.json": json.dumps(generation, indent=2)}
    for name, text in texts.items():
        (folder / name).write_text(text + "\n" * (not text.endswith("\n")), encoding="utf-8")


def stop_tokens(config: LlamaConfig, tokenizer: Tokenizer | None) -> list[int]:
    """The ids at which `zoo generate` ends a text: the tokenizer's BOS and EOS, and those of the model."""
    own = () if tokenizer is None else (tokenizer.eos_id, tokenizer.bos_id)
    return list(dict.fromkeys(i for i in (*own, *(config.stop_tokens or ())) if i is not None))
