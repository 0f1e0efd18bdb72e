"""Coverage of RegressLM's intervals on test rows of the same distribution and on shifted ones: six tables, three seeds.

    python benchmarks/calibration.py --data_dir DIR       # DIR with scan_bench/, timm/ and vader_floats/

Each table is split at random into 55% training, 15% validation and 30% test rows (rows of one group stay together); the
validation rows select the weights and fit the calibration. Models are trained once per table and seed, stored in
--output_dir, and evaluated with each calibration. Rows replace those of the same table and seed in
regress_lm_calibration.json. Fields `error_50` and `error_90` are the standard deviations of the two shares that
follow from the numbers of test rows (and of validation rows, where these fit the quantiles), groups of rows counted.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from zoo.regress_lm import Example, RegressLM, estimates  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402
from zoo.tokenizers.hugging_face import train_bpe, train_words  # noqa: E402
from zoo.tokenizers.numerals import rounded  # noqa: E402
from zoo.training.random_streams import derive  # noqa: E402

SCAN_COLUMNS = (
    "d_model,n_layers,n_heads,weight_decay,beta1,beta2,cooldown_steps,lr,global_batch_size,final_step,micro_batch_size,"
    "current_lr,tokens_so_far,eval_step,n_param"
)
TIMM_COLUMNS = "model,infer_img_size,infer_batch_size,param_count,infer_gmacs,infer_macts"

Row = dict[str, Any]


class Task(NamedTuple):
    """Texts, their numbers, and the groups that no split divides."""

    texts: list[str]
    targets: np.ndarray
    groups: list[str]
    is_table: bool


def from_csv(paths: list[Path], columns: str, target: str, group: str) -> Task:
    table = []
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            table += list(csv.DictReader(file))
    texts = [", ".join(f"{name}: {row[name]}" for name in columns.split(",")) for row in table]
    return Task(texts, np.array([float(row[target]) for row in table]), [row[group] for row in table], True)


def scan_bench(folder: Path) -> Task:
    files = [folder / "scan_bench" / f"{split}.csv" for split in ("train", "test")]
    return from_csv(files, SCAN_COLUMNS, "valid_loss", "config_id")


def timm(folder: Path) -> Task:
    file = folder / "timm" / "benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv"
    return from_csv([file], TIMM_COLUMNS, "infer_samples_per_sec", "model")


def ratings(path: Path) -> Task:
    lines = [line.split("\t", 2) for line in path.read_text(encoding="utf-8").splitlines()]
    targets = np.array([float(rating) for _, rating, _ in lines])
    return Task([text for _, _, text in lines], targets, [number.split("_")[0] for number, _, _ in lines], False)


def tweets(folder: Path) -> Task:
    return ratings(folder / "vader_floats" / "tweets_GroundTruth.txt")


def amazon(folder: Path) -> Task:
    return ratings(folder / "vader_floats" / "amazonReviewSnippets_GroundTruth.txt")


def synthetic(folder: Path) -> Task:
    from zoo.datamodules import SyntheticConfigs

    data = SyntheticConfigs(n_rows=2000)
    texts = [text for split in ("train", "val", "test") for text in data.texts(split)]
    targets = np.concatenate([data.targets(split) for split in ("train", "val", "test")])[:, 0]
    return Task(texts, targets, [str(i) for i in range(len(texts))], True)


def diabetes(folder: Path) -> Task:
    from sklearn.datasets import load_diabetes

    data: Any = load_diabetes(scaled=False)
    texts = [
        ", ".join(f"{name}: {value:g}" for name, value in zip(data.feature_names, row, strict=True))
        for row in data.data
    ]
    return Task(texts, data.target, [str(i) for i in range(len(texts))], True)


TASKS: dict[str, Callable[[Path], Task]] = {
    run.__name__: run for run in (scan_bench, timm, tweets, amazon, synthetic, diabetes)
}

SHIFTED = {"tweets": "amazon", "amazon": "tweets"}
"""Table -> the one whose test rows have another distribution."""


def split(task: Task, name: str, seed: int) -> tuple[dict[str, list[Example]], dict[str, list[str]]]:
    """Training, validation and test examples, random groups of the table, and the group of each example."""
    groups = sorted(set(task.groups))
    order = np.random.default_rng(derive(seed, "calibration", name)).permutation(len(groups))
    share_before = dict(zip([groups[i] for i in order], np.arange(len(groups)) / len(groups), strict=True))
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    groups_of: dict[str, list[str]] = {part: [] for part in parts}
    for text, target, group in zip(task.texts, task.targets, task.groups, strict=True):
        share = share_before[group]
        part = "train" if share < 0.55 else "validation" if share < 0.7 else "test"
        parts[part].append(Example(text, float(target)))
        groups_of[part].append(group)
    return parts, groups_of


def train(task: Task, parts: dict[str, list[Example]], seed: int, steps: int) -> tuple[RegressLM, float]:
    """A small model, trained for at most `steps` steps, and the CPU seconds of its training."""
    texts = [example.x for example in parts["train"]]
    tokenizer = train_words([rounded(text, 2, True) for text in texts]) if task.is_table else train_bpe(texts, 2000)
    model = RegressLM.from_scratch(
        tokenizer=tokenizer,
        seed=seed,
        max_input_len=512,
        number_digits=3,
        dim=64,
        n_heads=4,
        n_decoder_layers=1,
        residual_dropout=0.1,
        round_digits=2 if task.is_table else None,
        power_tokens=task.is_table,
    )
    # At most `steps` steps, in at most 60 epochs.
    epochs = min(60, max(1, steps * 64 // len(texts)))
    start = time.process_time()
    model.fine_tune(parts["train"], parts["validation"], seed=seed, max_epochs=epochs, progress=False)
    return model, time.process_time() - start


def predicted(model: RegressLM, examples: list[Example], kinds: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """For each kind of calibration, which have equal samples: quantiles (N, 1, 5), medians and targets (N, 1), CRPS
    (N, 1) and log-probabilities (N,)."""
    columns: dict[str, dict[str, list[np.ndarray]]] = {kind: {} for kind in kinds}
    for batch in model.batches(examples, 128):
        with torch.inference_mode():
            samples, log_prob = model.draw_for_rows(batch, model.hparams["num_samples"])
            fixed = {"target": batch.targets, "crps": estimates.crps(samples, batch.targets)}
            fixed |= {"log_prob": model.log_probs(batch)}
            for kind, parts in columns.items():
                model.hparams["calibration"] = kind
                values = model.summarize(samples, log_prob, batch.targets) | fixed
                for name in ("quantiles", "median", "target", "crps", "log_prob"):
                    parts.setdefault(name, []).append(values[name].numpy())
    return {kind: {name: np.concatenate(p) for name, p in parts.items()} for kind, parts in columns.items()}


def measure(columns: dict[str, np.ndarray], groups: list[str], n_fitted: int | None = None) -> Row:
    """Scores of predicted distributions.

    Args:
        columns: as `predicted` returns them.
        groups: (N,) the group of each row.
        n_fitted: the number of groups whose targets fitted the quantiles, as independent as the N rows; None for none.
    """
    quantiles, targets = columns["quantiles"], columns["target"]
    row = {f"coverage_{name}": share for name, share in estimates.coverage(quantiles, targets).items()}
    _, group = np.unique(groups, return_inverse=True)
    for name, (low, high) in estimates.INTERVALS.items():
        inside = ((quantiles[:, 0, low] <= targets[:, 0]) & (targets[:, 0] <= quantiles[:, 0, high])).astype(float)
        sums = np.bincount(group, inside - inside.mean())  # rows of one group are not independent
        error = np.sqrt(np.square(sums).sum()) / len(inside)
        row[f"error_{name}"] = float(error * np.sqrt(1 + len(sums) / n_fitted if n_fitted else 1))
    row["width_90"] = float(np.median(quantiles[..., 4] - quantiles[..., 0]))
    row["mae"] = float(np.abs(columns["median"] - targets).mean())
    row["crps"] = float(columns["crps"].mean())
    if "log_prob" in columns:
        is_possible = np.isfinite(columns["log_prob"])
        row["nll"] = -float(columns["log_prob"][is_possible].mean())
        row["impossible"] = int((~is_possible).sum())
    return row


def marginal(train: list[Example], test: list[Example], groups: list[str]) -> Row:
    """The scores of the training targets' distribution, as the prediction for every test row."""
    targets = torch.tensor([[example.y] for example in test], dtype=torch.float64)
    samples = torch.tensor([example.y for example in train], dtype=torch.float64)
    samples = samples.expand(len(test), -1).unsqueeze(-1)  # (N, S, 1)
    values = estimates.summary(samples, samples[..., 0])
    columns = {"quantiles": values["quantiles"], "median": values["median"], "target": targets}
    columns["crps"] = torch.cat(
        [estimates.crps(s, t) for s, t in zip(samples.split(64), targets.split(64), strict=True)]
    )
    return measure({name: tensor.numpy() for name, tensor in columns.items()}, groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--steps", type=int, default=300, help="training steps of each model")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "regress_lm-calibration")
    args = parse_arguments(parser, "regress_lm_calibration.json")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    tasks = {name: TASKS[name](args.data_dir) for name in TASKS}
    machine = facts() | {"threads": torch.get_num_threads()}
    stored = json.loads(args.output.read_text()) if args.output.exists() else []
    for seed in args.seeds:
        for name in args.tables:
            task = tasks[name]
            parts, groups_of = split(task, name, seed)
            rows: list[Row] = []
            path = args.output_dir / f"{name}-seed{seed}.ckpt"
            if not path.exists():
                model, seconds = train(task, parts, seed, args.steps)
                model.save(path)
                took = {"train_cpu_seconds": seconds, "max_steps": args.steps}
                path.with_suffix(".json").write_text(dump_json(took))
            model = RegressLM.load(path)
            about = {"table": name, "seed": seed, **{f"{part}_rows": len(parts[part]) for part in parts}}
            about |= json.loads(path.with_suffix(".json").read_text())
            tests = {name: (parts["test"], groups_of["test"])}
            if name in SHIFTED:
                others, groups_of_others = split(tasks[SHIFTED[name]], SHIFTED[name], seed)
                tests[SHIFTED[name]] = (others["test"], groups_of_others["test"])
            n_fitted = len(set(groups_of["validation"]))
            if model.magnitudes is None:  # a checkpoint of an earlier version
                model.set_magnitudes(model.vocabulary.encode(np.array([[e.y] for e in parts["train"]])))
            for kinds in (["none"], ["temperature", "conformal"]):
                for other, (examples, groups) in tests.items():
                    model.hparams["calibration"] = kinds[-1]
                    model.calibrate(model.batches(parts["validation"], 256))
                    for kind, columns in predicted(model, examples, kinds).items():
                        scores = measure(columns, groups, n_fitted if kind == "conformal" else None)
                        rows.append({**about, "tested_on": other, "calibration": kind, **scores})
                        print(dump_json(rows[-1]), flush=True)
            for other, (examples, groups) in tests.items():
                scores = marginal(parts["train"], examples, groups)
                rows.append({**about, "tested_on": other, "calibration": "training targets", **scores})
            stored = [row for row in stored if (row["table"], row["seed"]) != (name, seed)]
            stored += [{**row, **machine} for row in rows]
            args.output.write_text(dump_json(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
