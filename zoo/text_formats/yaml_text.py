"""YAML: one bounded reader for configs, for values on the command line and for data.

PyYAML's C parser overflows the stack on deep nesting, expands aliases without limit ("billion laughs"), keeps the last
of repeated keys, and lets ValueError out of long numbers. Here a first pass over the events bounds the depth and what
aliases add, before anything is constructed. All errors are `yaml.YAMLError`.
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml

from zoo.text_formats.json_text import MAX_DIGITS, shorten

MAX_DEPTH = 100  # of nested lists and mappings
MAX_ALIASED = 100_000  # entries that aliases add

_PARSER: Any = getattr(yaml, "CLoader", yaml.Loader)
_TEXT = "tag:yaml.org,2002:str"
_INTEGER, _FLOAT, _TIME = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))


def parse_settings(text: str) -> Any:
    """The value of a YAML text whose words are typed: `3` is an integer, `1e-3` a float, `no` is false, `~` is null.

    Numbers are decimal, as on the command line: 010 is not octal, 1:30 is not 90, and dates are texts.

    Raises:
        yaml.YAMLError: it is not YAML, exceeds the limits, has a repeated key or a tag other than !!str.
    """
    return _parse(text, _SettingsLoader)


def parse_texts(text: str) -> Any:
    """The value of a YAML text in which every word stays text: neither `no` nor `12:30` has another meaning.

    Raises:
        yaml.YAMLError: as `parse_settings`.
    """
    return _parse(text, _TextLoader)


def describe_yaml_error(error: yaml.YAMLError) -> str:
    """ " at line N: " and the reason, for the end of a sentence "X is not valid YAML"."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    reason = problem or (str(error).splitlines() or [type(error).__name__])[0]
    return f"{f' at line {mark.line + 1}' if mark else ''}: {reason}"


def _parse(text: str, loader: Any) -> Any:
    # The limits first; then the graph of nodes, whose mappings must have unique keys; then the values.
    try:
        _check_limits(yaml.parse(text, Loader=_PARSER))
        return yaml.load(text, loader)
    except UnicodeEncodeError as error:  # half of a surrogate pair: Python's representation of a byte that is not UTF-8
        raise yaml.YAMLError(f"character {error.start + 1} is not valid text") from error


def _check_limits(events: Iterable[yaml.Event]) -> None:
    """Raises YAMLError if the nesting, the entries that aliases add, or a tag is not accepted."""
    entries, added = 0, 0
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and `entries + added` at the start
    sizes: dict[str, int] = {}  # entries below each anchor that is complete, aliases expanded
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            # An alias repeats everything below its anchor, which must be complete.
            name = event.anchor
            if any(anchor == name for anchor, _ in open_nodes):
                raise _error(f"the alias *{name} is inside its own anchor", event)
            added += sizes.get(name, 1)
            if added > MAX_ALIASED:
                raise _error(f"its aliases add more than {MAX_ALIASED} entries", event)
        elif isinstance(event, yaml.NodeEvent):
            entries += 1
            tag = getattr(event, "tag", None)
            if tag not in (None, "!", _TEXT):
                raise _error(f"the tag {shorten(tag)} is not accepted", event)
            if not isinstance(event, yaml.ScalarEvent):
                open_nodes.append((event.anchor, entries + added))
                if len(open_nodes) > MAX_DEPTH:
                    raise _error(f"it is nested more than {MAX_DEPTH} levels deep", event)
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = entries + added - start + 1


def _check_keys(root: yaml.Node) -> None:
    """Raises YAMLError if a mapping has the same key twice."""
    waiting, seen = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            keys = set()
            for key, value in node.value:
                name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
                if name in keys:
                    raise _error(f"the key {shorten(key.value)} occurs twice", key)
                keys.add(name)
                children += [key, value]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        new = [child for child in children if id(child) not in seen]
        seen.update(map(id, new))
        waiting += new


def _error(problem: str, place: yaml.Event | yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)


class _UniqueKeys:
    """Mixin of loaders: refuses repeated keys before the values are constructed."""

    def get_single_data(self) -> Any:
        node = self.get_single_node()  # type: ignore[attr-defined]
        if node is None:
            return None
        _check_keys(node)
        return self.construct_document(node)  # type: ignore[attr-defined]


class _TextLoader(_UniqueKeys, getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]
    """Every scalar is a text."""


class _SettingsLoader(_UniqueKeys, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Numbers, booleans and null by YAML 1.1, except that numbers are decimal and dates are texts."""

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        digits = node.value.replace("_", "")
        if len(digits) > MAX_DIGITS:
            raise _error(f"an integer has {len(digits)} digits, more than {MAX_DIGITS}", node)
        return int(digits, 16 if "0x" in digits else 10)


_SettingsLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INTEGER, _FLOAT, _TIME)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_SettingsLoader.add_constructor(_INTEGER, _SettingsLoader.construct_integer)
_SettingsLoader.add_implicit_resolver(
    _INTEGER, re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_SettingsLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"""(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)
