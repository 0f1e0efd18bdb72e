"""The two ICR transformers of `make demo`, M = inf and M = 4, trained with several seeds, on the test prompts.

    python benchmarks/icr_contrast.py

Rows in icr_contrast.json: squared distances per dimension, means over all positions; also those of the
predictor 0 and of the exact estimators.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from zoo.cli.command_line import ZooCLI  # noqa: E402
from zoo.icr.evaluation import EvaluationBatch  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402

Row = dict[str, Any]
DISTANCES = {"new tasks, from ridge": ("true", "ridge"), "its pool, from dMMSE": ("pretrain", "dmmse")}
OTHERS = {"dMMSE": "dmmse", "ridge": "ridge"}


def reference_rows(M: Any, split: EvaluationBatch, D: int) -> list[Row]:
    """The same distances of the exact estimators and of the predictor 0."""
    evaluations = split._asdict()
    answers = {name: {kind: e.answers[key] for kind, e in evaluations.items()} for name, key in OTHERS.items()}
    answers["0"] = {kind: torch.zeros_like(e.prompts.y) for kind, e in evaluations.items()}
    rows = []
    for name, of in answers.items():
        row: Row = {"M": M, "model": name}
        for label, (kind, best) in DISTANCES.items():
            distance = (of[kind] - evaluations[kind].answers[best]).square().mean().item() / D
            row |= {label: distance} if distance == distance else {}  # dMMSE of an infinite pool is NaN
        rows += [row] if len(row) > 2 else []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each training, with a quarter of them as warm-up")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / f"icr-contrast-{stamp}")
    args = parse_arguments(parser, "icr_contrast.json")
    about, quiet = facts() | {"threads": torch.get_num_threads()}, "--trainer.enable_progress_bar=false"
    shorter = [] if args.steps is None else [
        f"--trainer.max_steps={args.steps}", f"--trainer.val_check_interval={args.steps}",
        f"--model.warmup_steps={args.steps // 4}",
    ]  # fmt: skip
    rows: list[Row] = []
    for config in ("icr", "icr_pool"):
        for seed in args.seeds:
            folder = args.output_dir / f"{config}-{seed}"
            argv = [f"--config=configs/tiny/{config}.yaml", f"--seed_everything={seed}", f"--output_dir={folder}"]
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "zoo", "fit", *argv, *shorter, quiet], cwd=ROOT, check=True)
            seconds = time.perf_counter() - start
            cli = ZooCLI(["test", f"--ckpt_path={folder / 'best.ckpt'}", quiet])
            data, reached = cli.datamodule, cli.trainer.callback_metrics
            near = {label: reached.get(f"test_{kind}_to_{best}") for label, (kind, best) in DISTANCES.items()}
            near = {label: value.item() / data.D for label, value in near.items() if value is not None}
            rows.append({"M": data.M, "model": "ICRTransformer", "seed": seed, **near, "seconds": seconds})
        rows += reference_rows(data.M, data.evaluation("test"), data.D)
    args.output.write_text(dump_json([{**row, **about} for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
