"""Hugging Face folders: keys of config.json, equality with transformers, stop tokens, padded vocabularies."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from zoo.errors import UserError
from zoo.generation.sampling import generate
from zoo.llama import Llama, LlamaConfig, LlamaLM, load_checkpoint, save_checkpoint
from zoo.tokenizers import load_tokenizer, train_bpe

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def write_folder(folder, config=(), tensors=(), drop=(), **sizes):
    """Save a small model, then change its config.json and its tensors. Returns the model."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 16} | sizes
    model = Llama(LlamaConfig(**sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    save_checkpoint(model, folder)
    content = json.loads((folder / "config.json").read_text()) | dict(config)
    (folder / "config.json").write_text(json.dumps({key: content[key] for key in content if key not in drop}))
    file = folder / "model.safetensors"
    save_file(load_file(file) | dict(tensors), file, {"format": "pt"})
    return model


REFUSED = [
    ("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True), ("head_dim", 8), ("sliding_window", 4),
    ("partial_rotary_factor", 0.5), ("attention_multiplier", 0.5), ("residual_multiplier", 0.5),
    ("logits_scaling", 8.0),
    ("quantization_config", {"quant_method": "gptq"}), ("layer_types", ["sliding_attention"] * 2),
    ("model_type", "mistral"), ("architectures", ["LlamaForSequenceClassification"]), ("rope_interleaved", True),
    ("original_max_position_embeddings", 4), ("a_new_feature", 1), ("is_encoder_decoder", True),
    ("tie_word_embeddings", "yes"), ("eos_token_id", "2"), ("rms_norm_eps", "1e-6"), ("auto_map", {"AutoModel": "x.Y"}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=[key for key, _ in REFUSED])
def test_unsupported_settings_are_refused_by_name(key, value, tmp_path):
    write_folder(tmp_path, {key: value})
    named = r"'mistral' model" if key == "model_type" else key
    with pytest.raises(UserError, match=named) as error:
        load_checkpoint(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["linear", "yarn", "dynamic", "longrope"])
def test_unsupported_rotary_scaling_is_refused_by_name(kind, tmp_path):
    write_folder(tmp_path, {"rope_scaling": {"type": kind, "factor": 2.0}})
    with pytest.raises(UserError, match=f"rope_scaling sets the rotary scaling '{kind}'"):
        load_checkpoint(tmp_path)


def test_neutral_settings_are_harmless(tmp_path):
    neutral = {
        "attention_bias": False, "mlp_bias": None, "pretraining_tp": 2, "head_dim": None, "hidden_act": "swish",
        "attention_dropout": 0.1, "quantization_config": None, "layer_types": ["full_attention"] * 2, "use_cache": True,
        "torch_dtype": "bfloat16", "partial_rotary_factor": 1.0, "initializer_range": 0.1, "a_new_feature": None,
    }  # fmt: skip
    model = write_folder(tmp_path, neutral)
    tokens = torch.arange(16)[None]
    assert torch.equal(load_checkpoint(tmp_path)(tokens)[0], model(tokens)[0])


def other_matrix(rows=20):
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("config", "tensors", "drop"),
    [
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8}, "rope_theta": 300.0}, {}, ()),
        (
            {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default", "rope_theta": 99.0}},
            {},
            ("rope_theta",),
        ),
        ({"rope_scaling": {}, "rope_parameters": LLAMA3 | {"rope_theta": 99.0}}, {}, ()),
        ({"rope_scaling": {"type": "default", "rope_theta": 77.0}}, {}, ()),
        ({"rope_theta": 500.0}, {}, ("rope_parameters", "rms_norm_eps", "head_dim")),
        ({"tie_word_embeddings": True}, {"lm_head.weight": other_matrix()}, ()),
        ({"tie_word_embeddings": False}, {"lm_head.weight": other_matrix()}, ()),
        ({"hidden_act": "swish", "num_key_value_heads": 2}, {}, ()),
    ],
    ids=[
        "rope_scaling",
        "both ropes",
        "empty scaling",
        "default",
        "old names",
        "tied but different",
        "untied",
        "swish",
    ],
)
def test_logits_equal_transformers(config, tensors, drop, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_folder(tmp_path, config, tensors, drop)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(20, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(load_checkpoint(tmp_path)(tokens)[0], peer(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "layers.0.self_attn.q_proj.weight", "x.lora_A"]
)
def test_superfluous_tensors_are_refused_by_name(name, tmp_path):
    write_folder(tmp_path, tensors={name: torch.zeros(16, 16)})
    with pytest.raises(UserError, match=name):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"num_hidden_layers": 10**9}, "its weight files have only"),
        ({"intermediate_size": 2**31 - 1}, "its weight files have only"),
        ({"max_position_embeddings": 2**31 - 1}, "whose rotary table needs"),
        ({"vocab_size": 10**400}, "vocab_size must be a whole number from 1 to"),
        ({"rope_theta": 10**400, "rope_parameters": None}, "rope_theta must be a number"),
    ],
)
def test_sizes_that_the_weight_files_do_not_justify(config, sentence, tmp_path):
    write_folder(tmp_path, config)
    with pytest.raises(UserError, match=sentence):
        load_checkpoint(tmp_path)


