"""The documentation site: its navigation, and its build where the extra `docs` is installed (CI runs `make docs`)."""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
import types

import pytest
import yaml

from tests.commands import ROOT
from zoo.registry import MODELS

EXTRA = ("mkdocs", "material", "mkdocstrings")
missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]


def pages(nav):
    """The paths of a navigation tree of MkDocs."""
    if isinstance(nav, str):
        return [nav]
    values = nav if isinstance(nav, list) else nav.values()
    return [path for value in values for path in pages(value)]


def test_every_model_has_a_card_a_notebook_and_an_api_page():
    text = re.sub(r"!!python\S+ ", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(pages(yaml.safe_load(text)["nav"]))
    for name in {path.split(".")[1] for path in MODELS.values()}:
        assert {f"zoo/{name}/README.md", f"api/zoo.{name}.md"} <= listed
        assert any(re.fullmatch(rf"notebooks/{name}\w*\.md", path) for path in listed)
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks <= listed


@pytest.mark.skipif(bool(missing), reason=f"the site needs the extra: pip install '.[docs]' ({', '.join(missing)})")
def test_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    api = (tmp_path / "site" / "api" / "zoo.icr" / "index.html").read_text(encoding="utf-8")
    assert "predict_from_prompt" in api
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="zoo/llama/"' in home
    notebook = (tmp_path / "site" / "notebooks" / "revdeq" / "index.html").read_text(encoding="utf-8")
    assert "<title>RevDEQ" in notebook


def test_pages_of_notebooks_have_their_outputs(monkeypatch, tmp_path):
    """Without MkDocs, of which these functions use nothing."""
    for name, names in {"": (), ".config": (), ".config.defaults": ("MkDocsConfig",), ".structure": ()}.items():
        module = types.ModuleType(f"mkdocs{name}")
        vars(module).update(dict.fromkeys(names))
        monkeypatch.setitem(sys.modules, f"mkdocs{name}", module)
    files, page = (types.ModuleType(f"mkdocs.structure.{name}") for name in ("files", "pages"))
    files.File = files.Files = page.Page = None
    monkeypatch.setitem(sys.modules, "mkdocs.structure.files", files)
    monkeypatch.setitem(sys.modules, "mkdocs.structure.pages", page)
    pages = runpy.run_path(str(ROOT / "docs" / "pages.py"))
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["one\n", "```two\n"]},
        {"output_type": "display_data", "data": {"image/png": "AAEC", "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/plain": ["3"]}},
    ]
    cells = [
        {"cell_type": "markdown", "id": "a", "source": "# Title"},
        {"cell_type": "code", "id": "b", "source": ["x = 1\n", "x"], "outputs": outputs},
    ]
    notebook = tmp_path / "name.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    assert pages["notebook_as_markdown"](notebook).split("\n\n") == [
        "# Title",
        "```python\nx = 1\nx\n```",
        "````text\none\n```two\n````",
        "![output](name-b-1.png)",
        "````text\n3\n````\n",
    ]
    assert pages["notebook_images"](notebook) == {"name-b-1.png": bytes([0, 1, 2])}
