"""Loading of pretrained encoders with the transformers library, and their digests and limits."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.errors import UserError
from zoo.files.memory_limit import no_memory_limit
from zoo.hub.transformers_library import load_pretrained, quiet, transformers_library
from zoo.text_formats.json_text import describe_json_error, parse_object

# Settings that describe the file or the library, not the function that the encoder computes.
_VOLATILE = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache")


def load_encoder(name: str) -> nn.Module:
    """The encoder in a folder or on the hub, in float32; of an encoder-decoder such as T5 the encoder only.

    Args:
        name: a folder, or the name of a model on the hub, "owner/name". Weights are read from safetensors files only.

    Raises:
        FileNotFoundError: neither a folder nor a model on the hub has this name.
        UserError: it cannot be loaded safely, or lacks weights of the encoder.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{name} has no .safetensors file, and other formats can execute code: load the model with transformers "
            "and save it with save_pretrained"
        )
    with no_memory_limit():
        model, info = load_pretrained(
            "AutoModel", name, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    encoder, prefix = _encoder_of(model)
    # transformers draws random values for weights that the files lack; those of a decoder are not used.
    own = {prefix + key for key in encoder.state_dict()}
    missing = {key for key in info["missing_keys"] if key in own or (prefix and not key.startswith("decoder."))}
    missing |= {key for key, *_ in info["mismatched_keys"]}
    if missing:
        raise UserError(f"{name} lacks weights of its encoder, {min(missing)} for example: give another folder")
    return encoder


def encoder_from_config(description: str) -> nn.Module:
    """An encoder with random weights from the JSON text of its configuration.

    Raises:
        UserError: the text describes no model that transformers knows.
    """
    try:
        settings = parse_object(description)
    except ValueError as error:
        reason = describe_json_error(error)
        raise UserError(f"the checkpoint's encoder_config is damaged: {reason}; use another checkpoint") from error
    library = transformers_library()
    with quiet(library):
        try:
            config = library.AutoConfig.for_model(**settings)
            model = library.AutoModel.from_config(config, trust_remote_code=False)
        except Exception as error:  # of many types, for damaged settings
            raise UserError(f"the checkpoint's encoder cannot be built: {error}; use another checkpoint") from error
    return _encoder_of(model)[0]


def _encoder_of(model: Any) -> tuple[nn.Module, str]:
    """The encoder of a model of transformers, and the prefix of its parameters in that model."""
    if isinstance(getattr(model, "decoder", None), nn.Module) and hasattr(model, "encoder"):
        return model.encoder, "encoder."
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # it computes one vector of a text, which is not used
    return model, ""


def configuration(encoder: Any) -> str:
    """The JSON text from which `encoder_from_config` builds the encoder again."""
    return json.dumps(encoder.config.to_dict(), sort_keys=True, default=str)


def digest(encoder: Any) -> str:
    """16 hex digits, equal for two encoders exactly if their configurations and weights are."""
    settings = {key: value for key, value in encoder.config.to_dict().items() if key not in _VOLATILE}
    hasher = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=8)
    for name, tensor in sorted(encoder.state_dict().items()):
        hasher.update(f"{name}{tuple(tensor.shape)}".encode())
        hasher.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def longest_input(encoder: Any) -> int | None:
    """The largest number of tokens that the encoder reads; None if its positions are unlimited."""
    limit = getattr(encoder.config.get_text_config(), "max_position_embeddings", None)
    # RoBERTa counts positions from behind the id of its padding.
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None and limit:
            return limit - module.padding_idx - 1
    return limit


def data_settings(name: str) -> dict[str, Any]:
    """Settings of the data that an encoder implies: its tokenizer, and the length of its longest input."""
    settings: dict[str, Any] = {"tokenizer": f"transformers:{name}"}
    if limit := longest_input(_without_weights(name)):
        settings["max_input_len"] = min(limit, 2048)
    return settings


def count_weights(encoder: str | nn.Module) -> int:
    """The number of weights in an encoder's matrices, without those of its embeddings.

    Args:
        encoder: the encoder, or the name of one for `load_encoder`.
    """
    encoder = _without_weights(encoder) if isinstance(encoder, str) else encoder
    embeddings = sum(m.weight.numel() for m in encoder.modules() if isinstance(m, nn.Embedding))
    return sum(p.numel() for p in encoder.parameters() if p.ndim == 2) - embeddings


def _without_weights(name: str) -> nn.Module:
    """The encoder of a folder or on the hub as its configuration describes it, without memory for its weights."""
    config = load_pretrained("AutoConfig", name)
    with quiet(transformers_library()), torch.device("meta"):
        return _encoder_of(transformers_library().AutoModel.from_config(config, trust_remote_code=False))[0]
