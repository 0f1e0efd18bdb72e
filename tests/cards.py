"""Shared by the tests of model cards: run the example of a card."""

import contextlib
from pathlib import Path


def run_example(card: Path, folder: Path) -> dict:
    """Execute the first Python block after the line "## Example" of a card in `folder`, and return its variables."""
    section = card.read_text(encoding="utf-8").split("\n## Example\n", 1)[1]
    code = section.split("```python\n", 1)[1].split("\n```", 1)[0]
    namespace: dict = {}
    with contextlib.chdir(folder):
        exec(compile(code, str(card), "exec"), namespace)
    return namespace
