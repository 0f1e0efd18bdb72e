"""Weights by name: their files, what they reach, every verb with `zoo:NAME`, and training that starts from them."""

import hashlib
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import complaint
from zoo import weights
from zoo.__main__ import main
from zoo.cli.command_line import ZooCLI
from zoo.errors import UserError
from zoo.icr import load_model
from zoo.registry import MODELS, load_class
from zoo.regress_lm import Example, ExampleInput, RegressLM
from zoo.tokenizers import load_tokenizer
from zoo.weights import FOLDER, WEIGHTS, ProjectWeights, find_weights, weights_rows

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
GENERATED = [name for name, entry in WEIGHTS.items() if "WikiText" not in entry.data]
ON_WIKITEXT = [name for name, entry in WEIGHTS.items() if "WikiText" in entry.data]
FIRST_BATCHES = {
    "llama-wikitext2": 3.6441,
    "revdeq-wikitext2": 3.9148,
}  # val_loss of the first ten batches of WikiText-2


def test_files_are_small_and_those_that_were_published():
    sizes = []
    for entry in WEIGHTS.values():
        content = (FOLDER / entry.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry.sha256
        sizes.append(len(content))
        assert entry.command.startswith("zoo fit --config")
    assert max(sizes) <= 5e6
    assert sum(sizes) <= 25e6


def test_every_model_that_is_trained_has_weights():
    assert {entry.model for entry in WEIGHTS.values()} == MODELS.keys() - {"LlamaZeroShot"}


@pytest.mark.parametrize("name", WEIGHTS)
def test_files_hold_neither_training_state_nor_paths(name):
    content = torch.load(FOLDER / WEIGHTS[name].file, weights_only=True)
    assert content["zoo"]["model"].rpartition(".")[2] == WEIGHTS[name].model
    assert not {"optimizer_states", "lr_schedulers", "loops", "callbacks"} & content.keys()
    settings = [*content["hyper_parameters"].values(), *content["datamodule_hyper_parameters"].values()]
    assert not [value for value in settings if isinstance(value, str) and value.startswith("/")]


def test_the_list_names_size_metric_baseline_and_licence(capsys):
    assert main(["list", "--weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in WEIGHTS.items():
        (line,) = [line for line in lines if line.startswith(f"zoo:{name} ")]
        for cell in (entry.model, entry.metric[0], entry.baseline, entry.licence):
            assert cell in line
    assert len(lines) == 2 + len(weights_rows())
    for option in ("--weight", "--wights", "--weight=true"):
        name = option.partition("=")[0]
        said = complaint(capsys, 2, "list", option)
        assert said == f"zoo: there is no option {name}; did you mean --weights?"
    assert complaint(capsys, 2, "list", "--xyz") == "zoo: there is no option --xyz; `zoo list --help` shows all"


def test_each_card_describes_its_weights():
    cards = {name: Path(import_module(path.rpartition(".")[0]).__file__).parent for name, path in MODELS.items()}
    for name, entry in WEIGHTS.items():
        card = next(p for p in (cards[entry.model], *cards[entry.model].parents) if (p / "README.md").exists())
        section = (
            (card / "README.md").read_text(encoding="utf-8").partition("## Included weights\n")[2].partition("\n## ")[0]
        )
        for text in (f"`zoo:{name}`", f"{entry.metric[0]} {entry.metric[1]:.4g}", entry.baseline, entry.command):
            assert text in section
        assert re.search(rf"^zoo (generate|predict|fit) .*zoo:{name}\b", section, re.MULTILINE)  # a first command


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_list_names_the_export_formats(name, tmp_path, capsys):
    for format in ("hf", "llama2c", "gguf", "safetensors"):  # onnx takes long, see tests/export
        code = main(["export", f"--ckpt_path=zoo:{name}", f"--format={format}", str(tmp_path / format)])
        assert (code == 0) == (format in WEIGHTS[name].formats.split(", ")), capsys.readouterr().err


def test_a_path_is_unchanged_and_an_unknown_name_is_refused():
    assert find_weights("runs/best.ckpt") == "runs/best.ckpt"
    with pytest.raises(UserError, match=r"no weights zoo:regres-lm; did you mean zoo:regress-lm\?"):
        find_weights("zoo:regres-lm")


@pytest.mark.parametrize("name", WEIGHTS)
def test_models_load_weights_by_name_in_python(name):
    """They are those of the file, and an unknown name gets the known ones."""
    cls = load_class(WEIGHTS[name].model)
    expected = torch.load(find_weights(f"zoo:{name}"), weights_only=True)["state_dict"]
    loaded = [
        cls.load_from_checkpoint(f"zoo:{name}"),
        cls.load_from_checkpoint(Path(f"zoo:{name}"), map_location="cpu"),
    ]
    if WEIGHTS[name].model == "ICRTransformer":
        loaded.append(load_model(f"zoo:{name}"))
    for model in loaded:
        assert type(model) is cls
        assert all(torch.equal(model.state_dict()[key].cpu(), value) for key, value in expected.items())
    for load in (cls.load_from_checkpoint, load_model):
        with pytest.raises(UserError, match=r"the zoo has no weights zoo:x: give zoo:.*zoo:icr-linear, .*or a file"):
            load("zoo:x")


def test_a_damaged_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"weights")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    digest = hashlib.sha256(b"weights").hexdigest()
    entry = ProjectWeights("a.ckpt", digest, "zoo fit --config a", ("val_loss", 1.0), "LlamaLM", "a", "b")
    monkeypatch.setitem(WEIGHTS, "a", entry)
    assert find_weights("zoo:a") == str(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes(b"weight")
    with pytest.raises(UserError, match="is missing or not as it was published"):
        find_weights("zoo:a")


def test_resuming_from_weights_is_refused(capsys):
    said = complaint(capsys, 1, "fit", "--ckpt_path=zoo:regress-lm")
    assert "start from its weights with --config NAME --model.weights zoo:regress-lm" in said
    said = complaint(capsys, 1, "validate", "--ckpt_path=zoo:llama")
    assert "the zoo has no weights zoo:llama" in said


# ---- what they reach


@pytest.mark.parametrize("name", GENERATED)
def test_validate_reproduces_the_metric(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metric, value = WEIGHTS[name].metric
    options = ["--model.num_samples=1"] if name == "regress-lm" else []
    cli = ZooCLI(["validate", f"--ckpt_path=zoo:{name}", *options, *QUIET])
    assert cli.trainer.callback_metrics[metric].item() == pytest.approx(value, rel=1e-3)
    assert list(tmp_path.rglob("*.ckpt")) == []
    assert cli.trainer.default_root_dir.startswith("runs/")


@pytest.mark.parametrize("name", ON_WIKITEXT)
def test_validate_reproduces_the_loss_of_the_first_batches_of_wikitext(name, zoo_data, tmp_path):
    data = f"--data_dir={zoo_data / 'wikitext-2'}"
    argv = ["validate", f"--ckpt_path=zoo:{name}", data, "--trainer.limit_val_batches=10", f"--output_dir={tmp_path}"]
    assert ZooCLI([*argv, *QUIET]).trainer.callback_metrics["val_loss"].item() == pytest.approx(
        FIRST_BATCHES[name], abs=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_WIKITEXT)
def test_validate_reproduces_the_metric_on_wikitext(name, zoo_data, tmp_path):
    metric, value = WEIGHTS[name].metric
    data = f"--data_dir={zoo_data / 'wikitext-2'}"
    argv = ["validate", f"--ckpt_path=zoo:{name}", data, "--trainer.limit_val_batches=60", f"--output_dir={tmp_path}"]
    cli = ZooCLI([*argv, *QUIET])
    assert cli.trainer.callback_metrics[metric].item() == pytest.approx(value, rel=1e-3)


# ---- verbs


@pytest.mark.parametrize("option", ["--ckpt_path", "--model.weights"])
def test_generate_writes_text_at_once(option, capsys):
    argv = ["--prompt=The film was", "--max_new_tokens=12", "--temperature=0", "--trainer.accelerator=cpu"]
    assert main(["generate", f"{option}=zoo:llama-wikitext2", *argv]) == 0
    text = capsys.readouterr().out
    assert text.startswith("The film was ")
    assert len(text.split()) > 6
    assert "\ufffd" not in text


def test_predict_writes_no_file_next_to_the_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text,label\nthe film was good,positive\n")
    argv = ["predict", "--ckpt_path=zoo:llama-opinions", "--data_dir=rows.csv", *QUIET]
    assert main(argv) == 0
    assert len(list(tmp_path.glob("runs/*/*.jsonl"))) == 1
    assert sorted(path.suffix for path in FOLDER.iterdir() if path.is_file()) == [".ckpt"] * len(WEIGHTS) + [".py"] * 4


STARTS = {
    "mini-rlm": ["--config=tiny/mini_rlm"],
    "icr-linear": ["--config=tiny/icr_pool"],
    "llama-wikitext2": ["--config=tiny/llama"],
    "revdeq-wikitext2": ["--config=tiny/revdeq"],
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * n.startswith("revdeq")) for n in STARTS])
def test_fit_starts_from_the_weights_with_their_sizes_and_tokenizer(name, tmp_path, capsys):
    """The learning rate is 0, so that the checkpoint after a step has the weights it started from."""
    argv = [*STARTS[name], f"--model.weights=zoo:{name}", f"--output_dir={tmp_path / 'run'}", "--trainer.max_steps=1"]
    argv += ["--trainer.val_check_interval=1", "--trainer.limit_val_batches=1", "--model.lr=0", *QUIET]
    assert main(["fit", *argv]) == 0
    before, after = (
        torch.load(path, weights_only=True) for path in (FOLDER / WEIGHTS[name].file, tmp_path / "run" / "last.ckpt")
    )
    network = {key: tensor for key, tensor in before["state_dict"].items() if key.startswith("model.")}
    assert network
    for key, tensor in network.items():
        assert torch.equal(after["state_dict"][key], tensor.float()), key
    assert after["hyper_parameters"]["weights"] is None
    assert after.get("tokenizer") == before.get("tokenizer")


def test_weights_of_another_model_or_tokenizer_are_refused(capsys):
    for config, name, said in (
        ("tiny/mini_rlm", "regress-lm", "holds a RegressLM, not a MiniRLM"),
        ("tiny/icr", "mini-rlm", "holds a MiniRLM, not an ICRTransformer"),
    ):
        assert said in complaint(capsys, 1, "fit", f"--config={config}", f"--model.weights=zoo:{name}")
    argv = ["fit", "--config=tiny/llama", "--model.weights=zoo:llama-wikitext2", "--data.tokenizer=bytes"]
    assert "--data.tokenizer" in complaint(capsys, 1, *argv)
    argv = ["fit", "--config=tiny/icr", "--model.weights=zoo:icr-linear", "--data.D=5"]
    assert "the weights in zoo:icr-linear have D 4, but the data 5" in complaint(capsys, 1, *argv)


def test_a_tokenizer_is_found_by_the_name_of_its_weights():
    tokenizer = load_tokenizer("zoo:llama-wikitext2")
    assert tokenizer.vocab_size == 2048
    assert tokenizer.decode(tokenizer.encode("The film was released in 1999 .")) == "The film was released in 1999 ."


def test_fine_tuning_learns_a_new_table_in_a_few_epochs():
    """160 rows of a table with other columns than those of the pretraining: from scratch, six epochs learn nothing."""
    random, n = np.random.default_rng(0), 300
    width, depth, colour = random.uniform(0, 9, n), random.lognormal(3, 1, n), random.choice(["red", "blue"], n)
    y = 2 * width + 5 * np.log(depth) + 6 * (colour == "red")
    texts = [f"width: {w:.3f}, depth: {d:.4g}, colour: {c}" for w, d, c in zip(width, depth, colour, strict=True)]
    examples = [Example(text, float(target)) for text, target in zip(texts, y, strict=True)]
    errors = {}
    for name, path in (("default", "zoo:regress-lm"), ("scratch", None)):
        model = RegressLM.from_default(weights=path)
        model.fine_tune(examples[:160], examples[160:200], max_epochs=6, batch_size=16, progress=False)
        samples = model.sample([ExampleInput(text) for text in texts[200:]], 32, seed=0)
        errors[name] = np.abs(np.median(samples, axis=1) - y[200:]).mean()
    median_error = np.abs(np.median(y[:160]) - y[200:]).mean()  # 6.2
    assert errors["default"] < 0.6 * median_error
    assert errors["scratch"] > 0.9 * median_error
