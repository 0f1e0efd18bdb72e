"""A row whose cells may be mappings: "article.title" is the cell "title" inside the cell "article"."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from zoo.errors import UserError


class NestedCells(dict[str, Any]):
    """The cells of a row by name, and those of nested mappings by their path with dots.

    Names may contain dots themselves: "a.b.c" is the cell "c" in "a.b", the cell "b.c" in "a", and so on. Iteration and
    length refer to the row.

    Raises:
        UserError: several cells with different values have the path that is read.
    """

    def __contains__(self, name: object) -> bool:
        return next(_find(self, name), None) is not None

    def __getitem__(self, name: str) -> Any:
        found = list(_find(self, name))
        if not found:
            raise KeyError(name)
        for other in found[1:]:
            if other[1] != found[0][1]:
                first, second = (" in ".join(map(repr, reversed(keys))) for keys in (found[0][0], other[0]))
                raise UserError(f"its {name!r} may be {first} or {second}, which differ: rename one of them")
        return found[0][1]

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default


def with_nested(cells: dict[str, Any]) -> dict[str, Any]:
    """The cells of a row, as `NestedCells` if one of them is a mapping."""
    return NestedCells(cells) if any(isinstance(cell, dict) for cell in cells.values()) else cells


def columns_without(names: Sequence[str], rows: Sequence[Mapping[str, Any]], paths: Collection[str]) -> list[str]:
    """The columns without the cells at some paths: a column that contains such a cell is replaced by its other cells.

    Without "result.loss" the columns "model" and "result" of rows {"model": ..., "result": {"loss": 1, "size": 2}} are
    "model" and "result.size".

    Args:
        names: names of the columns.
        rows: cells by name, among them the mappings that are columns of several cells.
        paths: names of columns and paths of nested cells.
    """
    columns: dict[str, None] = {}
    for name in names:
        inner = [path[len(name) + 1 :] for path in paths if path.startswith(f"{name}.")]
        cells = [row[name] for row in rows if inner and isinstance(row.get(name), dict)]
        if name in paths:
            continue
        if any(contains_path(cell, path) for cell in cells for path in inner):
            keys = list(dict.fromkeys(key for cell in cells for key in cell))
            columns |= dict.fromkeys(f"{name}.{rest}" for rest in columns_without(keys, cells, inner))
        else:
            columns[name] = None
    return list(columns)


def list_paths(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns by name, and in place of those that are mappings the paths of the cells in them."""
    paths: dict[str, None] = {}
    for name in names:
        cells = [row[name] for row in rows if isinstance(row.get(name), dict)]
        keys = list(dict.fromkeys(key for cell in cells for key in cell))
        paths |= dict.fromkeys(f"{name}.{rest}" for rest in list_paths(keys, cells)) if keys else {name: None}
    return list(paths)


def contains_path(cell: Any, path: str) -> bool:
    """Whether a cell is a mapping with a cell at a path with dots."""
    return isinstance(cell, dict) and next(_find(cell, path), None) is not None


def _find(cells: dict[str, Any], path: object) -> Iterator[tuple[list[str], Any]]:
    """Each cell at a path with dots, after the keys that lead to it; keys of the mapping itself come first."""
    if not isinstance(path, str):
        return
    if dict.__contains__(cells, path):
        yield [path], dict.__getitem__(cells, path)
    end = path.rfind(".")
    while end >= 0:
        name, rest = path[:end], path[end + 1 :]
        if dict.__contains__(cells, name) and isinstance(cell := dict.__getitem__(cells, name), dict):
            yield from (([name, *keys], value) for keys, value in _find(cell, rest))
        end = path.rfind(".", 0, end)
