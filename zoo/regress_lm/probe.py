"""Probe for shortcuts: accuracy on minimally changed texts compared with accuracy on the original texts.

    python -m zoo.regress_lm.probe --ckpt_path best.ckpt --write pairs.csv    # the test split's texts, and changed ones
    python -m zoo.regress_lm.probe --ckpt_path best.ckpt --pairs pairs.csv    # once their changed_target is filled in

A pair is a text and the same text with its first number doubled, or with a negation added or removed. A model that
reads the text answers the two differently; a model that relies on mood or topic answers both the same (contrast sets,
Gardner et al. 2020, https://arxiv.org/abs/2004.02709). The correct target of a changed text needs knowledge of the
subject, so the file leaves it empty for you to fill in.
"""

import csv
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.console.exit_codes import run_command
from zoo.console.plain_parser import PlainParser
from zoo.console.table import table
from zoo.datamodules.regression_module import RegressionModule
from zoo.datamodules.row_text import RowLayout, is_missing
from zoo.datamodules.sources.table_rows import BadRows
from zoo.datamodules.sources.tables import read_table
from zoo.errors import UserError, check_weight
from zoo.files.checkpoints import read_checkpoint
from zoo.registry import DATA_MODULES, load_class
from zoo.regress_lm.api import RegressLM
from zoo.regress_lm.example import ExampleInput
from zoo.regress_lm.from_data import data_settings

COLUMNS = ("text", "target", "change", "changed", "changed_target")
TEXTS = {"text": "target", "changed": "changed_target"}  # column of a text -> column of its target
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\d)")
_NEGATION = re.compile(r"\b(?:not|never)\s+", re.IGNORECASE)
_AUXILIARY = re.compile(r"\b(?:is|are|was|were|has|have|had|will|would|can|could|does|did|should)\b", re.IGNORECASE)


def changes(text: str) -> Iterator[tuple[str, str]]:
    """The minimal changes of a text, as (kind, changed text): its first number doubled, its negation toggled."""
    if match := _NUMBER.search(text):
        doubled = f"{2 * float(match[0]):.10g}" if float(match[0]) else "1"
        yield "number", text[: match.start()] + doubled + text[match.end() :]
    if match := _NEGATION.search(text):
        yield "negation", text[: match.start()] + text[match.end() :]
    elif match := _AUXILIARY.search(text):
        yield "negation", f"{text[: match.end()]} not{text[match.end() :]}"


def load_data(ckpt_path: str) -> Any:
    """The data module whose settings a checkpoint stores, with the checkpoint's tokenizer.

    Raises:
        UserError: the checkpoint names no data module of texts with numbers.
    """
    checkpoint = read_checkpoint(ckpt_path)
    name = next((name for name in DATA_MODULES if name in checkpoint), None)
    if name is None or not issubclass(load_class(name), RegressionModule):
        raise UserError(f"{ckpt_path} stores no data settings of texts with numbers: give a RegressLM's of `zoo fit`")
    settings = data_settings(checkpoint.get("datamodule_hyper_parameters", {}))
    return load_class(name)(**settings | {"tokenizer": ckpt_path})


def write_pairs(ckpt_path: str, path: Path) -> int:
    """Write the changed texts of the checkpoint's test split to a CSV file.

    Args:
        ckpt_path: a checkpoint of `zoo fit`.
        path: the file to write.

    Returns:
        The number of pairs.

    Raises:
        UserError: the file exists already.
    """
    if os.path.lexists(path):
        raise UserError(f"{path} exists already: move it away, or give another --write")
    data = load_data(ckpt_path)
    texts, targets = data.texts("test"), data.targets("test")[:, 0]
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for text, target in zip(texts, targets, strict=True):
            for kind, changed in changes(text):
                writer.writerow([text, repr(float(target)), kind, changed, ""])
                count += 1
    return count


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """The pairs in a table whose changed_target is filled in.

    Raises:
        UserError: the file is not a table or lacks a column, a row is bad, or no changed_target is filled in.
    """
    bad = BadRows("stop", has_option=False)
    given = read_table(path, None, bad)
    if missing := [name for name in COLUMNS if name not in given.names]:
        raise UserError(f"{path} has no column {missing[0]!r}: it needs {', '.join(COLUMNS)}")
    layouts = {text: RowLayout([text], [target], "text") for text, target in TEXTS.items()}
    pairs: list[dict[str, Any]] = []
    for place, cells in given.rows:
        if is_missing(cells["changed_target"]):
            continue
        try:
            for text, layout in layouts.items():
                cells[text], cells[TEXTS[text]] = layout.text(cells), layout.target(cells, TEXTS[text])
        except UserError as error:
            bad.refuse(place, str(error))
        pairs.append(cells)
    if not pairs:
        raise UserError(f"{path} has no row with a changed_target: fill in the correct targets of the changed texts")
    return pairs


