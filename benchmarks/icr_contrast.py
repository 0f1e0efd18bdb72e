"""The two ICR transformers of `make demo`, M = inf and M = 4, with several seeds, on the test prompts.

    python benchmarks/icr_contrast.py

Rows in results/icr_contrast.json: distances are squares per dimension, means over all places; beside the models, what
stays at 0 and what each exact estimator is.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts  # noqa: E402
from zoo.cli.command_line import ZooCLI  # noqa: E402
from zoo.icr.evaluation import Evaluation  # noqa: E402

Row = dict[str, Any]
ASKED = {"new tasks, from ridge": ("true", "ridge"), "its pool, from dMMSE": ("pretrain", "dmmse")}
OTHERS = {"dMMSE": "dmmse", "ridge": "ridge"}


def beside(M: Any, evaluations: dict[str, Evaluation], D: int) -> list[Row]:
    """The same distances for answers that are no transformer's."""
    answers = {name: {kind: e.answers[key] for kind, e in evaluations.items()} for name, key in OTHERS.items()}
    answers["0"] = {kind: torch.zeros_like(e.prompts.y) for kind, e in evaluations.items()}
    rows = []
    for name, of in answers.items():
        row: Row = {"M": M, "model": name}
        for asked, (kind, best) in ASKED.items():
            distance = (of[kind] - evaluations[kind].answers[best]).square().mean().item() / D
            row |= {asked: distance} if distance == distance else {}  # an infinite pool has no dMMSE: NaN
        rows += [row] if len(row) > 2 else []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    stamp = time.strftime("%Y%m%d-%H%M%S")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / f"icr-contrast-{stamp}")
    args = parser.parse_args()
    about, quiet = facts() | {"threads": torch.get_num_threads()}, "--trainer.enable_progress_bar=false"
    rows: list[Row] = []
    for config in ("icr", "icr_pool"):
        for seed in args.seeds:
            folder = args.output_dir / f"{config}-{seed}"
            argv = [f"--config=configs/tiny/{config}.yaml", f"--seed_everything={seed}", f"--output_dir={folder}"]
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "zoo", "fit", *argv, quiet], cwd=ROOT, check=True)
            seconds = time.perf_counter() - start
            cli = ZooCLI(["test", f"--ckpt_path={folder / 'best.ckpt'}", quiet])
            data, reached = cli.datamodule, cli.trainer.callback_metrics
            near = {asked: reached.get(f"test_{kind}_to_{best}") for asked, (kind, best) in ASKED.items()}
            near = {asked: value.item() / data.D for asked, value in near.items() if value is not None}
            rows.append({"M": data.M, "model": "ICRTransformer", "seed": seed, **near, "seconds": seconds})
        rows += beside(data.M, data.evaluation("test"), data.D)
    path = ROOT / "results" / "icr_contrast.json"
    path.write_text(json.dumps([{**row, **about} for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
