"""Which columns of a table hold the texts and the labels, where the command does not say."""

from collections.abc import Mapping

from zoo.datamodules.row_text import list_columns
from zoo.datamodules.sources.table_rows import Table
from zoo.errors import UserError

TEXT, LABEL = "text", "label"  # usual names, and those of `label ||| text` files
_INDEX = ("", "unnamed: 0")  # names of the row numbers that pandas writes


def find_columns(tables: Mapping[str, list[Table]], text: str | None, label: str | None) -> tuple[str, str]:
    """Names of the columns of the texts and of the labels.

    A column that is not given is the one called "text" or "label", in any case. In a table of two columns the other
    one follows; without such names the labels are the column with fewer different values. A column of row numbers does
    not count.

    Args:
        tables: the tables of each split; those of the training split decide.
        text: column of the texts; None if it is not given.
        label: column of the labels; None if it is not given.

    Raises:
        UserError: several columns are possible.
    """
    if text is not None and label is not None:
        return text, label
    table = (tables.get("train") or next(iter(tables.values())))[0]
    names = [name for name in table.names if name.strip().casefold() not in _INDEX]
    usual = {name.strip().casefold(): name for name in names}
    text = text or (usual.get(TEXT) if usual.get(TEXT) != label else None)
    label = label or (usual.get(LABEL) if usual.get(LABEL) != text else None)
    if text is None and label is None and len(names) == 2:
        label = _with_fewer_values(table, names)
    if text is None:
        text = _other(names, label) if label else None
    if label is None:  # a table of texts alone: the label column is named by other files
        label = _other(names, text) or (LABEL if len(names) == 1 else None)
    if text is None or label is None:
        unknown = [(TEXT, "texts")] * (text is None) + [(LABEL, "labels")] * (label is None)
        options = " and ".join(f"--data.{name}_column" for name, _ in unknown)
        what = " and of the ".join(noun for _, noun in unknown)
        raise UserError(f"{table.name}: the column of the {what} is unknown: set {options} to {_choices(names)}")
    return text, label


def _choices(names: list[str]) -> str:
    return f"one of {list_columns(names)}" if names else "a column"


def _other(names: list[str], name: str | None) -> str | None:
    """The other one of two columns; None if there are not two."""
    others = [other for other in names if other != name]
    return others[0] if name is not None and len(names) == 2 and len(others) == 1 else None


def _with_fewer_values(table: Table, names: list[str]) -> str | None:
    """The one of two columns that has fewer different values, or shorter ones; None if they are equal."""
    values = [[str(cells.get(name)) for _, cells in table.rows] for name in names]
    keys = [(len(set(column)), sum(map(len, column))) for column in values]
    return None if keys[0] == keys[1] else names[keys.index(min(keys))]
