"""One-sentence error messages, and suggestions for mistyped names."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


def near(name: str, known: Iterable[str], prefix: str = "--") -> str:
    """"; did you mean ...?" for the likeliest of the known names, compared whole and by their last part."""
    names = {option.removeprefix("--") for option in known}
    bare = name.removeprefix("--")
    found = get_close_matches(bare, names, n=1, cutoff=0.7)
    if not found:
        by_last = {option.rsplit(".", 1)[-1]: option for option in sorted(names)}
        found = [by_last[last] for last in get_close_matches(bare.rsplit(".", 1)[-1], by_last, n=1, cutoff=0.7)]
    dashes = prefix if name.startswith("--") else ""
    return f"; did you mean {dashes}{found[0]}?" if found else ""


def one_sentence(message: str) -> str:
    """The telling line of a message of several, as jsonargparse nests them."""
    key = re.search(r'Parser key "([^"]+)"', message)
    lines = [re.sub(r"^\s*- ", "", line).strip() for line in message.splitlines() if line.strip()]
    types = r"Expected a (?:<class|typing\.Literal)"
    noise = re.compile(rf"^(Parser key|Does not validate|Subtypes:|Errors:|{types}|Given value|Problem with)")
    telling = [line for line in lines if not noise.match(line)]
    if telling:
        return telling[0]
    if expected := re.search(r"Expected an? (?:<class '(\w+)'>|([^.]+))\.? Got value: (.*)", message):
        return f"{key[1] if key else 'a value'} must be {expected[1] or expected[2]}, not {expected[3]!r}"
    if union := re.search(r'.*Parser key "([^"]+)":(.*?)Given value: (.*?)$', message, re.DOTALL | re.MULTILINE):
        kinds = re.findall(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.+?)\]$)", union[2], re.MULTILINE)
        return f"{union[1]} must be {' or '.join(map(''.join, kinds)).replace('NoneType', 'null')}, not {union[3]!r}"
    return " ".join(lines)
