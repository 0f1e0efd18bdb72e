"""Run the example of a model card."""

import os
import re
from pathlib import Path


def run_example(card: Path, folder: Path) -> dict:
    """Execute the first Python block after the line "## Example" of `card` inside `folder`; returns its namespace."""
    section = card.read_text(encoding="utf-8").split("\n## Example\n", 1)[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code, f"{card} has no Python example"
    namespace: dict = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile(code[1], str(card), "exec"), namespace)
    finally:
        os.chdir(before)
    return namespace