def probe(
    model: RegressLM, pairs: list[dict[str, Any]], tolerance: float, num_samples: int = 64
) -> list[dict[str, str]]:
    """Accuracy on original texts, on changed texts and on whole pairs, one row for each kind of change and one for all.

    Args:
        model: predicts the median of its samples.
        pairs: as `read_pairs` returns them.
        tolerance: a prediction is correct if it differs from the target by at most this.
        num_samples: samples of each text.

    Returns:
        Table rows. "same" is the share of the pairs with different targets for which the predictions are equal.

    Raises:
        UserError: the model predicts several targets.
    """
    if model.n_objectives > 1:
        raise UserError(f"the probe measures models of one target, and this one has {model.n_objectives}")
    predictions, targets = [], []
    for text, target in TEXTS.items():
        samples = model.sample([ExampleInput(pair[text]) for pair in pairs], num_samples, seed=0)
        predictions.append(np.array([np.nanmedian(s) for s in samples]))
        targets.append(np.array([pair[target] for pair in pairs]))
    error = [np.abs(p - t) for p, t in zip(predictions, targets, strict=True)]
    is_correct = [e <= tolerance for e in error]
    targets_differ = np.abs(targets[0] - targets[1]) > tolerance
    kinds = np.array([pair["change"] for pair in pairs])
    rows = []
    for kind in [*dict.fromkeys(kinds.tolist()), "all"]:
        selected = kinds == kind if kind != "all" else np.full(len(kinds), True)
        differ = selected & targets_differ
        same = (predictions[0] == predictions[1])[differ].mean() if differ.any() else float("nan")
        rows.append(
            {
                "change": kind,
                "pairs": str(selected.sum()),
                "accuracy": f"{is_correct[0][selected].mean():.3f}",
                "accuracy, changed": f"{is_correct[1][selected].mean():.3f}",
                "both right": f"{(is_correct[0] & is_correct[1])[selected].mean():.3f}",
                "MAE": f"{error[0][selected].mean():.4g}",
                "MAE, changed": f"{error[1][selected].mean():.4g}",
                "same": f"{same:.3f}",
            }
        )
    return rows


def main() -> None:
    """Command line of the probe."""
    parser = PlainParser(prog="python -m zoo.regress_lm.probe", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of a RegressLM")
    parser.add_argument("--pairs", type=Path, help="table of pairs to measure on")
    parser.add_argument("--write", type=Path, help="CSV file to write, with pairs from the test split to fill in")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest error of a correct prediction (default: 0)"
    )
    args = parser.parse_args()
    if not Path(args.ckpt_path).exists():
        raise FileNotFoundError(f"there is no checkpoint {args.ckpt_path}")
    check_weight("--tolerance", args.tolerance)
    if (args.pairs is None) == (args.write is None):
        raise UserError("give either --pairs FILE or --write FILE")
    if args.write:
        count = write_pairs(args.ckpt_path, args.write)
        print(f"{args.write}: {count} pairs; fill in changed_target, then give the file as --pairs", file=sys.stderr)
    else:
        print(table(probe(RegressLM.load(args.ckpt_path), read_pairs(args.pairs), args.tolerance)))


if __name__ == "__main__":
    sys.exit(run_command(main))
