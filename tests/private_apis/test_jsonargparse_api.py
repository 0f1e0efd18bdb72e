"""jsonargparse's private members and the wording of its messages are as zoo.private_apis.jsonargparse_api expects."""

from dataclasses import dataclass
from typing import Literal

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.callbacks import Timer

from zoo.private_apis import jsonargparse_api as api


@dataclass
class Settings:
    """Settings.

    Args:
        width: number of columns.
    """

    width: int = 3


class Base:
    def __init__(self, depth: int, kind: Literal["a", "b"] | None = None) -> None:
        """A class.

        Args:
            depth: number of rows.
            kind: letter.
        """


class Sub(Base):
    """A subclass.

    Args:
        **settings: the fields of `Settings`.
    """

    def __init__(self, name: str = "x", **settings) -> None:
        self.settings = Settings(**settings)


class Failing(Base):
    def __init__(self) -> None:
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError as error:
            error.add_note("the bug itself")
            raise


@pytest.fixture
def parser():
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--steps", type=int | None, help="number of steps")
    parser.add_subclass_arguments(Base, "model", required=True)
    return parser


def message(parser, *words):
    with pytest.raises(Exception, match=r".") as error:
        parser.parse_args(words)
    return str(error.value)


def test_options(parser):
    verbs = ArgumentParser()
    verbs.add_subcommands().add_subcommand("fit", parser)
    described = {option.name: option.help for option in api.options(verbs)}
    assert described["--steps"] == "number of steps"
    assert "--config" in described


def test_class_options_include_those_behind_settings():
    assert api.class_options(Sub) == [
        ("--name", "", str, "x"),
        ("--width", "number of columns.", int, 3),
    ]
    assert [option[:2] for option in api.class_options(Base)] == [("--depth", "number of rows."), ("--kind", "letter.")]


def test_messages(parser):
    assert api.unknown_option(message(parser, "--model=Base", "--model.depth=1", "--step=1")) == "--step"
    assert api.unknown_setting(message(parser, "--model=Base", "--model.dept=1")) == "dept"
    assert api.unknown_class(message(parser, "--model=Bas")) == "Bas"
    assert api.missing_arguments(message(parser)) == ["model"]
    missing = message(parser, "--model=Base")
    assert api.missing_arguments(missing) == ["depth"]
    assert api.key_of(missing) == "model"
    assert api.one_sentence(message(parser, "--steps=x")) == "steps must be int or null, not 'x'"


def test_null_is_refused_where_the_type_excludes_it(parser):
    config = parser.parse_args(["--model=Sub", "--model.width=null", "--steps=null"])  # jsonargparse accepts both
    assert api.wrong_null(parser, config) is None
    message = api.wrong_null_argument(Sub, config.model.init_args)
    assert api.one_sentence(message) == "width must be int, not 'null'"
    assert api.wrong_null_argument(Sub, config.model.init_args, skip={"width"}) is None
    assert api.wrong_null_argument(Base, {"depth": 1, "kind": None}) is None
    plain = ArgumentParser()
    plain.add_argument("--early.mode", type=str, default="min")
    assert api.key_of(api.wrong_null(plain, plain.parse_object({"early": {"mode": None}}))) == "early.mode"


def test_the_original_error_of_a_constructor(parser):
    config = parser.parse_args(["--model=Failing"])
    with pytest.raises(ValueError, match="Does not validate") as error:
        parser.instantiate(config)
    original = api.original_error(error.value)
    assert (type(original), str(original)) == (ZeroDivisionError, "division by zero")
    assert api.original_error(KeyError("own")).args == ("own",)


def test_every_parser_uses_the_bounded_yaml_loader(parser, tmp_path):
    from jsonargparse import get_loader

    assert get_loader("yaml") is api.load_yaml
    path = tmp_path / "aliases.yaml"
    for text in ("steps: &a [*a]", "- " * 30_000, "steps: 1\nsteps: 2", "steps: !!int x"):
        path.write_text(text)
        with pytest.raises(ArgumentError):
            parser.parse_args([f"--config={path}"])
        with pytest.raises(ArgumentError):
            parser.parse_args([f"--steps={text}"])


@pytest.mark.parametrize(
    ("text", "value"), [("{data}", "{data}"), ("name:", "name:"), ("{a, b}", "{a, b}"), ("1:", "1:")]
)
def test_words_that_look_like_empty_mappings_are_texts(text, value):
    assert api.load_yaml(text) == value
    assert api.load_yaml("{a: null, b: 1}") == {"a": None, "b": 1}


def test_saved_settings_have_the_values_of_enums():
    parser = ArgumentParser()
    parser.add_subclass_arguments(Timer, "timer")
    config = parser.parse_args(["--timer=Timer", "--timer.duration=00:00:01:00"])
    assert yaml.safe_load(parser.dump(config))["timer"]["init_args"]["interval"] == "step"
