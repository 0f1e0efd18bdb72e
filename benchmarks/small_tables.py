"""RegressLM on small tables, from scratch, from synthetic rows and from the default weights, next to baselines.

    python benchmarks/small_tables.py --scan_bench DIR                    # DIR with train.csv, test.csv
    python benchmarks/small_tables.py --tables diabetes iris wine cars barley    # the last two are in vega_datasets

Each row of regress_lm_small_tables.json is one model on one split of one table; rows measured before stay. A
run whose checkpoint is in --output_dir is not trained again. Other options are passed to `zoo fit`, and the temperature
to the test as well.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from benchmarks.text_regression import SCAN_INPUTS, matrix, one_objective, read, test, write  # noqa: E402
from zoo.datamodules import TextRegression  # noqa: E402
from zoo.datamodules.table_columns import read_column  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402
from zoo.training.random_streams import derive  # noqa: E402

Row = dict[str, Any]
FROM_SCRATCH = (
    *("--data.synthetic_rows=0", "--data.augment_copies=40", "--data.jitter=0.1", "--data.target_jitter=0.02"),
    "--model.temperature=1",
)
DEFAULT_WEIGHTS = ("--model.weights=zoo:regress-lm",)
RULES = ("--config=regress_lm",)
SHORT = (
    *FROM_SCRATCH,
    *("--model.residual_dropout=0.2", "--model.warmup_steps=20"),
    *("--trainer.max_steps=150", "--trainer.val_check_interval=150"),
)
REGRESS_LM = {
    "RegressLM, synthetic rows": (),
    "RegressLM, from scratch": FROM_SCRATCH,
    "RegressLM, from scratch, 150 steps": SHORT,
    "RegressLM, default weights, synthetic rows": DEFAULT_WEIGHTS,
    "RegressLM, default weights, 150 steps": (*SHORT, *DEFAULT_WEIGHTS),
    "RegressLM, default weights, rules": (*RULES, *DEFAULT_WEIGHTS),
    "RegressLM, random weights, rules": RULES,
}
TARGETS = {"diabetes": "y", "iris": "petal_width", "wine": "alcohol", "cars": "Miles_per_Gallon", "barley": "yield"}


def load(name: str) -> list[dict[str, str]]:
    """The rows of a public table from scikit-learn or vega_datasets."""
    if name in ("cars", "barley"):
        spec = importlib.util.find_spec("vega_datasets")
        if spec is None or spec.origin is None:
            raise SystemExit("the tables cars and barley come with a package: pip install vega_datasets==0.9.0")
        rows = json.loads((Path(spec.origin).parent / "_data" / f"{name}.json").read_text())
        return [
            {k: "" if v is None else str(v) for k, v in row.items()} for row in rows if row[TARGETS[name]] is not None
        ]
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    names = [str(n).removesuffix(" (cm)").replace(" ", "_").replace("/", "_") for n in bunch.feature_names]
    rows = [dict(zip(names, (f"{v:.6g}" for v in values), strict=True)) for values in bunch.data]
    for row, target in zip(rows, bunch.target, strict=True):
        row["y" if name == "diabetes" else "class"] = f"{target:g}" if name == "diabetes" else f"class {target}"
    return rows


def splits(args: argparse.Namespace) -> Iterator[tuple[str, int, list, list, list[str], str, list[str]]]:
    """Of each table and seed: name, seed, training rows, test rows, inputs, target and options of the data."""
    for rows in args.rows if args.scan_bench else ():
        full, held_out = (read(args.scan_bench / f"{split}.csv") for split in ("train", "test"))
        for seed in args.seeds:
            order = np.random.default_rng(derive(seed, "rows")).permutation(len(full))[:rows]
            train = [full[i] for i in sorted(order)]
            yield f"scan_bench, {rows} rows", seed, train, held_out, SCAN_INPUTS, "valid_loss", ["config_id"]
    for name in args.tables:
        table = load(name)
        for seed in args.seeds:
            order = np.random.default_rng(derive(seed, name)).permutation(len(table))
            held_out, train = ([table[i] for i in part] for part in np.split(order, [len(table) // 5]))
            yield name, seed, train, held_out, [c for c in table[0] if c != TARGETS[name]], TARGETS[name], []


def baselines(
    train: list, held_out: list, inputs: list[str], target: str, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and predictions of models fitted to all training rows, their columns encoded as for the teacher."""
    from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = {name: read_column([row[name] for row in train], 0) for name in inputs}
    x, x_test = (
        np.hstack([column.encode([row[name] for row in rows]) for name, column in columns.items()])
        for rows in (train, held_out)
    )
    y = matrix(train, [target])[:, 0]
    impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    models = {
        "ridge": make_pipeline(impute, StandardScaler(), RidgeCV(np.logspace(-2, 3, 11))),
        "random forest": RandomForestRegressor(300, random_state=seed),
        "extra trees": ExtraTreesRegressor(300, random_state=seed),
    }
    for name, model in models.items():
        yield name, model.fit(x, y).predict(x_test)
    if y.min() > 0:
        yield "ridge, log of the target", np.exp(models["ridge"].fit(x, np.log(y)).predict(x_test))
    yield "median", np.full(len(x_test), np.median(y))


