"""Does the model read, or take shortcuts? Accuracy on minimally changed texts beside accuracy on the texts themselves.

    python -m zoo.regress_lm.probe --ckpt_path best.ckpt --write pairs.csv    # the test split's texts, and changed ones
    python -m zoo.regress_lm.probe --ckpt_path best.ckpt --pairs pairs.csv    # once their changed_target is filled in

A pair is a text and the same text with its first number changed, or its negation put in or taken out: what a reader
answers differently, and what a model that goes by mood or topic answers the same (contrast sets, Gardner et al. 2020,
https://arxiv.org/abs/2004.02709). Only who knows the subject knows the changed target, so it is left empty for you.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.console.exit_codes import run_command
from zoo.console.table import table
from zoo.errors import UserError
from zoo.regress_lm.example import ExampleInput
from zoo.regress_lm.module import RegressLM

COLUMNS = ("text", "target", "change", "changed", "changed_target")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\d)")
_NEGATION = re.compile(r"\b(?:not|never)\s+", re.IGNORECASE)
_AUXILIARY = re.compile(r"\b(?:is|are|was|were|has|have|had|will|would|can|could|does|did|should)\b", re.IGNORECASE)


def changes(text: str) -> Iterator[tuple[str, str]]:
    """The minimal changes that `text` allows, each named: its first number doubled, its negation toggled."""
    if match := _NUMBER.search(text):
        doubled = f"{2 * float(match[0]):.10g}" if float(match[0]) else "1"
        yield "number", text[: match.start()] + doubled + text[match.end() :]
    if match := _NEGATION.search(text):
        yield "negation", text[: match.start()] + text[match.end() :]
    elif match := _AUXILIARY.search(text):
        yield "negation", f"{text[: match.end()]} not{text[match.end() :]}"


def write_pairs(ckpt_path: str, path: Path) -> int:
    """Write the changed texts of the checkpoint's test split to `path`; returns how many pairs there are."""
    from zoo.cli.command_line import ZooCLI

    if path.exists():
        raise UserError(f"{path} is there already: move it away, or give another --write")
    data: Any = ZooCLI(["test", f"--ckpt_path={ckpt_path}", "--trainer.fast_dev_run=1"]).datamodule
    found = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for text, target in zip(data.texts("test"), data.targets("test")[:, 0], strict=True):
            for kind, changed in changes(text):
                writer.writerow([text, repr(float(target)), kind, changed, ""])
                found += 1
    return found


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """The pairs in `path` whose changed target is known.

    Raises:
        ValueError: a column is missing, a target is no number, or no changed target is filled in.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
            raise UserError(f"{path} has no column {missing[0]!r}: it needs {', '.join(COLUMNS)}")
        pairs: list[dict[str, Any]] = [row for row in reader if (row["changed_target"] or "").strip()]
    if not pairs:
        raise UserError(f"{path} has no row with a changed_target: fill in what is right for the changed texts")
    for i, pair in enumerate(pairs, start=1):
        for name in ("target", "changed_target"):
            try:
                pair[name] = float(pair[name])
            except ValueError:
                raise UserError(f"{path}, pair {i}: its {name} is {pair[name]!r}, not a number") from None
    return pairs


def probe(
    model: RegressLM, pairs: list[dict[str, Any]], tolerance: float, num_samples: int = 64
) -> list[dict[str, str]]:
    """One line for each kind of change: how many of its texts, changed texts and whole pairs the model has right.

    Right is a median within `tolerance` of the target; `same` is the share of pairs that are told apart by their
    targets, but not by the model.
    """
    columns = [("text", "target"), ("changed", "changed_target")]
    guesses, targets = [], []
    for text, target in columns:
        samples = model.sample([ExampleInput(pair[text]) for pair in pairs], num_samples, seed=0)
        guesses.append(np.array([np.nanmedian(s) for s in samples]))
        targets.append(np.array([pair[target] for pair in pairs]))
    right = [np.abs(guess - target) <= tolerance for guess, target in zip(guesses, targets, strict=True)]
    error = [np.abs(guess - target) for guess, target in zip(guesses, targets, strict=True)]
    apart = np.abs(targets[0] - targets[1]) > tolerance
    kinds = np.array([pair["change"] for pair in pairs])
    rows = []
    for kind in [*dict.fromkeys(kinds.tolist()), "all"]:
        chosen = kinds == kind if kind != "all" else np.full(len(kinds), True)
        differ = chosen & apart
        same = (guesses[0] == guesses[1])[differ].mean() if differ.any() else float("nan")
        rows.append(
            {
                "change": kind,
                "pairs": str(chosen.sum()),
                "accuracy": f"{right[0][chosen].mean():.3f}",
                "accuracy, changed": f"{right[1][chosen].mean():.3f}",
                "both right": f"{(right[0] & right[1])[chosen].mean():.3f}",
                "MAE": f"{error[0][chosen].mean():.4g}",
                "MAE, changed": f"{error[1][chosen].mean():.4g}",
                "same": f"{same:.3f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m zoo.regress_lm.probe", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ckpt_path", required=True, help="a RegressLM")
    parser.add_argument("--pairs", type=Path, help="measure on these")
    parser.add_argument("--write", type=Path, help="write pairs for you to fill in, from the test split")
    parser.add_argument("--tolerance", type=float, default=0.0, help="right within so much (default: exactly)")
    args = parser.parse_args()
    if not Path(args.ckpt_path).exists():
        raise FileNotFoundError(f"there is no checkpoint {args.ckpt_path}")
    if (args.pairs is None) == (args.write is None):
        raise UserError("give either --pairs FILE or --write FILE")
    if args.write:
        found = write_pairs(args.ckpt_path, args.write)
        print(f"{args.write}: {found} pairs; fill in changed_target, then give it as --pairs", file=sys.stderr)
    else:
        print(table(probe(RegressLM.load(args.ckpt_path), read_pairs(args.pairs), args.tolerance)))


if __name__ == "__main__":
    sys.exit(run_command(main))
