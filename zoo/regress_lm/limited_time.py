"""Default settings of RegressLM for a run of limited time: those of `defaults`, with data that is prepared in time."""

from collections.abc import Mapping
from typing import Any

from zoo.regress_lm.defaults import choose_settings
from zoo.training.choices import PREPARATION_SHARE, Choice, rounded_down, settings_of

CHANGES = ("synonyms", "background", "number_formats", "jitter")


def choose_within_budget(data: Any, given: Mapping[str, Any]) -> list[Choice]:
    """The settings of `choose_settings` for the data, with as many synthetic rows and copies as there is time for.

    Args:
        data: a data module with `statistics()` and, where it can limit its preparation, `plan_synthetic_rows()` and
            `plan_copies()`.
        given: the settings that are already decided, by option; "budget" is the time that is left in seconds, of which
            a quarter is for the preparation of the data. Without it, time does not matter.
    """
    statistics = data.statistics()
    choices = choose_settings(statistics, given)
    if "budget" not in given or not hasattr(data, "plan_synthetic_rows"):
        return choices
    seconds = given["budget"] * PREPARATION_SHARE
    planned: dict[str, Any] = {}

    def plan(option: str, value: Any, needed: Any) -> None:
        if option not in given and value != needed:
            planned[option] = value

    settings = settings_of(choices) | dict(given)
    rows = settings.get("data.synthetic_rows")
    if rows and not {"data.synthetic_rows", "data.teacher"} <= given.keys():
        teacher = data.plan_synthetic_rows(rows, seconds)
        plan("data.synthetic_rows", rounded_down(teacher.rows), rows)
        if teacher.rows:
            plan("data.teacher", teacher.kind, "thorough")
        choices = choose_settings(statistics, dict(given) | planned)
        settings = settings_of(choices) | dict(given)
    if copies := settings.get("data.augment_copies"):
        changes = {name: settings[f"data.{name}"] for name in CHANGES if f"data.{name}" in settings}
        n_copies = data.plan_copies(changes, copies, seconds)
        plan("data.augment_copies", n_copies, copies)
        # Without copies there is nothing to change.
        if not n_copies and "data.augment_copies" not in given:
            choices = choose_settings(statistics, dict(given) | planned)
    reason = f"{seconds:.0f} s are for preparing the data"
    changed = [Choice(option, value, reason) for option, value in planned.items()]
    return [*changed, *(choice for choice in choices if choice.option not in planned)]
