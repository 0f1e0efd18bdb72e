"""Old names of options: refused with the new name, wherever they are given.

A module, data or callback class declares `renamed_arguments: ClassVar[dict[str, str]]`, old name -> new name. A value
that is not an identifier is a sentence about an option that no longer exists; it may be empty.
"""

from collections.abc import Iterable, Mapping

from zoo.cli.arguments import option_parts

RENAMED_GROUPS = {"half": "mixed_precision"}  # top-level keys


def renamed_arguments(cls: type | None) -> dict[str, str]:
    """The renamed arguments of a class and its bases; the class's own come last and win."""
    renamed: dict[str, str] = {}
    for base in reversed(cls.__mro__ if cls else ()):
        renamed |= vars(base).get("renamed_arguments", {})
    return renamed


def find_renamed(keys: Iterable[tuple[str, str]], classes: Mapping[str, type | None]) -> str | None:
    """A sentence about the first key that was renamed or removed; None if there is none.

    Args:
        keys: (dotted key, its source: a file, or "" for the command line).
        classes: top-level key -> the class whose arguments are below it.
    """
    for key, source in keys:
        group, *rest = option_parts(key)
        new_group = RENAMED_GROUPS.get(group, group)
        name = rest[0] if rest else ""
        new_name = renamed_arguments(classes.get(new_group)).get(name, name)
        if (group, name) == (new_group, new_name):
            continue
        dashes, where = ("", f"{source}: ") if source else ("--", "")
        old = dashes + ".".join([group, *rest])
        if name and not new_name.isidentifier():
            return f"{where}{old} no longer exists" + (f": {new_name}" if new_name else "")
        return f"{where}{old} is now called {dashes}{'.'.join([new_group, *filter(None, [new_name]), *rest[1:]])}"
    return None
