"""Every option of the command line is described; the help shows those of the command's model and data."""

import re
import typing

import pytest
import yaml

from zoo.cli.config_names import find_config
from zoo.cli.linked_arguments import linked_arguments
from zoo.cli.options import CALLBACKS
from zoo.cli.parser import is_internal
from zoo.private_apis.jsonargparse_api import class_options
from zoo.registry import DATA_MODULES, MODELS, load_class

RANGE = (
    r"at least|at most|\bfrom (-?\d|1 to)|above|below|positive|in [\[(]|divisor|divide|multiple|any finite|seed|"
    "probability"
)
NULL = r"[Dd]efault|null|None|otherwise|without|turns"  # what a null default means


@pytest.mark.parametrize("name", [*MODELS, *DATA_MODULES, *CALLBACKS])
def test_options_are_described_with_their_range_and_default(name):
    cls = CALLBACKS[name] if name in CALLBACKS else load_class(name)
    hidden = {*linked_arguments(cls), *getattr(cls, "internal_arguments", ())}
    options = class_options(cls)
    assert options
    for option in options:
        types = typing.get_args(option.type) or (option.type,)
        text = " ".join(option.help.split())
        assert text, f"{option.name} has no description"
        if option.name.lstrip("-").split(".")[0] in hidden:
            continue
        if int in types or float in types:
            assert re.search(RANGE, text), f"{option.name} has no range: {text}"
        if type(None) in types and option.default is None:
            assert re.search(NULL, text), f"{option.name} does not say what null means: {text}"


@pytest.mark.parametrize(("verb", "expected"), [("generate", "--max_new_tokens"), ("fit", "--output_dir")])
def test_options_of_verbs_are_described(verb, expected, capsys):
    from zoo.__main__ import main

    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: zoo {verb} ")
    assert expected in shown
    assert "--mixed_precision.dtype" in shown
    assert "zoo.llama.LlamaLM" in shown
    assert "--config NAME --help` also shows the options of the config's model" in shown
    for internal in ("ZooModule)", "zoo.training", "zoo.cli", "zoo.callbacks.progress"):
        assert internal not in shown.partition("known subclasses")[2]


def test_help_with_a_config_shows_the_options_of_its_model_and_data(capsys):
    from zoo.__main__ import main

    with pytest.raises(SystemExit):
        main(["fit", "--config=tiny/icr", "--model.d_mlp", "77", "--help"])
    shown = capsys.readouterr().out
    assert "ICRTransformer, the model of this command" in shown
    assert re.search(r"--model\.d_mlp D_MLP +width of the hidden layer in each MLP", shown)
    assert re.search(r"--data\.K K +number of pairs", shown)
    assert "--model.config" not in shown  # for Python only
    assert "--model.K" not in shown  # taken from the data
    values = yaml.safe_load(find_config("tiny/icr").read_text())
    shown = " ".join(shown.split())
    for name, value in {
        "--trainer.max_steps": values["trainer"]["max_steps"],
        "--trainer.log_every_n_steps": values["trainer"]["log_every_n_steps"],
        "--output_dir": values["output_dir"],
        "--model.n_layers": values["model"]["init_args"]["n_layers"],
        "--model.d_mlp": 77,  # of the command line
        "--data.D": values["data"]["init_args"]["D"],
    }.items():
        assert re.search(rf"{name} [A-Z].*?\(.*?default: {value}\)", shown), name


def test_internal_classes_are_those_that_a_command_does_not_name():
    assert is_internal("zoo.cli.run_folder.SaveConfig")
    assert is_internal("zoo.training.module.ZooModule")
    for public in ("zoo.llama.LlamaLM", "zoo.callbacks.Plots", "lightning.pytorch.callbacks.Timer", "mine.Model"):
        assert not is_internal(public)


def test_options_of_generate_are_described():
    from jsonargparse import ArgumentParser

    from zoo.cli.options import NOT_OPTIONS
    from zoo.cli.trainer import ZooTrainer
    from zoo.private_apis.jsonargparse_api import options

    parser = ArgumentParser()
    parser.add_method_arguments(ZooTrainer, "generate", skip=set(NOT_OPTIONS))
    assert not [option.name for option in options(parser) if not option.help.strip()]
