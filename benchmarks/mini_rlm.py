"""MiniRLM on 2,000 synthetic configurations: three encoders, several seeds, and baselines for comparison.

    python benchmarks/mini_rlm.py

Trains each model with `zoo fit`, evaluates its best checkpoint with `zoo test` on the 400 test rows and on rows outside
the training ranges, and writes mini_rlm.json (a row per model). The baselines are fitted to training and
validation rows together. The runs remain in --output_dir, for TensorBoard.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, RobustScaler, StandardScaler

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from zoo.cli.command_line import ZooCLI  # noqa: E402
from zoo.datamodules.synthetic_configs import ELSEWHERE, SyntheticConfigs  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402
from zoo.training.regression_metrics import scores  # noqa: E402

CONFIG = ROOT / "configs" / "mini_rlm.yaml"
SCORES = ("mae", "median_error", "spearman", "r2")
Row = dict[str, Any]

# The settings of the original tutorial script, except that the zoo does not truncate texts to 50 characters.
ORIGINAL_SETTINGS = [
    "--model.pooling=last", "--model.bidirectional=false", "--model.n_layers=1", "--model.dim=32", "--model.dropout=0",
    "--model.readout_dim=0", "--model.target_scale=raw", "--model.loss=mse", "--model.lr=1e-3",
    "--model.warmup_steps=1", "--model.min_lr_ratio=1", "--model.weight_decay=0", "--data.batch_size=1440",
    "--trainer.max_steps=5", "--trainer.val_check_interval=5", "--trainer.log_every_n_steps=1",
    "--trainer.gradient_clip_val=null",
]  # fmt: skip


def overlay(encoder: str) -> list[str]:
    """Options of `zoo fit` for an encoder."""
    return [] if encoder == "lstm" else [f"--config={CONFIG.with_stem(f'mini_rlm_{encoder}')}"]


def train(name: str, folder: Path, *options: str) -> Row:
    """Train with `zoo fit`; evaluate the best checkpoint on the test rows and outside the training ranges."""
    argv = [f"--config={CONFIG}", *options, f"--output_dir={folder}", "--trainer.enable_progress_bar=false"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "zoo", "fit", *argv], cwd=ROOT, check=True)
    seconds = time.perf_counter() - start
    results = {}
    for test_on in ("same", *ELSEWHERE):
        alone = [f"--ckpt_path={folder / 'best.ckpt'}", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
        cli = ZooCLI(["test", *alone, f"--data.test_on={test_on}"])
        metrics = {score: cli.trainer.callback_metrics[f"test_{score}"].item() for score in SCORES}
        results |= metrics if test_on == "same" else {f"on_{test_on}": metrics}
    parameters = sum(p.numel() for p in cli.model.parameters())
    return {"model": name, **results, "seconds": seconds, "parameters": parameters}


def mean(name: str, runs: list[Row]) -> Row:
    """Mean of the rows of several seeds, with the standard deviation of each score."""
    row: Row = {"model": name, "parameters": runs[0]["parameters"], "seconds": np.mean([r["seconds"] for r in runs])}
    row |= {s: np.mean([r[s] for r in runs]) for s in SCORES}
    row |= {f"{s}_sd": np.std([r[s] for r in runs], ddof=1) for s in SCORES} if len(runs) > 1 else {}
    for key in (f"on_{test_on}" for test_on in ELSEWHERE):
        row[key] = {s: np.mean([r[key][s] for r in runs]) for s in SCORES}
    return row


def learner(model: Any) -> Any:
    """A scikit-learn model of the targets' asinh; cross-validation chooses between two units."""
    scale = make_pipeline(RobustScaler(), FunctionTransformer(np.arcsinh, np.sinh))
    units = {"transformer__robustscaler__quantile_range": [(25.0, 75.0), (5.0, 95.0)]}
    regressor = TransformedTargetRegressor(model, transformer=scale)
    return GridSearchCV(regressor, units, scoring="neg_median_absolute_error")


def baselines() -> list[Row]:
    """Rows of the formula, of the median, and of models trained on the numbers or on the text."""
    data = {test_on: SyntheticConfigs(test_on=test_on) for test_on in ("same", *ELSEWHERE)}
    ridge, numbers, texts = RidgeCV(np.logspace(-3, 3, 13)), SyntheticConfigs.configs, SyntheticConfigs.texts
    ngrams = TfidfVectorizer(analyzer="char", ngram_range=(1, 5), lowercase=False)
    learners: dict[str, tuple[Any, Callable[[SyntheticConfigs, str], Any]]] = {
        "the formula itself": (None, SyntheticConfigs.oracle),
        "the training rows' median": (DummyRegressor(strategy="median"), numbers),
        "ridge, numbers": (learner(make_pipeline(StandardScaler(), ridge)), numbers),
        "gradient boosting, numbers": (learner(HistGradientBoostingRegressor(random_state=0)), numbers),
        "random forest, numbers": (learner(RandomForestRegressor(200, random_state=0)), numbers),
        "ridge, character n-grams": (learner(make_pipeline(ngrams, ridge)), texts),
    }
    rows = []
    for name, (model, inputs) in learners.items():
        start = time.perf_counter()
        if model:
            columns = partial(inputs, data["same"]), data["same"].targets
            x, targets = ([*column("train"), *column("val")] for column in columns)
            model.fit(x, np.concatenate(targets))
        row: Row = {"model": name, "seconds": time.perf_counter() - start}
        for test_on, d in data.items():
            predictions = model.predict(inputs(d, "test"))[:, None] if model else inputs(d, "test")
            metrics = scores(predictions, d.targets("test"))
            finite = {s: None if np.isnan(metrics[s]) else metrics[s] for s in SCORES}
            row |= finite if test_on == "same" else {f"on_{test_on}": finite}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--encoders", nargs="+", default=["lstm", "transformer", "mlp"])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "mini_rlm-benchmark")
    args = parse_arguments(parser, "mini_rlm.json")
    about = facts() | {"threads": torch.get_num_threads()}
    rows = []
    for encoder in args.encoders:
        of = {seed: [*overlay(encoder), f"--seed_everything={seed}"] for seed in args.seeds}
        runs = [train(f"{encoder}, seed {s}", args.output_dir / f"{encoder} {s}", *of[s]) for s in args.seeds]
        rows += [*runs, mean(f"{encoder}, mean of {len(runs)} seeds", runs)]
    other = {"lstm, rows of draw 1": ["--data.rows_seed=1"], "lstm, rows of draw 2": ["--data.rows_seed=2"]}
    other["lstm, the script's settings"] = ORIGINAL_SETTINGS
    if "lstm" in args.encoders:
        rows += [train(name, args.output_dir / name, *options) for name, options in other.items()]
    rows += baselines()
    args.output.write_text(dump_json([{**row, **about} for row in rows], indent=1) + "\n")
    for row in rows:
        print(f"{row['model']:<32} Spearman {row['spearman'] or 0:.4f}, median error {row['median_error']:6.2f}")


if __name__ == "__main__":
    main()
