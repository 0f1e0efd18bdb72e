"""A Llama as one GGUF file with its tokenizer, for llama.cpp and transformers.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The tensors are in fp32 and have Meta's order of
rotary pairs, as llama2.c's.
"""

import json
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.export.llama2c import without_padding
from zoo.export.pieces import BYTE, CONTROL, NORMAL, UNKNOWN, pieces_of
from zoo.export.tokenizer_json import tokenizer_files
from zoo.llama.checkpoints.names import split_projections
from zoo.llama.model import Llama, LlamaConfig
from zoo.tokenizers import Tokenizer
from zoo.tokenizers.tokenizer_json import token_ids

_NAMES = {  # llama2.c's name, without the layer's number -> GGUF's
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
# Regular expressions by which byte-level tokenizers cut texts into words -> llama.cpp's names of them.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS = {None: "gpt-2", _LLAMA3: "llama-bpe"}  # None: that of the `tokenizers` library's ByteLevel, which is GPT-2's


def write_gguf(model: Llama, tokenizer: Tokenizer | None, file: Path) -> None:
    """Write the file.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        file: the file, in an existing folder.

    Raises:
        UserError: the package gguf is not installed, or the file cannot express the model or its tokenizer.
    """
    gguf = _library()
    model = without_padding(model)
    config = model.config
    if config.rope_scaling is not None:
        raise UserError("transformers ignores the rotary scaling (rope_scaling) of a GGUF file: use --format hf")
    if tokenizer is None:
        raise UserError("a GGUF file holds the tokenizer, and this model has none: give it with --data.tokenizer")
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model {config.vocab_size}: give the model's "
            "tokenizer with --data.tokenizer"
        )
    vocabulary = _vocabulary(tokenizer)
    writer = gguf.GGUFWriter(file, "llama", use_temp_file=False)
    _add_settings(writer, config)
    for key, value in vocabulary.items():
        getattr(writer, f"add_{key}")(value)
    for name, tensor in split_projections(model.state_dict(), config).items():
        writer.add_tensor(_name(name), tensor.contiguous().numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _library() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise UserError(
            "--format gguf needs the package gguf: pip install '.[export]' in the folder of the zoo's source"
        ) from error
    return gguf


def _add_settings(writer: Any, config: LlamaConfig) -> None:
    """Sizes and constants of the network."""
    writer.add_name("zoo")
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(0)  # all tensors in fp32


def _name(name: str) -> str:
    """The GGUF name of a tensor by llama2.c's name."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("layers."):
        return f"{_NAMES[stem]}.weight"
    _, number, block = stem.split(".", 2)
    return f"blk.{number}.{_NAMES[block]}.weight"


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer's entries: name of the writer's method without `add_` -> value."""
    pieces = pieces_of(tokenizer)
    entries: dict[str, Any]
    if pieces is None:
        entries = _byte_level(tokenizer)
    elif pieces.is_plain and set(pieces.types) <= {NORMAL, UNKNOWN, CONTROL, BYTE}:
        entries = {
            "tokenizer_model": "llama",
            "tokenizer_pre": "default",
            "token_list": pieces.texts,
            "token_scores": pieces.scores,
            "token_types": pieces.types,
            "add_space_prefix": True,
            "unk_token_id": pieces.types.index(UNKNOWN),
        }
    else:
        raise _refusal(tokenizer)
    for name, i in (("bos_token_id", tokenizer.bos_id), ("eos_token_id", tokenizer.eos_id)):
        if i is not None:
            entries[name] = i
    return entries | {"add_bos_token": bool(tokenizer.leading_ids), "add_eos_token": False}


def _byte_level(tokenizer: Tokenizer) -> dict[str, Any]:
    """The entries of a byte-level BPE with the words of GPT-2 or Llama 3."""
    content = json.loads(tokenizer_files(tokenizer)["tokenizer.json"])
    model, words = content["model"], _words(content.get("pre_tokenizer"))
    if not model.get("merges"):  # then each byte is a token, and the split into words does not matter
        words = None
    is_plain = not content.get("normalizer") and not model.get("byte_fallback") and not model.get("ignore_merges")
    if model.get("type") != "BPE" or words not in _WORDS or not is_plain:
        raise _refusal(tokenizer)
    ids = token_ids(content)
    special = {token["id"] for token in content["added_tokens"] if token["special"]}
    if any(token["id"] not in special for token in content["added_tokens"]) or sorted(ids.values()) != [
        *range(len(ids))
    ]:
        raise _refusal(tokenizer)
    names = sorted(ids, key=ids.__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    entries: dict[str, Any] = {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": _WORDS[words],
        "token_list": names,
        "token_types": [CONTROL if i in special else NORMAL for i in range(len(names))],
    }
    # A list in a GGUF file has at least one entry. Without merges transformers reads scores, which then imply none.
    return entries | ({"token_merges": merges} if merges else {"token_scores": [0.0] * len(names)})


def _words(pre_tokenizer: Any) -> str | None:
    """The regular expression that cuts texts into words: None for GPT-2's, "" for another way."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if isinstance(pre_tokenizer, dict) else [{}]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return ""
    if len(steps) == 1:
        return None if last.get("use_regex", True) else ""
    pattern = steps[0].get("pattern", {}).get("Regex", "")
    is_split = len(steps) == 2 and steps[0].get("type") == "Split" and not last.get("use_regex", True)
    return pattern if is_split and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert") else ""


def _refusal(tokenizer: Tokenizer) -> UserError:
    return UserError(
        "a GGUF file holds byte-level BPE with the words of GPT-2 or Llama 3, and SentencePiece models with the rules "
        f"of Llama 2, not {tokenizer.source} (of the kind {tokenizer.kind}): use --format hf"
    )
