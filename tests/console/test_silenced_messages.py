"""Suggestions for mistyped names."""

import pytest

from zoo.cli.overview import nearest_verb
from zoo.console.messages import nearest

OPTIONS = ["--trainer", "--trainer.max_steps", "--trainer.logger", "--trainer.fast_dev_run", "--checkpoint.monitor"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("--trainer.max_stepz", "--trainer.max_steps"),
        ("--trainer.foo", None),  # neither its group nor another option of the group
        ("--trainer.max_steps", None),  # not what was typed
        ("--max_steps", "--trainer.max_steps"),
        ("--check.monitor", "--checkpoint.monitor"),
    ],
)
def test_nearest_option(name, expected):
    assert nearest(name, OPTIONS) == expected


@pytest.mark.parametrize(
    ("word", "verb"),
    [("trian", "fit"), ("train", "fit"), ("fitt", "fit"), ("eval", "validate"), ("predcit", "predict"), ("xyz", None)],
)
def test_nearest_verb(word, verb):
    assert nearest_verb(word) == verb
