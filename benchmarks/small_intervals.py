"""Coverage of RegressLM's intervals on tables of a few hundred rows, trained with `zoo fit --config regress_lm`.

    python benchmarks/small_intervals.py --data_dir DIR       # DIR with scan_bench/ and timm/

`--rows` rows of each table train the model, a tenth of them as validation rows; others test it, so that the shares are
known well although the table is small. Intervals are calibrated on targets that the teacher draws, as the run does, and
on the validation rows' own targets. Rows of regress_lm_small_intervals.json replace those of the same table,
number of rows and seed; a run whose checkpoint is in --output_dir is not trained again. Other options are passed to
`zoo fit`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning import seed_everything

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.calibration import SCAN_COLUMNS, TIMM_COLUMNS, measure  # noqa: E402
from benchmarks.measure import facts, parse_arguments  # noqa: E402
from benchmarks.text_regression import read, write  # noqa: E402
from zoo.datamodules import TextRegression  # noqa: E402
from zoo.regress_lm import RegressLM, estimates  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402
from zoo.training.batches import Row, TextBatch, collate  # noqa: E402
from zoo.training.random_streams import derive  # noqa: E402

Table = list[dict[str, str]]
MOST_TESTED = 600


def load(name: str, folder: Path, seed: int) -> tuple[Table, str]:
    """The rows of a table in random order, and its target. Of scan_bench one row of each configuration."""
    if name in ("friedman", "diabetes"):
        from sklearn.datasets import load_diabetes, make_friedman1

        x, y = make_friedman1(2000, noise=1.0, random_state=seed)
        names = [f"x{i}" for i in range(x.shape[1])]
        if name == "diabetes":
            data: Any = load_diabetes(scaled=False)
            x, y, names = data.data, data.target, data.feature_names
        table = [dict(zip([*names, "y"], (f"{v:.4g}" for v in row), strict=True)) for row in np.c_[x, y]]
        target = "y"
    elif name == "timm":
        table, target = (
            read(folder / "timm" / "benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv"),
            "infer_samples_per_sec",
        )
        table = [{k: row[k] for k in [*TIMM_COLUMNS.split(",")[1:], target]} for row in table]
    else:
        table = [row for split in ("train", "test") for row in read(folder / "scan_bench" / f"{split}.csv")]
        target = "valid_loss"
    random = np.random.default_rng(derive(seed, "small intervals", name))
    table = [table[i] for i in random.permutation(len(table))]
    if name == "scan_bench":
        of_configuration = {row["config_id"]: row for row in table}
        table = [{k: row[k] for k in [*SCAN_COLUMNS.split(","), target]} for row in of_configuration.values()]
        # In the order of their first row, configurations with many rows would come first.
        table = [table[i] for i in random.permutation(len(table))]
    return table, target


def batches(rows: list[Row], model: RegressLM) -> Iterator[TextBatch]:
    for i in range(0, len(rows), 128):
        yield model.with_number_tokens(collate(rows[i : i + 128]))


def predicted(model: RegressLM, rows: list[Row]) -> dict[str, np.ndarray]:
    """Quantiles (N, 1, 5), medians, targets and CRPS (N, 1)."""
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in ("quantiles", "median", "target", "crps")}
    for batch in batches(rows, model):
        with torch.inference_mode():
            samples, log_prob = model.draw_for_rows(batch, model.hparams["num_samples"])
            values = model.summarize(samples, log_prob, batch.targets)
            values |= {"target": batch.targets, "crps": estimates.crps(samples, batch.targets)}
            for name, parts in columns.items():
                parts.append(values[name])
    return {name: torch.cat(parts).numpy() for name, parts in columns.items()}


def study(name: str, seed: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    table, target = load(name, args.data_dir, seed)
    place = f"{name}-{args.rows}-seed{seed}"
    data = write(
        args.output_dir / "data" / place, train=table[: args.rows], test=table[args.rows : args.rows + MOST_TESTED]
    )
    run = args.output_dir / place
    if not (run / "best.ckpt").exists():
        argv = [f"--data_dir={data}", f"--data.target_columns={target}", f"--output_dir={run}", *args.options]
        argv += [f"--seed_everything={seed}", "--trainer.enable_progress_bar=false"]
        subprocess.run([sys.executable, "-m", "zoo", "fit", "--config=regress_lm", *argv], cwd=ROOT, check=True)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    seed_everything(seed, verbose=False)
    dataset = TextRegression(**settings["data"]["init_args"])
    model = RegressLM.load(run / "best.ckpt")
    validation, test = ([part[i] for i in range(len(part))] for part in map(dataset.dataset, ("val", "test")))
    about = {"table": name, "rows": args.rows, "seed": seed, "validation_rows": len(validation), "test_rows": len(test)}
    about["steps"] = torch.load(run / "best.ckpt", weights_only=True, mmap=True)["global_step"]
    for calibrated_on, kind, rows in (
        ("nothing", "none", []),
        ("validation targets", "conformal", validation),
        ("drawn targets (default)", "conformal", dataset.calibration_rows),
    ):
        model.hparams["calibration"] = kind
        model.calibrate(batches(rows, model))
        scores = measure(predicted(model, test), [str(i) for i in range(len(test))])
        yield {**about, "calibrated_on": calibrated_on, **scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    tables = ["friedman", "diabetes", "timm", "scan_bench"]
    parser.add_argument("--tables", nargs="+", default=tables, choices=tables)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "small_intervals")
    args = parse_arguments(parser, "regress_lm_small_intervals.json", passes_on=True)
    args.output_dir = args.output_dir.resolve()
    machine = facts() | {"threads": torch.get_num_threads()}
    for seed in args.seeds:
        for name in args.tables:
            rows = [{**row, **machine} for row in study(name, seed, args)]
            stored = json.loads(args.output.read_text()) if args.output.exists() else []
            stored = [r for r in stored if (r["table"], r["rows"], r["seed"]) != (name, args.rows, seed)]
            args.output.write_text(dump_json(stored + rows, indent=1) + "\n")
            print(*map(dump_json, rows), sep="\n", flush=True)


if __name__ == "__main__":
    main()
