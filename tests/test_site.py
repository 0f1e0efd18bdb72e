"""The documentation site: its navigation, and its build where the extra `docs` is installed (CI runs `make docs`)."""

import importlib.util
import re
import subprocess
import sys

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
