"""Execute the notebooks with their own parameters, and store the outputs in them for readers who run nothing.

    python benchmarks/notebooks.py                # all, about ten minutes on one core
    python benchmarks/notebooks.py icr revdeq     # those whose code has changed
    python benchmarks/notebooks.py --check        # fail where the code differs from the code that gave the outputs

A notebook's metadata have the digest of its code. Tables, figures and the last state of progress bars are stored,
but not what is printed to standard error. The working folder is left out of paths.
"""

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
DIGEST = "executed_code"  # key of the metadata
KEPT = ("text/plain", "image/png")  # kinds of data in an output


def code_digest(notebook: Any) -> str:
    """SHA-256 of a notebook's code cells."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def without_outputs(notebook: Any) -> Any:
    """The notebook without outputs, numbers of execution and digest; it is changed."""
    notebook.metadata.pop(DIGEST, None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
    return notebook


def execute(path: Path) -> None:
    """Run a notebook in a new kernel and an empty folder, and store its outputs."""
    from nbclient import NotebookClient

    notebook = without_outputs(nbformat.read(path, as_version=4))
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook, kernel_name="python3", timeout=None, record_timing=False, resources={"metadata": {"path": folder}}
        ).execute()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                outputs = (_cleaned(o, os.path.realpath(folder)) for o in cell.outputs if _is_kept(o))
                cell.outputs, cell.execution_count = _joined(outputs), None
    notebook.metadata.pop("language_info", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata[DIGEST] = code_digest(notebook)
    nbformat.write(notebook, path)


def _is_kept(output: Any) -> bool:
    return output.output_type in ("display_data", "execute_result") or output.get("name") == "stdout"


def _joined(outputs: Iterable[Any]) -> list[Any]:
    """The outputs, with consecutive texts as one."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _cleaned(output: Any, folder: str) -> Any:
    if output.output_type == "stream":
        output.text = output.text.replace(f"{folder}/", "")
        return output
    output.data = {kind: value.replace(f"{folder}/", "") for kind, value in output.data.items() if kind in KEPT}
    output.metadata = {}
    if output.output_type == "execute_result":
        output.execution_count = None
    return output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of notebooks; default: all")
    parser.add_argument("--check", action="store_true", help="execute none")
    args = parser.parse_args()
    paths = [NOTEBOOKS / f"{name}.ipynb" for name in args.names] or sorted(NOTEBOOKS.glob("*.ipynb"))
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    stale = []
    for path in paths:
        if args.check:
            notebook = nbformat.read(path, as_version=4)
            stale += [path.name] * (notebook.metadata.get(DIGEST) != code_digest(notebook))
        else:
            execute(path)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)
    if stale:
        print(f"the code has changed since the outputs were made: {', '.join(stale)}", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
