"""Default settings of RegressLM for a time limit, and settings that are given as 0, False or None."""

from itertools import combinations
from types import SimpleNamespace

import pytest

from tests.regress_lm.test_defaults import INTEGERS, TABLE, TEXTS
from zoo.datamodules.regression_settings import RegressionSettings
from zoo.regress_lm.defaults import choose_settings
from zoo.regress_lm.limited_time import choose_within_budget

SMALL = TABLE._replace(columns=10)


def chosen(statistics, rows=20_000, kind="thorough", copies=1000, **given):
    """Settings for a stub of the data that has time for so many rows and copies, and the seconds that it was given."""
    seconds = []

    def plan_synthetic_rows(most, limit):
        seconds.append(limit)
        return SimpleNamespace(kind=kind, rows=min(most, rows))

    def plan_copies(settings, most, limit):
        seconds.append(limit)
        return min(most, copies)

    data = SimpleNamespace(
        statistics=lambda: statistics, plan_synthetic_rows=plan_synthetic_rows, plan_copies=plan_copies
    )
    names = {name.replace("__", "."): value for name, value in given.items()}
    choices = choose_within_budget(data, names)
    settings = {choice.option: choice.value for choice in choices if choice.option not in names}
    assert len({choice.option for choice in choices}) == len(choices)
    return settings, seconds


def expected(statistics, **given):
    names = {name.replace("__", "."): value for name, value in given.items()}
    return {choice.option: choice.value for choice in choose_settings(statistics, names)}


def test_enough_time_changes_nothing():
    for statistics in (SMALL, TABLE, TEXTS, INTEGERS):
        assert chosen(statistics, budget=1000.0)[0] == chosen(statistics)[0] == expected(statistics)
    assert chosen(SMALL, budget=1000.0)[1] == [250.0]
    assert chosen(SMALL)[1] == []


def test_little_time_lets_a_fast_teacher_label_fewer_rows():
    settings, _ = chosen(SMALL, 5432, "fast", budget=60.0)
    assert settings == expected(SMALL, data__synthetic_rows=5400) | {
        "data.teacher": "fast",
        "data.synthetic_rows": 5400,
    }
    # Settings that are given stay.
    assert "data.synthetic_rows" not in chosen(SMALL, 5432, "fast", budget=60.0, data__synthetic_rows=20_000)[0]
    assert "data.teacher" not in chosen(SMALL, 5432, "fast", budget=60.0, data__teacher="thorough")[0]


def test_no_time_for_a_teacher_leaves_the_training_rows_with_copies():
    settings, seconds = chosen(SMALL, 0, "fast", copies=7, budget=8.0)
    assert settings.pop("data.synthetic_rows") == 0
    assert settings == expected(SMALL, data__synthetic_rows=0) | {"data.augment_copies": 7}
    assert seconds == [2.0, 2.0]
    settings, _ = chosen(SMALL, 0, "fast", copies=0, budget=8.0)
    assert settings["data.augment_copies"] == 0
    assert "data.jitter" not in settings


@pytest.mark.parametrize("statistics", [SMALL, TABLE, TABLE._replace(n_rows=30_000), TEXTS, INTEGERS], ids=range(5))
def test_settings_given_as_nothing_stay_and_contradict_no_choice(statistics):
    nothing = {
        **dict.fromkeys(["data__augment_copies", "data__synthetic_rows", "data__jitter", "data__target_jitter"], 0),
        **dict.fromkeys(["data__synonyms", "data__round_digits", "model__bow_features", "model__weights"], None),
        **dict.fromkeys(["data__power_tokens", "data__number_formats", "data__features"], False),
    }
    subsets = [{name: value} for name, value in nothing.items()]
    subsets += [{**one, **other} for one, other in combinations(subsets, 2)] + [nothing]
    for given in subsets:
        given["model__number_format"] = "ieee"  # its choice takes most of the time
        settings = expected(statistics, **given)
        assert not settings.keys() & {name.replace("__", ".") for name in given}
        settings |= {name.replace("__", "."): value for name, value in given.items()}
        # The data module accepts them together.
        arguments = {name[5:]: value for name, value in settings.items() if name.startswith("data.")}
        RegressionSettings(data="table.csv", **arguments)
