"""`zoo export`: the command, safetensors folders in every verb, refusals by name, nothing is overwritten."""

import json
import math

import pytest
import torch

from tests.commands import complaint, fit
from zoo.__main__ import main
from zoo.errors import UserError
from zoo.export import export_module
from zoo.files.checkpoints import read_checkpoint, write_checkpoint
from zoo.files.safetensors_checkpoints import read_safetensors_checkpoint, write_safetensors_checkpoint
from zoo.icr import ICRTransformer, load_model
from zoo.llama import LlamaClassifier, LlamaLM, LlamaZeroShot, load_checkpoint, save_checkpoint
from zoo.mini_rlm import MiniRLM
from zoo.regress_lm import RegressLM
from zoo.revdeq import RevDEQLM
from zoo.tokenizers import load_tokenizer

SIZES = {"dim": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 32}


def export(*words):
    return main(["export", *map(str, words)])


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The run of `tests.commands.fit` as a safetensors folder."""
    folder = tmp_path_factory.mktemp("export") / "fox"
    assert export(f"--ckpt_path={run / 'best.ckpt'}", "--format=safetensors", folder) == 0
    return folder


def printed(capsys, *words):
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_safetensors_folder_in_every_verb(run, exported, tmp_path, capsys):
    assert {path.name for path in exported.iterdir()} == {"model.safetensors", "zoo.json"}
    capsys.readouterr()
    for verb, options in {
        "generate": ["--prompt=The quick", "--temperature=0", "--max_new_tokens=8"],
        "validate": ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", f"--output_dir={tmp_path}"],
    }.items():
        of_file = printed(capsys, verb, f"--ckpt_path={run / 'best.ckpt'}", *options)
        assert printed(capsys, verb, f"--ckpt_path={exported}", *options) == of_file
    network, tokens = load_checkpoint(exported), torch.arange(8)[None]
    module = LlamaLM.load_from_checkpoint(exported)
    assert torch.equal(network(tokens)[0], load_checkpoint(run / "best.ckpt")(tokens)[0])
    assert torch.equal(network(tokens)[0], module.eval().model(tokens)[0])
    assert module.tokenizer.encode("é") == load_tokenizer(exported).encode("é") == load_tokenizer("bytes").encode("é")


def test_training_starts_from_an_exports_weights_but_does_not_resume(exported, text_file, tmp_path, capsys):
    sentence = complaint(capsys, 1, "fit", f"--ckpt_path={exported}", "--config=tiny/llama")
    assert f"an export holds no state of the optimizer. To start from its weights, use --model.weights {exported}" in (
        sentence
    )
    assert fit(tmp_path / "more", text_file, f"--model.weights={exported}", max_steps=2) == 0


@pytest.mark.parametrize("format", ["hf", "safetensors", "llama2c"])
def test_nothing_is_overwritten(format, run, tmp_path, capsys):
    target = tmp_path / "there"
    target.write_text("mine")
    sentence = complaint(capsys, 1, "export", f"--ckpt_path={run / 'best.ckpt'}", f"--format={format}", target)
    assert f"{target} exists already" in sentence
    assert target.read_text() == "mine"
    sentence = complaint(capsys, 1, "export", f"--ckpt_path={run / 'best.ckpt'}", f"--format={format}", target / "x")
    assert f"{target} is not a folder" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--format=pt"], 2, "--format must be one of hf, llama2c, gguf, onnx, safetensors, not 'pt'"),
        (["--format=hf", "--form=x"], 2, "--form"),
        (["--format=hf", "--data.tokenizer=characters"], 1, "the tokenizer has 99 tokens, but the model"),
        (["--format=hf", "--model.base=x"], 1, "drop --model.base"),
        (["--format=llama2c"], 1, "tokenizer.bin holds only SentencePiece models"),
    ],
)
def test_refusals_of_the_command(words, code, sentence, run, tmp_path, capsys):
    words = [f"--ckpt_path={run / 'best.ckpt'}", *words, tmp_path / "new" / "out"]
    assert sentence in complaint(capsys, code, "export", *words)
    assert not list(tmp_path.iterdir())


def test_weights_alone(run, tmp_path, capsys):
    words = f"--ckpt_path={run / 'best.ckpt'}", "--data.tokenizer=none", "--format=llama2c"
    assert export(*words, tmp_path / "new" / "fox.bin") == 0
    assert "the export has no tokenizer" in capsys.readouterr().err
    tokens = torch.arange(8)[None]
    own = load_checkpoint(run / "best.ckpt")(tokens)[0]
    assert torch.equal(load_checkpoint(tmp_path / "new" / "fox.bin")(tokens)[0], own)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["fox.bin"]


NAMES = ["a", "b"]
OTHERS = {  # a module of each other class, and the formats that hold it
    "LlamaClassifier": (lambda: LlamaClassifier(NAMES, vocab_size=20, **SIZES), ["onnx", "safetensors"]),
    "LlamaZeroShot": (lambda: LlamaZeroShot(NAMES, vocab_size=20, **SIZES), ["hf", "llama2c", "gguf", "safetensors"]),
    "RevDEQLM": (
        lambda: RevDEQLM(vocab_size=20, hidden_size=16, num_heads=2, intermediate_size=16, max_position_embeddings=8),
        ["onnx", "safetensors"],
    ),
    "ICRTransformer": (
        lambda: ICRTransformer(D=2, K=3, d_model=8, d_mlp=8, n_heads=2, n_layers=1),
        ["onnx", "safetensors"],
    ),
    "MiniRLM": (lambda: MiniRLM(vocab_size=20, dim=8, hidden_dim=8), ["onnx", "safetensors"]),
    "RegressLM": (lambda: RegressLM(vocab_size=97, dim=16, n_heads=2, max_input_len=16), ["onnx", "safetensors"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_by_format(name, tmp_path):
    make, working = OTHERS[name]
    module = make().eval()
    for format in {"hf", "llama2c", "gguf", "onnx"} - {*working}:
        with pytest.raises(UserError, match=f"{name} cannot be exported to {format}, .* --format .*safetensors$"):
            export_module(module, format, tmp_path / format)
    export_module(module, "safetensors", tmp_path / "out")
    again = type(module).load_from_checkpoint(tmp_path / "out")
    assert dict(again.hparams) == dict(module.hparams)
    state = module.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    if name == "ICRTransformer":
        assert load_model(tmp_path / "out").config == module.config
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_low_rank_updates_are_merged(tmp_path):
    """A LoRA classifier needs its base; the export does not."""
    base = LlamaLM(vocab_size=20, **SIZES)
    save_checkpoint(base.model, tmp_path / "base")
    module = LlamaClassifier(NAMES, method="lora", weights=str(tmp_path / "base"), lora_rank=2, head_dropout=0.0).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.arange(12).view(2, 6)
    expected = module(tokens)
    export_module(module, "safetensors", tmp_path / "out")
    (tmp_path / "base").rename(tmp_path / "moved")
    again = LlamaClassifier.load_from_checkpoint(tmp_path / "out").eval()
    torch.testing.assert_close(again(tokens), expected, rtol=1e-5, atol=1e-6)
    assert (again.hparams["method"], again.hparams["base"]) == ("full", None)
    regress_lm = RegressLM(vocab_size=97, dim=16, n_heads=2, max_input_len=16, lora_rank=2)
    export_module(regress_lm, "safetensors", tmp_path / "regress")
    assert RegressLM.load_from_checkpoint(tmp_path / "regress").hparams["lora_rank"] == 0


def test_weights_saved_in_16_bits(run, tmp_path):
    checkpoint = read_checkpoint(run / "best.ckpt")
    checkpoint["state_dict"] = {name: tensor.half() for name, tensor in checkpoint["state_dict"].items()}
    write_checkpoint(checkpoint, tmp_path / "half.ckpt")
    for format in ("hf", "safetensors"):
        assert export(f"--ckpt_path={tmp_path / 'half.ckpt'}", f"--format={format}", tmp_path / format) == 0
        tokens = torch.arange(8)[None]
        expected = load_checkpoint(tmp_path / "half.ckpt")(tokens)[0]
        assert torch.equal(load_checkpoint(tmp_path / format)(tokens)[0], expected)


# ---- zoo.json


PLAIN = {
    "state_dict": {"b": torch.arange(3.0), "a": torch.ones(2, dtype=torch.float16)},
    "hyper_parameters": {"x": (1, [2.5, None, True]), "y": {"__tuple__": "text"}, "z": float("inf"), "n": math.nan},
    "more": {1: "one", None: {"t": torch.arange(2)}},
}


def test_values_are_read_as_they_were_written(tmp_path):
    write_safetensors_checkpoint(PLAIN, tmp_path)
    again = read_safetensors_checkpoint(tmp_path)  # the digest covers all values but their order
    assert again["hyper_parameters"]["x"] == PLAIN["hyper_parameters"]["x"]
    assert again["hyper_parameters"]["y"] == {"__tuple__": "text"}
    assert again["hyper_parameters"]["z"] == math.inf
    assert math.isnan(again["hyper_parameters"]["n"])
    assert again["more"][1] == "one"
    assert torch.equal(again["more"][None]["t"], torch.arange(2))
    assert {name: tensor.dtype for name, tensor in again["state_dict"].items()} == {
        "a": torch.float16, "b": torch.float32
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text[:-20], "is damaged"),
        (lambda text: text.replace('"one"', '"two"'), "differs from the digest"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "newer version of the zoo"),
        (lambda text: text.replace('"__float__": "inf"', '"__float__": "1e9"'), "a value in it"),
        (lambda text: text.replace('"__tensor__": "checkpoint:', '"__tensor__": "x'), "a value in it"),
        (lambda text: text.replace('"__tuple__": [', '"__tuple__": 3, "u": ['), "a value in it"),
        (lambda text: json.dumps({"version": 1, "checkpoint": []}), "holds no checkpoint"),
    ],
)
def test_damaged_folders_are_refused(change, sentence, tmp_path):
    write_safetensors_checkpoint(PLAIN, tmp_path)
    file = tmp_path / "zoo.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=sentence):
        read_safetensors_checkpoint(tmp_path)


def test_a_folder_without_its_tensors_is_refused(exported, tmp_path):
    (tmp_path / "zoo.json").write_bytes((exported / "zoo.json").read_bytes())
    with pytest.raises(UserError, match=r"without model\.safetensors: copy it again"):
        load_checkpoint(tmp_path)
