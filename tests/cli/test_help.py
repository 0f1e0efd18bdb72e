"""Every option of the command line itself is described: callbacks, `generate`, the shared options."""

import pytest

from zoo.cli.command_line import CALLBACKS
from zoo.private_apis.jsonargparse_api import class_options


@pytest.mark.parametrize("key", CALLBACKS)
def test_options_of_callbacks_are_described(key):
    options = class_options(CALLBACKS[key])
    assert options
    assert not [option.name for option in options if not option.help.strip()]


@pytest.mark.parametrize(("verb", "expected"), [("generate", "--max_new_tokens"), ("fit", "--output_dir")])
def test_options_of_verbs_are_described(verb, expected, capsys):
    from zoo.__main__ import main

    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert expected in shown
    assert "--mixed_precision.dtype" in shown
    assert "LlamaLM" in shown


def test_options_of_generate_are_described():
    from jsonargparse import ArgumentParser

    from zoo.cli.command_line import NOT_OPTIONS
    from zoo.cli.trainer import ZooTrainer
    from zoo.private_apis.jsonargparse_api import options

    parser = ArgumentParser()
    parser.add_method_arguments(ZooTrainer, "generate", skip=set(NOT_OPTIONS))
    assert not [option.name for option in options(parser) if not option.help.strip()]
