"""A line on standard error names each setting with which the weights of a checkpoint are another function."""

import pytest

from tests.commands import TEXT, fit
from zoo.__main__ import main
from zoo.files.checkpoints import read_checkpoint
from zoo.llama import LlamaLM
from zoo.registry import MODELS, load_class
from zoo.training.fixed_arguments import report_changed
from zoo.weights import FOLDER, WEIGHTS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "fox.txt").write_text(TEXT)
    assert not fit(folder / "run", folder / "fox.txt", max_steps=2)
    return folder


def notices(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "trained with" in line]


def test_validate_reports_changed_settings_of_the_network_and_of_the_tokens(run, capsys):
    options = ["--model.n_heads=4", "--model.rope_theta=5000", "--model.dropout=0.3", "--data.join_rows=true"]
    command = ["validate", f"--ckpt_path={run / 'run' / 'last.ckpt'}", "--trainer.limit_val_batches=1"]
    assert not main([*command, *options])
    assert notices(capsys) == [
        "zoo: --data.join_rows is True, but the model was trained with False",
        "zoo: the model's setting n_heads is 4, but its weights were trained with 2",
        "zoo: the model's setting rope_theta is 5000.0, but its weights were trained with 10000.0",
    ]
    assert not main([*command, "--model.n_heads=2", "--data.batch_size=2", "--data.join_rows=false"])
    assert notices(capsys) == []


def test_generate_reports_changed_settings(run, capsys):
    command = ["generate", f"--ckpt_path={run / 'run' / 'last.ckpt'}", "--prompt=The", "--max_new_tokens=2"]
    assert not main([*command, "--model.norm_eps=0.1", "--temperature=0.5"])
    assert notices(capsys) == ["zoo: the model's setting norm_eps is 0.1, but its weights were trained with 1e-05"]


def test_loading_in_python_reports_changed_settings(capsys):
    path = FOLDER / "llama-wikitext2.ckpt"
    LlamaLM.load_from_checkpoint(path)
    assert notices(capsys) == []
    LlamaLM.load_from_checkpoint(path, n_heads=8, dropout=0.1)
    assert notices(capsys) == ["zoo: the model's setting n_heads is 8, but its weights were trained with 4"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_reported_setting_is_stored_in_checkpoints(name):
    cls = load_class(WEIGHTS[name].model)
    stored = read_checkpoint(FOLDER / WEIGHTS[name].file)["hyper_parameters"]
    assert cls.network_arguments
    assert set(cls.network_arguments) <= stored.keys()


def test_lists_and_tuples_are_equal(capsys):
    report_changed({"a": (1, 2), "b": 1, "c": None}, {"a": [1, 2], "b": 1.0, "d": 3}, ("a", "b", "c", "d"))
    assert capsys.readouterr().err == ""


def test_every_model_names_settings():
    assert all(load_class(name).network_arguments for name in MODELS)
