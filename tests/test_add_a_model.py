"""The recipe of docs/add_a_model.md, followed to the letter in a copy of the repository."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT

COPIED = ("zoo", "datamodules", "callbacks", "configs", "tests", "setup.cfg", "pyproject.toml")


def recipe() -> tuple[dict[str, str], str]:
    """The files that the guide gives, by path, and the line for the registry."""
    text = (ROOT / "docs" / "add_a_model.md").read_text(encoding="utf-8")
    files, line = {}, ""
    for block in re.findall(r"^```(?:python|yaml)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        first, _, rest = block.partition("\n")
        if path := re.fullmatch(r"# ([\w/]+\.(?:py|yaml))", first):
            files[path[1]] = rest
        else:
            line = block
    return files, line


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A copy of the repository with the GRU of the guide added."""
    copy = tmp_path_factory.mktemp("repository")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    files, line = recipe()
    assert len(files) <= 3
    for path, content in files.items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        assert not (copy / path).exists()
        (copy / path).write_text(content, encoding="utf-8")
    registry = copy / "zoo" / "registry.py"
    text = registry.read_text(encoding="utf-8")
    head = "MODELS: Mapping[str, str] = {\n"
    assert head in text
    registry.write_text(text.replace(head, head + line), encoding="utf-8")
    return copy


def run(repository: Path, *argv: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *argv], cwd=repository, capture_output=True, text=True, timeout=300, **options
    )


def test_recipe_gives_a_listed_model(repository):
    listed = run(repository, "zoo", "list", check=True).stdout
    assert re.search(r"^tiny/gru +GRULM +TextLM +0\.165M", listed, re.MULTILINE)
    assert "GRULM" in run(repository, "zoo", "--help", check=True).stdout


def test_recipe_states_the_true_size(repository):
    script = (
        "from zoo.gru.module import GRULM; m = GRULM(vocab_size=257, dim=128);"
        "print(sum(p.numel() for p in m.parameters()))"
    )
    count = int(subprocess.run([sys.executable, "-c", script], cwd=repository, capture_output=True, check=True).stdout)
    assert f"{count / 1e6:.3f}M" == "0.165M"


def test_recipe_passes_the_shared_tests(repository):
    done = run(repository, "pytest", "-q", "-p", "no:cacheprovider", "tests/shared", "-k", "GRULM")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)


def test_recipe_is_clean_for_the_linter(repository):
    done = run(repository, "ruff", "check", "zoo/gru")
    assert done.returncode == 0, done.stdout
