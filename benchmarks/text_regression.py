"""RegressLM on real tables and texts, compared with baselines: several seeds, one JSON row each.

    python benchmarks/text_regression.py integers                 # y = x, y = 3x - 7 and decimals, by the Python API
    python benchmarks/text_regression.py scan_bench --data_dir DIR      # DIR with train.csv, test.csv
    python benchmarks/text_regression.py vader --data_dir DIR           # DIR with tweets_GroundTruth.txt, amazon...
    python benchmarks/text_regression.py timm --data_dir DIR            # DIR with timm's benchmark-infer-amp-...csv

Each adds its rows to regress_lm_<study>.json, where a row replaces an earlier one of the same task, number of training
rows, model and seed; the runs remain in --output_dir. Other options are passed to `zoo fit`. `vader --pretrain`
pretrains the encoder on all texts first.
"""

import argparse
import csv
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
from zoo.baselines import marginal_nll  # noqa: E402
from zoo.regress_lm import Example, ExampleInput, RegressLM  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402
from zoo.training.random_streams import derive  # noqa: E402
from zoo.training.regression_metrics import scores  # noqa: E402

Row = dict[str, Any]
Table = list[dict[str, str]]
TFIDF = "ridge on TF-IDF of words and pairs"


# ---- y = x and similar tasks, with the Python API and its defaults


def integers(args: argparse.Namespace) -> Iterator[Row]:
    """Upstream's open issue 57: 2,560 training, 640 validation and 2,560 test integers of [-3000, 3000]."""
    x = np.random.default_rng(42).permutation(np.arange(-3000, 3001)).tolist()
    tasks = {
        "y = x": [Example(f"X1: {v}", float(v)) for v in x],
        "y = 3x - 7": [Example(f"X1: {v}", 3.0 * v - 7) for v in x],
        "y = x, one decimal": [Example(f"X1: {v / 10}", v / 10) for v in x],
    }
    for name, examples in tasks.items():
        train, held_out, test = examples[:2560], examples[2560:3200], examples[3200:5760]
        for seed in args.seeds:
            start = time.perf_counter()
            model = RegressLM.from_scratch(seed=seed)
            losses = model.fine_tune(train, held_out, seed=seed, progress=False)
            seconds = time.perf_counter() - start
            targets = np.array([example.y for example in test])
            greedy = np.concatenate(model.sample([ExampleInput(e.x) for e in test], 1, temperature=0))
            ids = [model.vocabulary.encode(np.array([[e.y] for e in part])).numpy() for part in (train, test)]
            yield {
                "task": name,
                "model": "RegressLM",
                "seed": seed,
                "exact": float((greedy == targets).mean()),
                "mae": float(np.abs(greedy - targets).mean()),
                "nll": -model.log_prob(test).mean().item(),
                "marginal_nll": marginal_nll(*ids, model.vocabulary.size),
                "entropy": float(np.log(len(x))),  # of the uniform distribution of the integers
                "epochs": len(losses),
                "seconds": seconds,
                "parameters": sum(p.numel() for p in model.parameters()),
            }


# ---- tables and texts, with the command line


def study(args: argparse.Namespace, name: str, folder: Path, data: Path, seed: int, *others: str) -> tuple[Path, Row]:
    """Train configs/<name>/regress_lm.yaml on `data`; returns the best checkpoint, and the seconds and steps.

    `others` are more options of the command line.
    """
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    config = ROOT / "configs" / name / "regress_lm.yaml"
    argv = [f"--config={config}", f"--data_dir={data}", f"--seed_everything={seed}", f"--output_dir={folder}"]
    subprocess.run([sys.executable, "-m", "zoo", "fit", *argv, *others, *args.options], cwd=ROOT, check=True)
    best = folder / "best.ckpt"
    seconds = time.perf_counter() - start
    cpu_seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used
    return best, {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "steps": torch.load(best, weights_only=True, mmap=True)["global_step"],
    }


def test(checkpoint: Path, data: Path, *others: str) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """The metrics of `zoo test` for the checkpoint on the data's test split, the predictions and the targets.

    `others` are more options of the command line.
    """
    from lightning.pytorch import Callback

    from zoo.cli.command_line import ZooCLI

    class Keep(Callback):
        def __init__(self) -> None:
            self.columns: list[tuple[np.ndarray, np.ndarray]] = []

        def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            self.columns.append((outputs["prediction"].cpu().numpy()[:, 0], outputs["target"].cpu().numpy()[:, 0]))

    keep = Keep()
    options = [f"--ckpt_path={checkpoint}", f"--data_dir={data}", "--trainer.enable_progress_bar=false", *others]
    cli = ZooCLI(["test", *options], callbacks=[keep])
    logged = {name.removeprefix("test_"): value.item() for name, value in cli.trainer.callback_metrics.items()}
    predictions, targets = (np.concatenate(column) for column in zip(*keep.columns, strict=True))
    return logged, predictions, targets


