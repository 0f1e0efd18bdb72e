"""setup.cfg, constraints.txt and the imports of the source agree."""

import ast
import re
import sys
from configparser import ConfigParser

import pytest

from tests.commands import ROOT

# Distribution -> the package that it installs, where the names differ.
PACKAGES = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+),<([\w.]+)")


@pytest.fixture(scope="module")
def requirements():
    """Group ("" for what is always installed) -> {distribution: (oldest version, excluded version)}."""
    parser = ConfigParser(interpolation=None)
    parser.read_string((ROOT / "setup.cfg").read_text(encoding="utf-8"))
    groups = {"": parser["options"]["install_requires"], **parser["options.extras_require"]}
    lines = {
        name: [line for line in text.splitlines() if line and not line.startswith("#")] for name, text in groups.items()
    }
    assert not [line for group in lines.values() for line in group if not REQUIREMENT.fullmatch(line)]
    matches = {name: [REQUIREMENT.fullmatch(line) for line in group] for name, group in lines.items()}
    return {name: {match[1]: (match[2], match[3]) for match in group} for name, group in matches.items()}


def imported_packages() -> dict[str, bool]:
    """Each package that the source imports -> whether the import of a module of the zoo needs it."""
    found: dict[str, bool] = {}
    for folder in ("zoo", "datamodules", "callbacks"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    names = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
                for name in (name.partition(".")[0] for name in names if name):
                    found[name] = found.get(name, False) or node in tree.body
    return {name: value for name, value in found.items() if name not in (*sys.stdlib_module_names, "zoo")}


def test_every_import_is_of_a_required_package_or_of_an_extra(requirements):
    packages = {group: {PACKAGES.get(name, name) for name in names} for group, names in requirements.items()}
    extras = set().union(*(names for group, names in packages.items() if group != "dev"))
    imported = imported_packages()
    # IPython is imported where it runs already; PIL (pillow) is a requirement of matplotlib.
    assert imported.keys() - {"IPython", "PIL"} <= extras
    # What a module imports at its top must be installed always; zoo.search names its extra before it imports Optuna.
    assert {name for name, is_needed in imported.items() if is_needed} - {"optuna"} <= packages[""]
    assert packages[""] <= imported.keys()


def test_every_requirement_is_pinned_within_its_range(requirements):
    pins = re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    pinned = {name.lower(): version for name, version in pins}

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    for group in requirements.values():
        for name, (oldest, excluded) in group.items():
            assert numbers(oldest) <= numbers(pinned[name]) < numbers(excluded), name
