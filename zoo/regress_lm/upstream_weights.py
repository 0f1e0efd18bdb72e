"""Loads the weights of https://github.com/google-deepmind/regress-lm into an `EncoderDecoder`."""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.files.finite import check_finite
from zoo.files.memory_limit import memory_limit, tensor_sizes
from zoo.files.torch_files import read_torch_file
from zoo.regress_lm.model import EncoderDecoder, RegressLMConfig


def load_upstream(
    source: Mapping[str, Any] | str | os.PathLike, max_input_len: int = 2048, n_heads: int = 8, **changes: Any
) -> EncoderDecoder:
    """An `EncoderDecoder` with upstream's weights. The sizes and the encoder's heads follow from the tensors' shapes.

    Args:
        source: a state dict, with or without the prefix `encoder_decoder.`, or a file with one.
        max_input_len: longest text in tokens, which no shape shows.
        n_heads: attention heads of the decoder, which no shape shows; upstream's decoder has 8.
        **changes: other fields of `RegressLMConfig`; by default number_len is that of the stored positions.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is damaged, or holds the weights of another model, or weights that are not finite.
    """
    content: Any = source
    if not isinstance(source, Mapping):
        content = read_torch_file(source)
    state = content.get("model_state", content) if isinstance(content, Mapping) else None  # next to the optimizer's
    name = "these weights" if isinstance(source, Mapping) else str(source)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.is_floating_point()
        for name, tensor in state.items()
    ):
        raise UserError(f"{name} are not the weights of a RegressLM: a state dict of floating-point tensors is needed")
    weights: dict[str, Tensor] = {name.removeprefix("encoder_decoder."): state[name] for name in state}
    positions = weights.pop("decoder_positional_encoding.pe", None)  # (1, number_len + 1, dim)
    rotary = weights.pop("encoder.rotary_pos_emb.inv_freq", None)  # (dim / heads / 2,) of the encoder
    check_finite(name, weights)
    try:
        number_vocab_size, dim = weights["generator.weight"].shape
        config = {
            "vocab_size": len(weights["encoder.embedding.weight"]),
            "number_vocab_size": number_vocab_size,
            "number_len": 0 if positions is None else positions.shape[1] - 1,
            "dim": dim,
            "n_encoder_layers": sum(name.endswith("q_proj.weight") for name in weights),
            "n_decoder_layers": sum(name.endswith("self_attn.in_proj_weight") for name in weights),
            "hidden_dim": len(weights["decoder.layers.0.linear1.weight"]),
        }
        if rotary is not None:
            config["n_encoder_heads"] = _encoder_heads(rotary, dim, changes.pop("n_encoder_heads", None))
        settings = RegressLMConfig(**config | {"max_input_len": max_input_len, "n_heads": n_heads} | changes)
        with memory_limit(name, *tensor_sizes(weights)):
            model = EncoderDecoder(settings)
        model.load_state_dict(weights)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:  # a tensor is missing or misshapen
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{name} are not the weights of a RegressLM with a plain encoder: {reason}") from None
    return model


def _encoder_heads(rotary: Tensor, dim: int, given: int | None) -> int:
    """Heads of an encoder of width `dim` whose rotary embedding has the frequencies `rotary`."""
    if rotary.ndim != 1 or not rotary.numel() or dim % (2 * rotary.numel()):
        shape = tuple(rotary.shape)
        raise UserError(f"encoder.rotary_pos_emb.inv_freq of shape {shape} does not divide the width {dim} into heads")
    heads = dim // (2 * rotary.numel())
    if given not in (None, heads):
        raise UserError(f"the encoder has {heads} heads, not n_encoder_heads {given}")
    return heads
