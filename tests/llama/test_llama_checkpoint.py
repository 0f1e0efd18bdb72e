"""Llama checkpoints: round trips of each format, byte equality with llama2.c's file, messages for damaged files."""

import dataclasses
import json
import pickle
import random
import re
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.fuzzing.mutations import damage, flip, mutate, plain_values, values
from tests.fuzzing.readers import address_space, outcome
from zoo.errors import UserError
from zoo.llama import Llama, LlamaConfig, load_checkpoint, save_checkpoint
from zoo.llama.checkpoints.names import split_projections

TINY = {"vocab_size": 20, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 8}


def build(**changes):
    torch.manual_seed(0)
    return Llama(LlamaConfig(**(TINY | changes))).eval()


def same(a, b):
    """Check that two models have bitwise equal weights and logits."""
    states = a.state_dict(), b.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    tokens = torch.arange(8)[None]
    assert torch.equal(a(tokens)[0], b(tokens)[0])
    return True


def test_stories260k_round_trip_through_hugging_face_is_byte_equal(zoo_data, tmp_path):
    original = zoo_data / "stories260K" / "stories260K.bin"
    save_checkpoint(load_checkpoint(original), tmp_path / "hf")
    save_checkpoint(load_checkpoint(tmp_path / "hf"), tmp_path / "again.bin", format="llama2c")
    assert (tmp_path / "again.bin").read_bytes() == original.read_bytes()


@pytest.mark.parametrize("format", ["hf", "llama2c"])
@pytest.mark.parametrize("tie", [True, False])
def test_save_and_load_round_trip(tmp_path, format, tie):
    model = build(tie_embeddings=tie)
    save_checkpoint(model, tmp_path / "deep" / "model", format=format)
    assert same(load_checkpoint(tmp_path / "deep" / "model"), model)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".saving")]


def test_hugging_face_round_trip_keeps_every_setting(tmp_path):
    scaling = dict(zip(("factor", "low_freq_factor", "high_freq_factor"), (4.0, 1.0, 4.0), strict=True))
    scaling["original_max_position_embeddings"] = 4
    model = build(rope_theta=500.0, rope_scaling=scaling, norm_eps=1e-6, hidden_dim=24)
    save_checkpoint(model, tmp_path)
    back = load_checkpoint(tmp_path)
    assert same(back, model)
    assert dataclasses.replace(back.config, n_kv_heads=2, multiple_of=32) == model.config


