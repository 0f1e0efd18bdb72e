"""Shared by the tests of model cards: run the example of a card."""

import contextlib
from pathlib import Path


def run_example(card: Path, folder: Path, heading: str = "## Example") -> dict:
    """Execute the first Python block after a heading of a card in `folder`, and return its variables."""
    section = card.read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[1]
    code = section.split("```python\n", 1)[1].split("\n```", 1)[0]
    namespace: dict = {}
    with contextlib.chdir(folder):
        exec(compile(code, str(card), "exec"), namespace)
    return namespace
