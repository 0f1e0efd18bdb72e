"""A row whose cells may be mappings: "article.title" is the cell "title" inside the cell "article"."""

from typing import Any


class NestedCells(dict[str, Any]):
    """The cells of a row by name, and those of nested mappings by their path with dots.

    A name with dots that the row itself has comes first. Iteration and length refer to the row.
    """

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or _find(self, name) is not _MISSING

    def __missing__(self, name: str) -> Any:
        if (cell := _find(self, name)) is _MISSING:
            raise KeyError(name)
        return cell

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default


_MISSING = object()


def _find(cells: dict[str, Any], path: object) -> Any:
    """The cell at a path with dots, or `_MISSING`."""
    if not isinstance(path, str) or "." not in path:
        return _MISSING
    cell: Any = cells
    for name in path.split("."):
        if not isinstance(cell, dict) or not dict.__contains__(cell, name):
            return _MISSING
        cell = dict.__getitem__(cell, name)
    return cell