def read(path: Path) -> Table:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(folder: Path, **splits: Table) -> Path:
    """Write a CSV file for each split into `folder`, as `TextRegression` reads it; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)
    return folder


def matrix(table: Table, columns: list[str]) -> np.ndarray:
    """(N, F) the named columns as numbers, NaN where a cell is empty."""
    return np.array([[float(row[column] or "nan") for column in columns] for row in table])


def forest(train: Table, test: Table, inputs: list[str], target: str, seed: int, log: bool = False) -> np.ndarray:
    """Predictions of a random forest of 300 trees for the test rows."""
    from sklearn.ensemble import RandomForestRegressor

    y = matrix(train, [target])[:, 0]
    model = RandomForestRegressor(300, n_jobs=-1, random_state=seed).fit(matrix(train, inputs), np.log(y) if log else y)
    predictions = model.predict(matrix(test, inputs))
    return np.exp(predictions) if log else predictions


def one_objective(predictions: np.ndarray, targets: np.ndarray) -> Row:
    """The scores of one objective."""
    return scores(predictions[:, None], targets[:, None])


SCAN_INPUTS = [
    *("d_model", "n_layers", "n_heads", "weight_decay", "beta1", "beta2", "cooldown_steps", "lr"),
    *("global_batch_size", "final_step", "micro_batch_size", "current_lr", "tokens_so_far", "eval_step", "n_param"),
]


def scan_bench(args: argparse.Namespace) -> Iterator[Row]:
    """Losses of training runs from their settings; all rows, and 500 and 100 of them."""
    full, held_out = (read(args.data_dir / f"{split}.csv") for split in ("train", "test"))
    target = matrix(held_out, ["valid_loss"])[:, 0]
    for rows in args.rows:
        rows = min(rows, len(full))
        for seed in args.seeds:
            order = np.random.default_rng(derive(seed, "rows")).permutation(len(full))[:rows]
            train = full if rows == len(full) else [full[i] for i in sorted(order)]
            name = f"{rows}-seed{seed}"
            data = write(args.output_dir / "data" / name, train=train, test=held_out)
            about = {"rows": rows, "seed": seed}
            checkpoint, took = study(args, "scan_bench", args.output_dir / name, data, seed)
            logged, _, _ = test(checkpoint, data)
            yield {"model": "RegressLM", **about, **logged, **took}
            predictions = forest(train, held_out, SCAN_INPUTS, "valid_loss", seed)
            yield {"model": "random forest, 15 numbers", **about, **one_objective(predictions, target)}
        median = np.full(len(target), np.median(matrix(train, ["valid_loss"])))
        yield {"model": "median", "rows": rows, **one_objective(median, target)}


def vader_splits(args: argparse.Namespace) -> dict[str, dict[str, Table]]:
    """Tweets and Amazon reviews with their moods from -4 to 4; a fifth of each held out, by review."""
    splits: dict[str, dict[str, Table]] = {}
    for name, file in (("tweets", "tweets_GroundTruth.txt"), ("amazon", "amazonReviewSnippets_GroundTruth.txt")):
        lines = [line.split("\t", 2) for line in (args.data_dir / file).read_text(encoding="utf-8").splitlines()]
        groups = sorted({number.split("_")[0] for number, _, _ in lines})
        held_out = set(np.random.default_rng(derive(0, name)).permutation(groups)[: len(groups) // 5].tolist())
        table = [{"review": number.split("_")[0], "text": text, "sentiment": y} for number, y, text in lines]
        splits[name] = {
            "train": [row for row in table if row["review"] not in held_out],
            "test": [row for row in table if row["review"] in held_out],
        }
    return splits


def texts_and_moods(table: Table) -> tuple[list[str], np.ndarray]:
    """(N,) texts and their targets."""
    return [row["text"] for row in table], matrix(table, ["sentiment"])[:, 0]


def tfidf_ridge(texts: list[str], y: np.ndarray) -> Any:
    """Ridge regression on TF-IDF of words and pairs of words, fitted on texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_pipeline(vectors, RidgeCV(alphas=np.logspace(-1, 2, 7))).fit(texts, y)


def unlabelled_texts(args: argparse.Namespace, splits: dict[str, dict[str, Table]]) -> Path:
    """A file of the training texts of all `splits`, and of movie reviews, without any text of a test split."""
    movies = (args.data_dir / "movieReviewSnippets_GroundTruth.txt").read_text(encoding="utf-8").splitlines()
    texts = [row["text"] for tables in splits.values() for row in tables["train"]]
    texts += [line.split("\t", 2)[2] for line in movies]
    held_out = {row["text"] for tables in splits.values() for row in tables["test"]}
    file = args.output_dir / "data" / "unlabelled.txt"
    file.write_text("\n".join(text for text in texts if text not in held_out) + "\n", encoding="utf-8")
    return file


