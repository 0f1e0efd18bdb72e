"""Tests that every registered model must pass, with its config in configs/tiny. Registering a model is enough.

Train, resume to the same bits, validate, predict from the checkpoint alone, load in Python, generate.
"""

import inspect
import json
import os
import signal

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from zoo.__main__ import main
from zoo.cli.command_line import ZooCLI
from zoo.cli.config_names import config_files
from zoo.console.exit_codes import INTERRUPTED, run_command
from zoo.private_apis.jsonargparse_api import class_options
from zoo.registry import DATA_MODULES, MODELS, load_all, load_class
from zoo.training.language_model import LanguageModel

STEPS = 4
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
# Steps of two batches, in epochs of two steps: the run is limited by steps, by epochs, or by both.
LIMITS = [(STEPS, -1), (-1, 2), (STEPS, 2)]
FAST = ["--trainer.accumulate_grad_batches=2", "--trainer.limit_train_batches=4", "--trainer.val_check_interval=2",
        "--trainer.limit_val_batches=2",
        "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1",
        "--samples.max_new_tokens=2", *QUIET]  # fmt: skip
NO_CONFIG_NEEDED = {"LlamaZeroShot"}  # it is not trained


def tiny_configs():
    """Registered model -> its first config in configs/tiny."""
    configs = {}
    for name, path in config_files().items():
        if name.startswith("tiny/"):
            configs.setdefault(yaml.safe_load(path.read_text())["model"]["class_path"], name)
    return configs


TINY = tiny_configs()


def fast(name: str) -> list[str]:
    """Options of a run of four steps; different models have different limits."""
    max_steps, max_epochs = LIMITS[sorted(TINY).index(name) % len(LIMITS)]
    return [*FAST, f"--trainer.max_steps={max_steps}", f"--trainer.max_epochs={max_epochs}"]


class InterruptAfter(Callback):
    """Ctrl-C after half of the steps, before the validation at the end of the first epoch."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == STEPS // 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_every_model_has_a_tiny_config():
    assert set(MODELS) - set(TINY) <= NO_CONFIG_NEEDED


@pytest.fixture(scope="module", params=sorted(TINY))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def run(name, tmp_path_factory):
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("every") / name
    assert main(["fit", f"--config={TINY[name]}", f"--output_dir={folder}", *fast(name)]) == 0
    return folder


def test_fit_leaves_a_run(run):
    assert {"best.ckpt", "last.ckpt", "config.yaml"} <= {path.name for path in run.iterdir()}
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == STEPS


def test_a_resumed_run_has_the_same_bits(name, run, tmp_path):
    argv = ["fit", f"--config={TINY[name]}", f"--output_dir={tmp_path}", *fast(name)]
    assert run_command(lambda: ZooCLI(argv, callbacks=[InterruptAfter()])) == INTERRUPTED
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == STEPS // 2
    assert main([*argv, "--ckpt_path=last"]) == 0
    for file in ("last.ckpt", "best.ckpt"):  # the validation at the step of the stop runs on resume
        expected, resumed = (torch.load(f / file, weights_only=True) for f in (run, tmp_path))
        assert resumed["global_step"] == expected["global_step"]
        assert expected["state_dict"].keys() == resumed["state_dict"].keys()
        for key, tensor in expected["state_dict"].items():
            assert torch.equal(tensor, resumed["state_dict"][key]), key
        assert [g["lr"] for o in expected["optimizer_states"] for g in o["param_groups"]] == [
            g["lr"] for o in resumed["optimizer_states"] for g in o["param_groups"]
        ]
        scores = [of["callbacks"]["Checkpoint"]["best_score"] for of in (expected, resumed)]
        assert scores[0] == scores[1]


def test_validate_from_the_checkpoint_alone(run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["validate", f"--ckpt_path={run / 'best.ckpt'}", "--trainer.limit_val_batches=2", *QUIET]) == 0
    assert "val_" in capsys.readouterr().out


def test_predict_from_the_checkpoint_alone(name, run, tmp_path):
    path = tmp_path / "predictions.jsonl"
    argv = ["predict", f"--ckpt_path={run / 'best.ckpt'}", f"--predictions.path={path}", *QUIET]
    more = []
    if name == "ICRTransformer":  # its data are drawn: a prompt to predict is a file
        (tmp_path / "prompts.jsonl").write_text(
            json.dumps({"x_context": [[0.1] * 4] * 3, "y_context": [0.1] * 3, "x_query": [[0.2] * 4]}) + "\n"
        )
        more = [f"--data_dir={tmp_path / 'prompts.jsonl'}"]
    assert main([*argv, "--trainer.limit_predict_batches=2", *more]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows
    assert all(isinstance(row, dict) for row in rows)


def test_load_from_checkpoint_in_python(name, run):
    cls = load_class(name)
    module = cls.load_from_checkpoint(run / "best.ckpt")
    stored = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    assert type(module) is cls
    assert all(torch.equal(tensor, stored[key]) for key, tensor in module.state_dict().items())


def test_language_models_generate(name, run, capsys):
    if not issubclass(load_class(name), LanguageModel):
        pytest.skip("not a language model")
    argv = ["generate", f"--ckpt_path={run / 'best.ckpt'}", "--prompt=The ", "--max_new_tokens=4", "--temperature=0"]
    texts = []
    for _ in range(2):
        assert main(argv) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("The ")


# ---- documentation


@pytest.mark.parametrize("name", [*MODELS, *DATA_MODULES])
def test_every_option_is_described(name):
    """`zoo fit --help` shows each description alone."""
    undescribed = [option.name for option in class_options(load_class(name)) if not option.help.strip()]
    assert not undescribed


def test_every_class_and_renamed_argument_is_valid():
    for name, cls in load_all().items():
        assert inspect.getdoc(cls), name
        options = {option.name.removeprefix("--") for option in class_options(cls)}
        for old, new in getattr(cls, "renamed_arguments", {}).items():
            assert old not in options, f"{name}: {old} is both an option and a renamed one"
            assert new in options or not new.isidentifier(), f"{name}: {old} is renamed to {new}, which is no option"