def regress_lm(folder: Path, data: Path, seed: int, options: list[str]) -> tuple[Row, np.ndarray]:
    """The metrics of `zoo test` after `zoo fit`, with the CPU seconds of the training, and the predictions."""
    best, took = folder / "best.ckpt", folder / "took.json"
    if not took.exists():
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        config = RULES if RULES[0] in options else ("--config=regress_lm_small_table",)  # options change its values
        argv = [f"--data_dir={data}", f"--seed_everything={seed}", f"--output_dir={folder}", *options]
        command = [sys.executable, "-m", "zoo", "fit", *config, *(word for word in argv if word not in config)]
        subprocess.run(command, cwd=ROOT, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        took.write_text(dump_json({"seconds": time.perf_counter() - start, "cpu_seconds": cpu}))
    sampling = [option for option in options if option.startswith("--model.temperature=")]
    logged, predictions, _ = test(best, data, *sampling[-1:])
    steps = torch.load(best, weights_only=True, mmap=True)["global_step"]
    return {**logged, **json.loads(took.read_text()), "steps": steps}, predictions


def measure(args: argparse.Namespace) -> Iterator[Row]:
    for name, seed, train, held_out, inputs, target, group in splits(args):
        y = matrix(held_out, [target])[:, 0]
        about = {"table": name, "seed": seed, "rows": len(train), "test_rows": len(held_out)}
        kept = [*group, *inputs, target]
        place = f"{name.replace(', ', '-').replace(' ', '_')}-seed{seed}"
        data = write(
            args.output_dir / "data" / place,
            **{
                split: [{k: row[k] for k in kept} for row in rows]
                for split, rows in (("train", train), ("test", held_out))
            },
        )
        options = {"target_columns": target, "columns": ",".join(inputs), "group_column": "".join(group) or None}
        argv = [f"--data.{k}={v}" for k, v in options.items() if v] + args.options
        if name == "barley":
            argv.append("--data.round_digits=4")  # tells the years 1931 and 1932 apart
        for model, other in REGRESS_LM.items():
            if model in args.models:
                folder = f"{place}-{model[11:].replace(', ', '-').replace(' ', '_')}"
                metrics, _ = regress_lm(args.output_dir / folder, data, seed, [*argv, *other])
                yield {**about, "model": model, **metrics}
        if "teacher" in args.models:
            source = TextRegression(str(data), **options, seed=seed).source
            yield {**about, "model": "teacher", **one_objective(source.teacher(seed).predict(held_out)[:, 0], y)}
        if "baselines" in args.models:
            for model, predictions in baselines(train, held_out, inputs, target, seed):
                yield {**about, "model": model, **one_objective(predictions, y)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan_bench", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 500], help="training rows of scan_bench")
    parser.add_argument("--tables", nargs="*", default=[], choices=TARGETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    models = [*REGRESS_LM, "teacher", "baselines"]
    parser.add_argument("--models", nargs="+", default=models, choices=models)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "small_tables")
    args = parse_arguments(parser, "regress_lm_small_tables.json", passes_on=True)
    args.output_dir = args.output_dir.resolve()
    about = facts() | {"threads": torch.get_num_threads()}
    for row in measure(args):
        row = {name: value for name, value in row.items() if not isinstance(value, float) or np.isfinite(value)}
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        stored = json.loads(args.output.read_text()) if args.output.exists() else []
        old = {(r["table"], r["seed"], r["model"]): r for r in stored}
        old[row["table"], row["seed"], row["model"]] = {**row, **about}
        args.output.write_text(dump_json(list(old.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