def vader(args: argparse.Namespace) -> Iterator[Row]:
    """Sentiment from -4 to 4, from scratch: tweets and Amazon reviews, each tested on both."""
    splits = vader_splits(args)
    folders = {name: write(args.output_dir / "data" / name, **tables) for name, tables in splits.items()}
    name, more = "RegressLM", []
    if args.pretrain:
        file = unlabelled_texts(args, splits)
        n_texts = len(file.read_text(encoding="utf-8").splitlines())
        name, more = f"RegressLM, encoder pretrained on {n_texts:,} texts", [f"--data.unlabelled={file}"]
    for source, tables in splits.items():
        texts, y = texts_and_moods(tables["train"])
        ridge = None if args.pretrain else tfidf_ridge(texts, y)
        for other, others in splits.items() if ridge else ():
            held_out, target = texts_and_moods(others["test"])
            about = {"trained_on": source, "tested_on": other}
            yield {"model": TFIDF, **about, **one_objective(ridge.predict(held_out), target)}
            yield {"model": "median", **about, **one_objective(np.full(len(target), np.median(y)), target)}
        for seed in args.seeds:
            checkpoint, took = study(
                args, "vader", args.output_dir / f"{source}-seed{seed}", folders[source], seed, *more
            )
            for other in splits:
                logged, _, _ = test(checkpoint, folders[other])
                yield {"model": name, "trained_on": source, "tested_on": other, "seed": seed, **logged, **took}


def timm(args: argparse.Namespace) -> Iterator[Row]:
    """Images per second of timm's models on an RTX 3090 in fp16; a fifth of the models held out."""
    table = read(args.data_dir / "benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv")
    names = sorted({row["model"] for row in table})
    held_out = set(np.random.default_rng(derive(0, "timm")).permutation(names)[: len(names) // 5].tolist())
    dropped = {"infer_step_time"}  # another name of the target
    table = [{k: v for k, v in row.items() if k not in dropped} for row in table]
    train, rest = ([row for row in table if (row["model"] in held_out) == side] for side in (False, True))
    data = write(args.output_dir / "data", train=train, test=rest)
    target = matrix(rest, ["infer_samples_per_sec"])[:, 0]
    inputs = ["infer_img_size", "infer_batch_size", "param_count", "infer_gmacs", "infer_macts"]

    def on_log_scale(predictions: np.ndarray) -> Row:
        plain, log = one_objective(predictions, target), one_objective(np.log10(predictions), np.log10(target))
        return plain | {"log10_mae": log["mae"], "log10_pearson": log["pearson"]}

    for seed in args.seeds:
        checkpoint, took = study(args, "timm", args.output_dir / f"seed{seed}", data, seed)
        logged, predictions, _ = test(checkpoint, data)
        yield {"model": "RegressLM", "seed": seed, **logged, **on_log_scale(predictions), **took}
        predictions = forest(train, rest, inputs, "infer_samples_per_sec", seed, log=True)
        yield {"model": "random forest, 5 numbers", "seed": seed, **on_log_scale(predictions)}
    median = np.full(len(target), np.median(matrix(train, ["infer_samples_per_sec"])))
    yield {"model": "median", **on_log_scale(median)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = {run.__name__: run for run in (integers, scan_bench, vader, timm)}
    parser.add_argument("study", choices=studies)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=[10**9], help="scan_bench: training rows (default: all)")
    parser.add_argument(
        "--pretrain", action="store_true", help="vader: pretrain the encoder on the texts of all sources"
    )
    parser.add_argument("--output_dir", type=Path)
    args = parse_arguments(parser, "regress_lm_{study}.json", passes_on=True)
    args.output_dir = (args.output_dir or ROOT / "runs" / f"regress_lm-{args.study}").resolve()
    about = facts() | {"threads": torch.get_num_threads()}
    for row in studies[args.study](args):
        row = {name: value for name, value in row.items() if not isinstance(value, float) or np.isfinite(value)}
        print(dump_json({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        merge_row(args.output, {**row, **about})


def merge_row(path: Path, row: Row) -> None:
    """Add a row to the list in a JSON file, in place of an earlier row with the same key."""
    earlier = json.loads(path.read_text()) if path.exists() else []
    rows = {row_key(old): old for old in earlier} | {row_key(row): row}
    path.write_text(dump_json(list(rows.values()), indent=1) + "\n")


def row_key(row: Row) -> str:
    """The key of a row; a new row replaces an old one with the same key."""
    return repr([row.get(name) for name in ("task", "rows", "trained_on", "tested_on", "model", "seed")])


if __name__ == "__main__":
    main()