# ---- generation


def test_generation_stops_at_every_eos_token_id(tmp_path):
    model = write_folder(tmp_path, {"eos_token_id": 99})  # outside the vocabulary: never generated
    tokens = torch.tensor([[1], [2], [3], [4]])
    free = generate(model, tokens, 15, temperature=0)
    assert torch.equal(generate(load_checkpoint(tmp_path), tokens, 15, temperature=0), free)
    first, second = free[0, 5].item(), free[1, 3].item()
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"eos_token_id": [first, second, 19]}))
    loaded = load_checkpoint(tmp_path)
    assert loaded.config.stop_tokens == sorted({first, second, 19})
    for row, stopped in zip(free.tolist(), generate(loaded, tokens, 15, temperature=0).tolist(), strict=True):
        ends = [i for i, token in enumerate(row) if i > 0 and token in loaded.config.stop_tokens]
        end = ends[0] + 1 if ends else len(row)
        assert stopped[:end] == row[:end]
        assert not any(stopped[end:])
    save_checkpoint(loaded, tmp_path / "again")
    assert load_checkpoint(tmp_path / "again").config.stop_tokens == loaded.config.stop_tokens


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, [5]), ({"eos_token_id": 7}, [7]), ({"eos_token_id": [8, 7, -1]}, [7, 8]), ({"eos_token_id": None}, None),
        ({}, None), ({"temperature": 0.5}, None),
    ],
)  # fmt: skip
def test_stop_tokens_are_those_of_transformers_generate(generation, expected, tmp_path):
    write_folder(tmp_path, {"eos_token_id": 5})
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert load_checkpoint(tmp_path).config.stop_tokens == expected


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.float8_e4m3fn])
def test_weights_of_other_types_are_refused(dtype, tmp_path):
    write_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    for supported in (torch.float64, torch.float16, torch.bfloat16):
        save_file(weights | {name: weights[name].to(supported)}, tmp_path / "model.safetensors")
        assert load_checkpoint(tmp_path).state_dict()
    save_file(weights | {name: weights[name].to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"model.safetensors: tensor {name} is of type {dtype}: give a file of"):
        load_checkpoint(tmp_path)


class NoCache(torch.nn.Module):
    """A network without a decoder: the complete text is evaluated for each token."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, tokens):
        return self.model(tokens)


@pytest.fixture
def padded(tmp_path):
    """A folder with 320 rows for 265 tokens, whose surplus rows would win every draw."""
    tokenizer = train_bpe(["the cat sat on the mat"] * 9, 265)
    write_folder(tmp_path, vocab_size=320, tie_embeddings=False)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"][265:] *= 50
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "tokenizer.json").write_text(tokenizer.state()["model"])
    return tmp_path, load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0}, {"temperature": 1.0}, {"top_k": 300}, {"top_k": 5}, {"top_p": 0.9}, {"precision": "bf16"},
        {"slide": True}, pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)  # fmt: skip
def test_surplus_ids_of_a_padded_vocabulary_are_never_generated(padded, options):
    _, model = padded
    tokens = torch.randint(265, (8, 3), generator=torch.Generator().manual_seed(0))
    assert (model(tokens)[0][:, -1].argmax(-1) >= 265).any()
    networks = [model] if {"precision", "compile"} & set(options) else [model, NoCache(model)]
    drawn = [generate(network, tokens, 13, seed=0, stop=(), **options) for network in networks]
    assert all(ids.max() < 265 for ids in drawn)
    assert torch.equal(drawn[0], drawn[-1])


def test_padded_vocabulary_does_not_change_logits_and_losses(padded):
    folder, model = padded
    assert (model.config.vocab_size, model.config.padded_vocab_size) == (265, 320)
    transformers = pytest.importorskip("transformers")
    peer = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(265, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = peer(tokens, labels=tokens)
        torch.testing.assert_close(model(tokens)[0], expected.logits, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(model.loss(tokens[:, :-1], tokens[:, 1:]), expected.loss, rtol=1e-5, atol=0)


def test_module_starts_from_a_padded_folder_and_restores_it(padded, tmp_path):
    folder, model = padded
    module = LlamaLM(weights=str(folder), tokenizer=load_tokenizer(folder))
    assert (module.hparams["vocab_size"], module.hparams["padded_vocab_size"]) == (265, 320)
    torch.save(
        {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "zoo": {"model": "LlamaLM"}},
        tmp_path / "last.ckpt",
    )
    again = load_checkpoint(tmp_path / "last.ckpt")
    assert again.config.n_rows == 320
    assert torch.equal(again.output_weight, model.output_weight)
    save_checkpoint(again, tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["vocab_size"] == 320


def test_tokenizers_of_other_sizes_are_refused(padded, tmp_path):
    folder, _ = padded
    with pytest.raises(UserError, match="the tokenizer has 257 tokens, but the model in"):
        LlamaLM(weights=str(folder), tokenizer=load_tokenizer("bytes"))
    write_folder(tmp_path / "small", vocab_size=200)
    with pytest.raises(UserError, match=r"the tokenizer has 257 tokens, but the model in .* 200 rows"):
        LlamaLM(weights=str(tmp_path / "small"), tokenizer=load_tokenizer("bytes"))
    write_folder(tmp_path / "large", vocab_size=300)  # without a tokenizer
    with pytest.warns(UserWarning, match="ids from 257 on are never generated"):
        module = LlamaLM(weights=str(tmp_path / "large"), tokenizer=load_tokenizer("bytes"))
    assert module.model.config.n_rows == 300


# ---- damaged files

VALUES = st.sampled_from([
    None, True, 0, -1, 2, 2**31 - 1, 2**64, 10**400, 1e308, float("inf"), float("nan"), 1e-320, "", "16", [], {}, [1],
    {"a": 1}, "x" * 5000,
])  # fmt: skip


@settings(
    derandomize=True, deadline=None, database=None, max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_mutated_configs_load_or_give_one_sentence(data, tmp_path):
    file = tmp_path / "config.json"
    if not file.exists():
        write_folder(tmp_path)
        (tmp_path / "original.json").write_bytes(file.read_bytes())
    original = json.loads((tmp_path / "original.json").read_text())
    original |= {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8}}
    generation = {"eos_token_id": [1]}
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.sampled_from([original, original["rope_scaling"], generation]))
        if isinstance(part, dict) and part:
            part[data.draw(st.sampled_from(list(part)))] = data.draw(VALUES)
        if not isinstance(original["rope_scaling"], dict):
            break
    file.write_text(json.dumps(original)[: data.draw(st.sampled_from([None, None, None, 50]))])
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    failure = None
    try:
        assert load_checkpoint(tmp_path)(torch.tensor([[1]]))[0].isfinite().all()
    except UserError as error:
        failure = str(error)
    if failure is not None:
        assert str(tmp_path) in failure
        assert "\n" not in failure
        assert len(failure) < 400 + len(str(tmp_path))
