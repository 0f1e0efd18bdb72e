"""The Python examples of the README that need no files, and those of docs/data.md, run as written; options exist."""

import ast
import inspect
import re

import pytest
import torch
from lightning import Trainer

from tests.commands import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = PYTHON.findall(README)
DATA_BLOCKS = PYTHON.findall((ROOT / "docs" / "data.md").read_text(encoding="utf-8"))
DOCUMENTS = sorted(path for pattern in ("*.md", "docs/*.md", "zoo/*/README.md") for path in ROOT.glob(pattern))


@pytest.mark.parametrize("name", ["zoo.revdeq", "zoo.regress_lm"])
def test_readme_example_runs(name):
    (block,) = (block for block in BLOCKS if f"from {name} import" in block)
    namespace = {}
    exec(block, namespace)
    if name == "zoo.revdeq":
        assert namespace["solution"].z.shape == (4, 16)
        assert all(p.grad is not None for p in namespace["layer"].parameters())
    else:
        assert all(namespace[f"samples{i}"].shape == (128,) for i in (1, 2))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("block", DATA_BLOCKS, ids=["running text", "numbers", "classes"])
def test_example_of_own_data_runs(block, tmp_path, monkeypatch, capsys):
    """What an example prints is the comment at the end of its last line."""
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert capsys.readouterr().out.strip() == block.strip().rpartition("  # ")[2]


def argument_names():
    """The names of all parameters and of all annotated attributes in the zoo, and of the parameters of the Trainer."""
    names = set(inspect.signature(Trainer.__init__).parameters)
    for folder in ("zoo", "datamodules", "callbacks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.arg):
                    names.add(node.arg)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    names.add(node.target.id)
    return names


def test_options_in_the_documents_exist():
    groups = "model|data|trainer|checkpoint|early_stopping|non_finite|plots|predictions|samples|throughput"
    options = {
        (option, path.name)
        for path in DOCUMENTS
        for option in re.findall(rf"--(?:{groups})\.(\w+)", path.read_text(encoding="utf-8"))
    }
    assert len(options) > 50
    known = argument_names()
    assert not sorted((option, name) for option, name in options if option not in known)
