"""Paths and settings next to weights: URLs, zoo:NAME, weights of another model, settings that contradict them."""

import json

import fsspec
import pytest
import torch
import yaml

from tests.commands import TINY, complaint
from zoo.__main__ import main
from zoo.cli.trainer import ZooTrainer
from zoo.errors import UserError
from zoo.export import export_module
from zoo.export.tokenizer_json import tokenizer_files
from zoo.files.remote_files import is_copy
from zoo.llama import LlamaLM, load_checkpoint, save_checkpoint
from zoo.tokenizers import load_tokenizer
from zoo.training.initial_weights import tokenizer_of_weights
from zoo.weights import find_weights
from zoo.weights.downloads import downloaded

FIT = ["fit", "--config", TINY, "--output_dir={tmp}/run"]
WEIGHTS = "--model.weights=zoo:llama-wikitext2"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["export", "--ckpt_path=zoo:llama-wikitext2", "--format=hf", "s3://b/x"], "the destination s3://b/x is a URL"),
        (["fit", "--config", TINY, "--output_dir=s3://b/x"], "--output_dir s3://b/x is a URL, and files are"),
        (["generate", "--ckpt_path=zoo:"], "zoo: names no weights: give zoo:regress-lm"),
        (["generate", "--ckpt_path=zoo:../x"], "the zoo has no weights zoo:../x: give zoo:regress-lm"),
        ([*FIT, "--model.weights=zoo:revdeq-wikitext2"], "holds a RevDEQLM, not a Llama: give weights of a Llama"),
        ([*FIT, WEIGHTS, "--model.dim=64"], "--model.dim 64 contradicts the weights in zoo:llama-wikitext2, w"),
        (["fit", "--config=tiny/mini_rlm", "--output_dir={tmp}", "--model.weights=zoo:mini-rlm", "--model.dim=48"],
         "--model.dim 48 contradicts the weights in zoo:mini-rlm"),
        (["predict", "--ckpt_path=zoo:regress-lm", "--data_dir=x.csv"], "zoo fit --config regress_lm --model.weights"),
    ],
    ids=lambda value: " ".join(map(str, value))[-40:] if isinstance(value, list) else None,
)  # fmt: skip
def test_wrong_paths_and_settings_are_refused(argv, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in complaint(capsys, 1, *(str(word).format(tmp=tmp_path) for word in argv))
    assert not list(tmp_path.iterdir())


def test_names_outside_the_cache_are_no_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    (tmp_path / "cache" / "zoo_pull.json").write_text('{"files": {}, "entry": "."}')
    for name in ("..", "../x", "", ".", "/etc", "a/../.."):
        assert downloaded(name) is None
        with pytest.raises(UserError):
            find_weights(f"zoo:{name}")


def test_a_tokenizer_is_read_from_a_url_and_next_to_remote_weights(run, tmp_path):
    files = fsspec.filesystem("memory")
    save_checkpoint(load_checkpoint(run / "best.ckpt"), tmp_path / "llama.bin", format="llama2c")
    files.pipe("/weights/llama.bin", (tmp_path / "llama.bin").read_bytes())
    files.pipe("/weights/best.ckpt", (run / "best.ckpt").read_bytes())
    assert tokenizer_of_weights("memory://weights/llama.bin") is None
    files.pipe("/weights/tokenizer.model", b"content")
    assert (path := tokenizer_of_weights("memory://weights/llama.bin")) is not None
    assert path.endswith("tokenizer.model")
    assert is_copy(path)
    assert tokenizer_of_weights(url := "memory://weights/best.ckpt") == url
    assert load_tokenizer(url).encode("The fox") == load_tokenizer(run / "best.ckpt").encode("The fox")
    files.rm("/weights", recursive=True)


def test_the_saved_config_has_the_sizes_of_the_weights(run, text_file, tmp_path):
    weights = ["--model.weights", run / "best.ckpt", "--data.tokenizer", run / "best.ckpt", "--data.seq_len=16"]
    few = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--samples.max_new_tokens=4"]
    argv = ["fit", "--config", TINY, *weights, *few, f"--data_dir={text_file}", f"--output_dir={tmp_path}/run"]
    assert main(list(map(str, argv))) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["init_args"]
    original = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    stored = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["hyper_parameters"]
    for name in ("dim", "n_layers", "n_heads", "max_seq_len"):
        assert saved[name] == stored[name] == original[name]


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory):
    """The tokenizer of bytes as a tokenizer.json, with the ids of two letters exchanged."""
    content = json.loads(tokenizer_files(load_tokenizer("bytes"))["tokenizer.json"])
    vocabulary = content["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    path = tmp_path_factory.mktemp("other") / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def exported(other_tokenizer):
    """The folder of an exported model with that tokenizer."""
    tokenizer = load_tokenizer(other_tokenizer)
    module = LlamaLM(vocab_size=257, dim=32, n_layers=1, n_heads=2, max_seq_len=32, tokenizer=tokenizer)
    export_module(module, "safetensors", other_tokenizer.with_name("model"))
    return other_tokenizer.with_name("model")


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--config", TINY, "--output_dir={tmp}/run", "--model.weights={exported}", "--data.tokenizer=bytes"],
        ["generate", "--ckpt_path={run}/best.ckpt", "--prompt=The fox", "--data.tokenizer={other}"],
        ["export", "--ckpt_path={run}/best.ckpt", "--format=hf", "{tmp}/hf", "--data.tokenizer={other}"],
    ],
    ids=lambda words: words[0],
)
def test_a_tokenizer_with_other_ids_is_refused(words, run, exported, other_tokenizer, tmp_path, capsys):
    paths = {"run": run, "exported": exported, "other": other_tokenizer, "tmp": tmp_path}
    sentence = complaint(capsys, 1, *(str(word).format(**paths) for word in words))
    assert "is not that of the weights in" in sentence
    assert "so that their ids mean other words: set --data.tokenizer" in sentence
    assert not list(tmp_path.iterdir())


def test_generate_uses_the_tokenizer_of_the_checkpoint_for_a_model_without_one(run):
    module = LlamaLM.load_from_checkpoint(run / "best.ckpt")
    module.tokenizer = None
    trainer = ZooTrainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    options = {"prompt": "The fox", "max_new_tokens": 1, "temperature": 0.0}
    [text] = trainer.generate(module, None, str(run / "best.ckpt"), **options)
    assert text.startswith("The fox")
    assert module.tokenizer.decode(module.tokenizer.encode("The fox")) == "The fox"


def test_initial_weights_of_an_export_bring_their_tokenizer(exported, text_file, tmp_path):
    few = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--samples.max_new_tokens=0", "--data.seq_len=16"]
    argv = ["fit", f"--config={TINY}", f"--data_dir={text_file}", f"--output_dir={tmp_path}/run", *few]
    assert main([*argv, f"--model.weights={exported}"]) == 0
    assert tokenizer_of_weights(str(exported)) == str(exported)
    assert load_tokenizer(tmp_path / "run" / "last.ckpt").encode("te") == load_tokenizer("bytes").encode("et")


def test_the_tokenizer_next_to_weights_by_torch_save(tmp_path):
    torch.save({"model_args": {"vocab_size": 512}, "model": {}}, tmp_path / "stories.pt")
    assert tokenizer_of_weights(str(tmp_path / "stories.pt")) is None
    (tmp_path / "tok512.bin").write_bytes(b"content")
    assert tokenizer_of_weights(str(tmp_path / "stories.pt")) == str(tmp_path / "tok512.bin")
