"""Import rules and sizes of the source: layers, no cycles, networks without Lightning, files of one page or few."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT
from zoo.registry import MODELS

PACKAGE = ROOT / "zoo"
LONGEST_FILE = 400  # lines
# Commands on trained models: they may use data and callbacks.
STUDIES = ("zoo.icr.sweep", "zoo.icr.analysis", "zoo.regress_lm.probe")


def source_files():
    """Module name -> file, for every Python file of the package, the linked folders included."""
    folders = [PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_symlink())]
    files = {path for folder in folders for path in folder.rglob("*.py")}
    names = {path: path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files}
    return {name.removesuffix(".__init__"): path for path, name in sorted(names.items())}


FILES = source_files()
MODEL_PACKAGES = sorted({".".join(path.split(".")[:2]) for path in MODELS.values()})


def imports(path: Path, at_import: bool = False) -> set[str]:
    """The names that a file imports, `a.b.c` for `from a.b import c`.

    Args:
        path: the file.
        at_import: only what runs when the module is imported: neither inside functions nor under TYPE_CHECKING.
    """
    found: set[str] = set()

    def visit(node):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        skipped = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if not (at_import and skipped):
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def modules_of(name: str) -> set[str]:
    """The module of the zoo that an imported name is in: `zoo.layers.RMSNorm` is in `zoo.layers`."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return {name} if name else set()


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_package_holds_packages():
    loose = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert loose == {"__init__.py", "__main__.py", "errors.py", "registry.py"}
    folders = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name not in ("__pycache__", "configs")]
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_no_import_cycles():
    """Imports inside functions and under TYPE_CHECKING count, and a package's `__init__` counts as a module."""
    graph = {
        name: {module for imported in imports(path) for module in modules_of(imported)} - {name}
        for name, path in FILES.items()
    }
    # Remove modules that import nothing that is left, until none is.
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    # Remove modules that nothing left imports: what remains lies on cycles.
    while roots := graph.keys() - set().union(*graph.values()):
        graph = {name: imported for name, imported in graph.items() if name not in roots}
    assert not graph, {name: sorted(imported & graph.keys()) for name, imported in graph.items()}


@pytest.mark.parametrize("package", MODEL_PACKAGES)
def test_a_model_package_imports_no_other_model_no_data_and_no_command_line(package):
    forbidden = [other for other in MODEL_PACKAGES if other != package] + ["zoo.datamodules", "zoo.cli"]
    wrong = [
        f"{name} imports {imported}"
        for name, path in FILES.items()
        if is_below(name, package) and not any(is_below(name, study) for study in STUDIES)
        for imported in imports(path)
        if any(is_below(imported, other) for other in forbidden)
    ]
    assert not wrong


@pytest.mark.parametrize("package", MODEL_PACKAGES)
def test_the_network_imports_without_lightning(package):
    script = (
        f"import sys, {package}.model; "
        "loaded = [name for name in sys.modules if name.partition('.')[0] in ('lightning', 'lightning_fabric')]; "
        "sys.exit(', '.join(loaded[:3]) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-300:]


def test_callbacks_import_no_model_and_no_data():
    allowed = (
        "zoo.errors", "zoo.private_apis", "zoo.callbacks", "zoo.console", "zoo.files", "zoo.text_formats",
        "zoo.sharding.tensors",
    )  # fmt: skip
    wrong = [
        f"{name} imports {imported}"
        for name, path in FILES.items()
        if is_below(name, "zoo.callbacks")
        for imported in imports(path)
        if is_below(imported, "zoo") and not any(is_below(imported, good) for good in allowed)
    ]
    assert not wrong


def test_data_modules_import_no_model_and_no_command_line():
    wrong = [
        f"{name} imports {imported}"
        for name, path in FILES.items()
        if is_below(name, "zoo.datamodules") and not name.endswith("linear_regression_tasks")  # its tasks are ICR's
        for imported in imports(path)
        if any(is_below(imported, other) for other in (*MODEL_PACKAGES, "zoo.cli", "zoo.callbacks"))
    ]
    assert not wrong


@pytest.mark.parametrize("private", ["lightning", "jsonargparse", "torch"])
def test_private_modules_are_imported_in_one_package(private):
    pattern = re.compile(rf"(from|import) {private}[\w.]*(\._\w+|.* import .*\b_\w+)")
    wrong = [
        f"{name}: {line.strip()}"
        for name, path in FILES.items()
        if not is_below(name, "zoo.private_apis")
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.match(line.strip())
    ]
    assert not wrong


def test_no_module_reads_the_trainers_data_module():
    """A module gets what it needs as arguments. Callbacks and the command line may look."""
    wrong = [
        f"{name}:{node.lineno}"
        for name, path in FILES.items()
        if not is_below(name, "zoo.cli") and not is_below(name, "zoo.callbacks")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "datamodule" and "trainer" in ast.unparse(node.value)
    ]
    assert not wrong


def test_files_are_short():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FILE}


def test_every_module_says_what_it_is():
    undocumented = [name for name, path in FILES.items() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not undocumented
    assert not [name for name in FILES if name.rpartition(".")[-1] == "utils"]