def test_hugging_face_sharded_weights(tmp_path):
    model = build()
    save_checkpoint(model, tmp_path)
    tensors = list(load_file(tmp_path / "model.safetensors").items())
    index = {}
    for i, half in enumerate((dict(tensors[:7]), dict(tensors[7:]))):
        save_file(half, tmp_path / f"model-{i}.safetensors")
        index |= dict.fromkeys(half, f"model-{i}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "model.safetensors").unlink()
    assert same(load_checkpoint(tmp_path), model)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks its weights file model-1\.safetensors"):
        load_checkpoint(tmp_path)


def llama2c_pt(model, prefix="", course=False, **args):
    weights = split_projections(model.state_dict(), model.config)
    weights.setdefault("output.weight", weights["tok_embeddings.weight"])
    for word in ("query", "key", "value", "output") if course else ():
        weights = {name.replace(f".w{word[0]}.", f".compute_{word}."): t for name, t in weights.items()}
    settings = {name: TINY[name] for name in TINY} | args
    return {"model_args": settings, "model": {prefix + name: t for name, t in weights.items()}, "iter_num": 3}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("course", [True, False])
def test_llama2c_pt_and_course_names(tmp_path, tie, prefix, course):
    model = build(tie_embeddings=tie)
    torch.save(llama2c_pt(model, prefix, course, multiple_of=32), tmp_path / "stories.pt")
    assert same(load_checkpoint(tmp_path / "stories.pt"), model)


@pytest.mark.parametrize("prefix", ["model.", "model._orig_mod."])
def test_zoo_checkpoint(tmp_path, prefix):
    model = build(n_kv_heads=None)
    torch.save(
        {
            "state_dict": {prefix + name: t for name, t in model.state_dict().items()} | {"metric": torch.ones(1)},
            "hyper_parameters": TINY | {"n_kv_heads": None, "lr": 1e-3, "weights": None},
            "epoch": 1,
        },
        tmp_path / "any name",
    )
    assert same(load_checkpoint(tmp_path / "any name"), model)


def test_format_is_recognised_by_content_not_by_name(tmp_path):
    save_checkpoint(build(), tmp_path / "model.pt", format="llama2c")
    assert same(load_checkpoint(str(tmp_path / "model.pt")), build())


@pytest.mark.parametrize(
    "changes", [{"rope_theta": 500.0}, {"norm_eps": 1e-6}], ids=lambda changes: next(iter(changes))
)
def test_bin_refuses_settings_that_it_cannot_express(tmp_path, changes):
    with pytest.raises(ValueError, match=r"llama2\.c's \.bin expresses only"):
        save_checkpoint(build(**changes), tmp_path / "a.bin", format="llama2c")
    with pytest.raises(ValueError, match='format must be "hf" or "llama2c", not \'gguf\''):
        save_checkpoint(build(), tmp_path / "a.bin", format="gguf")
    assert not list(tmp_path.iterdir())


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    save_checkpoint(build(), tmp_path / "a.bin", format="llama2c")
    before = (tmp_path / "a.bin").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(build(vocab_size=21), tmp_path / "a.bin", format="llama2c")
    assert (tmp_path / "a.bin").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def damaged_checkpoint(kind, folder):
    """Write a checkpoint with one fault and return its path."""
    path, model = folder / "bad", build()
    if kind in ("empty", "text", "magic", "zeros", "raw pickle"):
        path.write_bytes({
            "empty": b"", "text": b"Once upon a time, there was a checkpoint. " * 9, "zeros": bytes(1000),
            "magic": struct.pack("<2i", 0x616B3432, 1) + bytes(300), "raw pickle": pickle.dumps(Bomb()),
        }[kind])  # fmt: skip
    elif kind in ("short bin", "long bin"):
        save_checkpoint(model, path, format="llama2c")
        content = path.read_bytes()
        path.write_bytes(content[:-4] if kind == "short bin" else content + b"more")
    elif kind in ("short zip", "bomb", "old bomb", "foreign zip", "heads", "lacking", "extra", "shape"):
        content = llama2c_pt(model)
        weights = content["model"]
        if "bomb" in kind:
            content["model_args"] = Bomb()
        elif kind == "foreign zip":
            content = {"weights": weights}
        elif kind == "heads":
            content["model_args"]["n_heads"] = 3
        elif kind == "lacking":
            del weights["norm.weight"]
        elif kind == "extra":
            weights["layers.0.attention.wq.bias"] = torch.zeros(16)
        elif kind == "shape":
            weights["layers.1.attention.wk.weight"] = torch.zeros(16, 16)
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old bomb")
        if kind == "short zip":
            path.write_bytes(path.read_bytes()[:2000])
    else:
        save_checkpoint(model, path)
        config, tensors = json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
        if kind == "no config":
            (path / "config.json").unlink()
        elif kind == "half a config":
            (path / "config.json").write_text((path / "config.json").read_text()[:50])
        elif kind == "short safetensors":
            complete = (path / "model.safetensors").read_bytes()
            (path / "model.safetensors").write_bytes(complete[:-100])
        elif kind in ("gpt2", "yarn", "no size", "head_dim"):
            change = {
                "gpt2": {"model_type": "gpt2"}, "yarn": {"rope_parameters": {"rope_type": "yarn"}},
                "no size": {}, "head_dim": {"head_dim": 5},
            }[kind]  # fmt: skip
            if kind == "no size":
                del config["hidden_size"]
            (path / "config.json").write_text(json.dumps(config | change))
        else:
            assert kind == "hf extra"
            save_file(tensors | {"model.layers.0.mlp.router.weight": torch.ones(1)}, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("empty", "is empty"),
        ("text", "not a checkpoint of a known format"),
        ("zeros", "not a checkpoint of a known format"),
        ("raw pickle", "not a checkpoint of a known format"),
        ("magic", "newer llama2.c export"),
        ("short bin", "truncated: [0-9]+ bytes"),
        ("long bin", "damaged, or of another format"),
        ("short zip", "truncated or damaged"),
        ("bomb", "pickled Python objects"),
        ("old bomb", "pickled Python objects"),
        ("foreign zip", "holds no model of a known format"),
        ("heads", "dim 16 is not a multiple of n_heads 3"),
        ("lacking", "lacks tensor norm.weight"),
        ("extra", "unknown tensor layers.0.attention.wq.bias"),
        ("shape", r"the shape of tensor layers.1.attention.wk.weight is \(16, 16\), but the settings imply \(8, 16\)"),
        ("no config", "it lacks config.json"),
        ("half a config", "config.json is truncated, or holds no JSON"),
        ("short safetensors", "model.safetensors is truncated"),
        ("gpt2", "describes a 'gpt2' model"),
        ("yarn", "rotary scaling 'yarn'"),
        ("no size", "lacks the field 'hidden_size'"),
        ("head_dim", "sets head_dim 5"),
        ("hf extra", "unknown tensor model.layers.0.mlp.router.weight"),
    ],
)
def test_damaged_files_get_a_one_sentence_message(tmp_path, kind, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        load_checkpoint(damaged_checkpoint(kind, tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("kind", ["bin", "pt", "ckpt", "hf"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, kind, number):
    model, path = build(), tmp_path / kind
    model.layers[1].feed_forward.w2.weight.data[3, 5] = number
    if kind in ("bin", "hf"):
        save_checkpoint(model, path, format={"bin": "llama2c"}.get(kind, kind))
    elif kind == "pt":
        torch.save(llama2c_pt(model), path)
    else:
        state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"state_dict": state, "hyper_parameters": TINY}, path)
    with pytest.raises(UserError, match=rf"{kind}: the tensor layers\.1\.feed_forward\.w2\.weight is not finite"):
        load_checkpoint(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"there is no checkpoint at {tmp_path / 'x'}")):
        load_checkpoint(tmp_path / "x")


# ---- sizes, and mutated files


@pytest.mark.parametrize("n_layers", [2**31 - 1, 10**6])
def test_a_bin_header_is_compared_with_the_file_before_anything_is_built(tmp_path, n_layers):
    (tmp_path / "a.bin").write_bytes(struct.pack("<7i", 64, 128, n_layers, 4, 4, 100, 16))
    with address_space(2**30), pytest.raises(ValueError, match=r"a\.bin is (truncated|not a checkpoint)"):
        load_checkpoint(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_layers": 10**9}, "tensors of 2 layers, but its settings say 1000000000"),
        ({"max_seq_len": 2**40}, "declares a context of"),
        ({"vocab_size": 2**40}, "the shape of tensor tok_embeddings.weight"),
        ({"dim": "x"}, "does not hold the settings of a Llama"),
    ],
    ids=["n_layers", "max_seq_len", "vocab_size", "text"],
)
def test_settings_of_a_pt_are_compared_with_its_tensors_before_anything_is_built(tmp_path, changes, words):
    torch.save(llama2c_pt(build(), **changes), tmp_path / "a.pt")
    with address_space(2**30), pytest.raises(ValueError, match=words):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_weights_are_floating_point_numbers(tmp_path, dtype):
    content = llama2c_pt(build())
    content["model"]["norm.weight"] = content["model"]["norm.weight"].to(dtype)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"tensor norm\.weight is of type {dtype}"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "shard",
    ["missing.safetensors", "model.safetensors.index.json", "../a.safetensors", "/etc/passwd", ".", "", "\0", 3],
)
def test_an_index_names_files_in_its_folder(tmp_path, shard):
    save_checkpoint(build(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks its weights file|has no weight_map"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("length", [0, 2**62, 10**8])
def test_a_safetensors_header_is_not_longer_than_the_file(tmp_path, length):
    save_checkpoint(build(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + bytes(10**5))
    with address_space(2**30), pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        load_checkpoint(tmp_path)


def mutated(kind, folder, rng):
    """Write a checkpoint with a random mutation and return its path."""
    if kind == "pt":
        content = mutate(llama2c_pt(build()), rng, values(), rng.choice((1, 1, 3)))
        torch.save(content, folder / "a.pt", _use_new_zipfile_serialization=rng.random() < 0.7)
        return folder / "a.pt"
    if kind == "bin":
        save_checkpoint(build(), folder / "a.bin", format="llama2c")
        (folder / "a.bin").write_bytes(flip((folder / "a.bin").read_bytes(), rng, 2, stop=28))
        return folder / "a.bin"
    save_checkpoint(build(), folder)
    if kind == "index":
        index = {"weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "b.safetensors")}
        (folder / "model.safetensors").rename(folder / "b.safetensors")
        content = json.dumps(mutate(index, rng, plain_values())).encode()
        (folder / "model.safetensors.index.json").write_bytes(damage(content, rng) if rng.random() < 0.5 else content)
        return folder
    content = (folder / "model.safetensors").read_bytes()
    length = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.dumps(mutate(json.loads(content[8:length]), rng, plain_values())).encode()
    other = struct.pack("<Q", len(header)) + header + content[length:]
    (folder / "model.safetensors").write_bytes(damage(content, rng) if rng.random() < 0.5 else other)
    return folder


@pytest.mark.parametrize("kind", ["pt", "bin", "index", "safetensors"])
@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_mutated_files_are_accepted_or_refused_in_one_sentence(kind, seed):
    with tempfile.TemporaryDirectory() as folder:
        assert outcome(load_checkpoint, mutated(kind, Path(folder), random.Random(seed))) in ("accepted", "refused")
