"""Links, paths and config names in the Markdown files and notebooks lead to files and headings that exist."""

import json
import re
from pathlib import Path

import pytest

from tests.commands import ROOT

PATTERNS = ("*.md", "docs/*.md", "results/*.md", "zoo/*/README.md", "notebooks/*.ipynb")
DOCUMENTS = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
CODE_BLOCK = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")
FOLDERS = "benchmarks|callbacks|configs|datamodules|docs|notebooks|results|tests|zoo"
QUOTED_PATH = re.compile(rf"`(?:python )?((?:{FOLDERS})/[\w./-]+\.\w+)")
CONFIG = re.compile(r"--config[ =]([\w./-]+)")


def text_of(path: Path) -> str:
    """The Markdown of a file; of a notebook, that of its Markdown cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return text


def anchors(path: Path) -> set[str]:
    """The anchors of a file's headings, as GitHub and the site of `make docs` form them."""
    prose = CODE_BLOCK.sub("", text_of(path))
    headings = re.findall(r"^#+ +(.*?) *$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, root: Path = ROOT) -> list[str]:
    """The links of a file that lead to no file, to a file outside the repository, or to no heading."""
    broken = []
    for target in LINK.findall(CODE_BLOCK.sub("", text_of(path))):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.is_file() or not file.is_relative_to(root) or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    assert not broken_links(path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_and_configs_in_the_text_exist(path):
    text = text_of(path)
    quoted = QUOTED_PATH.findall(CODE_BLOCK.sub("", text))
    bases = (ROOT, path.parent)
    assert not [name for name in quoted if not any((base / name).exists() for base in bases)]
    configs = [name for name in CONFIG.findall(text) if not name.isupper()]
    files = {name: ROOT / (name if name.endswith(".yaml") else f"configs/{name}.yaml") for name in configs}
    assert not [name for name, file in files.items() if not file.exists()]


def test_a_broken_link_is_reported(tmp_path):
    (tmp_path / "b.md").write_text("# Two words, `code`\n```sh\n# no heading\n```\n")
    (tmp_path / "a.md").write_text(
        "[file](b.md) [heading](b.md#two-words-code) [here](#top) [web](https://a.b)\n# Top\n"
        "[1](c.md) [2](b.md#two-words) [3](#bottom) [4](b.md#no-heading) [5](../outside.md)\n```\n[code](c.md)\n```\n"
    )
    broken = broken_links(tmp_path / "a.md", tmp_path)
    assert broken == ["c.md", "b.md#two-words", "#bottom", "b.md#no-heading", "../outside.md"]
