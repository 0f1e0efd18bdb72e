"""config.json of a Hugging Face folder, read as the settings of a Llama.

Every key is compared with the lists below. A setting that zoo.llama cannot express is refused by name, so that a model
is never computed differently from transformers without a message.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.llama.model import SCALING_KEYS, LlamaConfig
from zoo.text_formats.json_text import read_object, shorten

# Keys that set sizes and constants.
_READ = {
    "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    "rope_parameters", "rope_scaling", "rope_theta", "tie_word_embeddings", "eos_token_id",
}  # fmt: skip
# Keys without influence on the logits: initialization, training, generation, storage, tokens, notes of other programs.
_HARMLESS = {
    "initializer_range", "attention_dropout", "use_cache", "pretraining_tp", "dtype", "torch_dtype",
    "transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "bos_token_id", "pad_token_id",
    "sep_token_id", "decoder_start_token_id", "tokenizer_class", "prefix", "output_hidden_states", "output_attentions",
    "output_scores", "return_dict", "return_dict_in_generate", "use_return_dict", "chunk_size_feed_forward",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled",
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params", "do_sample",
    "temperature", "top_k", "top_p", "typical_p", "min_length", "max_length", "num_beams", "num_beam_groups",
    "num_return_sequences", "repetition_penalty", "length_penalty", "diversity_penalty", "encoder_no_repeat_ngram_size",
    "no_repeat_ngram_size", "early_stopping", "bad_words_ids", "begin_suppress_tokens", "suppress_tokens",
    "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "remove_invalid_values",
    "torchscript", "tf_legacy_loss", "use_bfloat16", "pruned_heads", "keys_to_ignore_at_inference",
    "max_sequence_length", "is_llama_config", "unsloth_version", "unsloth_fixed",
    "tie_last_hidden_states", "transformers.js_config",
}  # fmt: skip
# Keys that are harmless with these values only; null is always harmless.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,), "mlp_bias": (False,), "bias": (False,), "qkv_bias": (False,),
    "is_encoder_decoder": (False,), "is_decoder": (False, True), "add_cross_attention": (False,),
    "cross_attention_hidden_size": (), "tie_encoder_decoder": (False,), "quantization_config": (),
    "sliding_window": (), "use_sliding_window": (False,), "partial_rotary_factor": (1,), "rope_interleaved": (False,),
    "attention_multiplier": (), "embedding_multiplier": (1,), "residual_multiplier": (1,), "logits_scaling": (1,),
    "logit_scale": (1,), "final_logit_softcapping": (), "attn_logit_softcapping": (), "use_qk_norm": (False,),
    "qk_norm": (False,), "per_layer_config": (), "num_local_experts": (), "auto_map": (),
}  # fmt: skip
_ROPE_KEYS = {"rope_type", "type", "rope_theta", *SCALING_KEYS}
_LARGEST_SIZE = 2**31 - 1
_MIN_TABLE_LIMIT = 1 << 28  # bytes of the rotary table that are allowed for weight files of any size


def read_config(file: Path) -> LlamaConfig:
    """The settings in a config.json, with the stop tokens in it and in generation_config.json in the same folder.

    Raises:
        UserError: the file is damaged, or describes a model that zoo.llama does not support.
    """
    if not file.is_file():
        raise UserError(f"{file.parent} is not a Hugging Face folder: it lacks {file.name}")
    settings = read_object(file)
    _check_keys(file, settings)
    try:
        config = LlamaConfig(
            vocab_size=_size(settings, "vocab_size"),
            dim=_size(settings, "hidden_size"),
            n_layers=_size(settings, "num_hidden_layers"),
            n_heads=_size(settings, "num_attention_heads"),
            n_kv_heads=_size(settings, "num_key_value_heads", None),
            hidden_dim=_size(settings, "intermediate_size"),
            max_seq_len=_size(settings, "max_position_embeddings", 2048),
            norm_eps=_positive(settings, "rms_norm_eps", 1e-6),
            **_rotary_settings(settings),
            tie_embeddings=bool(settings.get("tie_word_embeddings")),
        )
        head_dim = _size(settings, "head_dim", config.head_dim)
    except UserError as error:
        raise UserError(f"{file} does not hold the settings of a Llama: {error}") from None
    if head_dim != config.head_dim:
        raise UserError(
            f"{file} sets head_dim {head_dim}, but zoo.llama supports only hidden_size / num_attention_heads, here "
            f"{config.head_dim}"
        )
    return replace(config, stop_tokens=_stop_tokens(file, settings, config.vocab_size))


def check_sizes(file: Path, config: LlamaConfig, weight_bytes: int) -> None:
    """Compare the settings with the size of the weight files, before memory is allocated for a model.

    Raises:
        UserError: the weight files cannot hold that many numbers, or the context needs a much larger rotary table.
    """
    kv_dim = config.kv_heads * config.head_dim
    per_layer = config.dim * (2 * config.dim + 2 * kv_dim + 3 * config.ffn_dim + 2)
    embeddings = config.n_rows * config.dim * (1 if config.tie_embeddings else 2)
    # A number has at least one byte.
    if (count := config.n_layers * per_layer + embeddings) > weight_bytes:
        raise UserError(
            f"{file} describes a model of {count} numbers, but its weight files have only {weight_bytes} bytes: "
            "download both again"
        )
    table_bytes = 4 * config.max_seq_len * config.head_dim
    if table_bytes > max(weight_bytes, _MIN_TABLE_LIMIT):
        raise UserError(
            f"{file} sets max_position_embeddings {config.max_seq_len}, whose rotary table needs {table_bytes} bytes: "
            "lower it to the longest text in tokens that you need"
        )


def _check_keys(file: Path, settings: dict[str, Any]) -> None:
    """Raises UserError for the first key, or value of a key, that zoo.llama does not support."""
    if settings.get("model_type") != "llama":
        raise UserError(
            f"{file} describes a {shorten(settings.get('model_type'), 60)} model, not a 'llama': give another folder"
        )
    allowed = _NEUTRAL | {
        "hidden_act": ("silu", "swish"),  # two names of one function
        "tie_word_embeddings": (True, False),
        "architectures": (["LlamaForCausalLM"], ["LLaMAForCausalLM"], []),
    }
    for key, value in settings.items():
        if value is None or key in _HARMLESS or (key == "layer_types" and _is_full_attention(value)):
            continue
        if key in allowed:
            if not any(value == other and type(value) in (type(other), float) for other in allowed[key]):
                only = " or ".join(json.dumps(other) for other in allowed[key] or [None])
                raise UserError(
                    f"{file} sets {key} to {shorten(value, 60)}, which zoo.llama does not support, only {only}: give "
                    "another folder"
                )
        elif key not in _READ:
            raise UserError(
                f"{file} sets {key} to {shorten(value, 60)}, a key that zoo.llama does not know: remove it only if it "
                "has no influence on the logits, otherwise give another folder"
            )


def _is_full_attention(layer_types: Any) -> bool:
    return isinstance(layer_types, list) and all(kind == "full_attention" for kind in layer_types)


def _rotary_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The fields rope_theta and rope_scaling of LlamaConfig."""
    # transformers 4 reads rope_scaling and rope_theta, transformers 5 rope_parameters. A rope_scaling that is not empty
    # has precedence in both.
    name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    rope = settings.get(name) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{name} is {shorten(rope, 60)}, not an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(
            f"{name} sets the rotary scaling {shorten(kind, 60)}, which zoo.llama does not support, only 'default' and "
            "'llama3': give another folder"
        )
    for key, value in rope.items():
        neutral = value is None or (key == "partial_rotary_factor" and value == 1)
        if key not in _ROPE_KEYS and not neutral:
            raise UserError(f"{name} sets {key} to {shorten(value, 60)}, which zoo.llama does not support")
    theta = _positive(rope if "rope_theta" in rope else settings, "rope_theta", 10000.0)
    scaling = None
    if kind == "llama3":
        original = _size(rope, SCALING_KEYS[-1], _size(settings, "max_position_embeddings", 2048))
        scaling = {key: _positive(rope, key) for key in SCALING_KEYS[:-1]} | {SCALING_KEYS[-1]: original}
        if scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
            raise UserError(f"{name} sets low_freq_factor to at least high_freq_factor, which must be greater")
    return {"rope_theta": theta, "rope_scaling": scaling}


def _stop_tokens(file: Path, settings: dict[str, Any], vocab_size: int) -> list[int] | None:
    """The ids named eos_token_id, a number or a list.

    As in the `generate` of transformers 5: where generation_config.json exists, it alone counts, also without this key.
    """
    if (generation := file.with_name("generation_config.json")).is_file():
        file, settings = generation, read_object(generation)
    given = settings.get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise UserError(f"{file}: eos_token_id must be a token id or a list of them, not {shorten(given, 60)}")
    # An id outside the vocabulary, such as -1, is never generated.
    return sorted({i for i in ids if 0 <= i < vocab_size}) or None


def _size(settings: dict[str, Any], key: str, default: int | None = 0) -> Any:
    """The integer at `key`, at least 1; `default` where it is null or missing, unless that is 0."""
    value = settings.get(key)
    if value is None and default != 0:
        return default
    if value is None:
        raise UserError(f"it lacks the field {key!r}; download it again")
    if type(value) is not int or not 1 <= value <= _LARGEST_SIZE:
        raise UserError(f"{key} must be a whole number from 1 to {_LARGEST_SIZE}, not {shorten(value, 60)}")
    return value


def _positive(settings: dict[str, Any], key: str, default: float | None = None) -> float:
    """The number at `key`, positive and finite; `default`, if there is one, where it is missing."""
    value: Any = settings.get(key, default)
    if type(value) not in (int, float) or not 1e-30 <= value <= 1e30:
        raise UserError(f"{key} must be a number from 1e-30 to 1e30, not {shorten(value, 60)}")
    return float(value)
