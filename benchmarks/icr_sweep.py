"""Task diversity on a CPU: the tiny ICR transformer trained on pools of many sizes, for two lengths of training.

    python benchmarks/icr_sweep.py

One sweep per length, all members in one stack, then the distances of every member to the exact estimators: rows in
icr_sweep.json and a figure of the same name. A second call resumes. The paper's setting (D = 8, K = 16, 1.6M
parameters, 500,000 steps) needs a GPU: see the model card.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402

TINY = {
    "D": 4, "K": 8, "sigma2": 0.25, "d_model": 64, "d_mlp": 128, "n_heads": 4, "n_layers": 3, "init_std": 0.1,
    "batch_size": 128, "learning_rate": 4e-3, "warmup_steps": 300, "eval_every": 500, "n_val": 512,
}  # fmt: skip
Row = dict[str, Any]


def study(steps: int, tasks: str, folder: Path, seed: int) -> list[Row]:
    """Train and analyse the members for one number of steps; squared distances per dimension, means over positions."""
    options = TINY | {"tasks": tasks, "num_steps": steps, "output_dir": folder, "seed": seed}
    words = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run([sys.executable, "-m", "zoo.icr.sweep", *words], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "zoo.icr.analysis", "scores", str(folder)], cwd=ROOT, check=True)
    scores = json.loads((folder / "scores.json").read_text())
    exact = {of["M"]: of for of in scores["references"]}

    def distances(errors: Row) -> Row:
        return {
            f"{kind}_{name}": errors[kind][name]["mean"] / TINY["D"]
            for kind in ("true", "pretrain") for name in ("to_ridge", "to_dmmse", "noise_free") if errors[kind][name]
        }  # fmt: skip

    last = {row["M"]: row for row in scores["checkpoints"]}
    return [
        {"M": M, "steps": steps, "seed": seed, **distances(row)}
        | {name: distances(exact[M][name]) for name in ("ridge", "dmmse") if exact[M][name]["true"]["mse"]}
        for M, row in last.items()
    ]


def draw(rows: list[Row], path: Path) -> None:
    """Distance to ridge on new tasks and to dMMSE on tasks of the pool against M, one line per number of steps."""
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    order = [str(row["M"]) for row in rows if row["steps"] == rows[0]["steps"]]
    parts = ("true_to_ridge", "dmmse", "to ridge on new tasks"), ("pretrain_to_dmmse", "ridge", "to dMMSE on its pool")
    for axes, (name, other, title) in zip(panels, parts, strict=True):
        for steps in sorted({row["steps"] for row in rows}):
            some = {str(row["M"]): row[name] for row in rows if row["steps"] == steps and name in row}
            axes.plot([order.index(M) for M in some], list(some.values()), marker=".", label=f"{steps:,} steps")
        reference = {str(row["M"]): row[other][name] for row in rows if name in row.get(other, {})}
        label = {"dmmse": "dMMSE itself", "ridge": "ridge itself"}[other]
        axes.plot([order.index(M) for M in reference], list(reference.values()), "k--", linewidth=1, label=label)
        axes.set(title=f"distance {title}", xlabel="M, tasks in the pool", yscale="log")
        axes.set_xticks(range(len(order)), order, rotation=45)
        axes.legend()
    panels[0].set_ylabel("mean square per dimension")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1500, 6000])
    parser.add_argument("--tasks", default="1,4,16,64,256,1024,4096,16384,inf")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "icr-sweep-benchmark")
    args = parse_arguments(parser, "icr_sweep.json")
    about = facts() | {"threads": torch.get_num_threads()}
    rows = []
    for steps in args.steps:
        rows += study(steps, args.tasks, args.output_dir / str(steps), args.seed)
        args.output.write_text(dump_json([{**row, **about} for row in rows], indent=1) + "\n")
    draw(rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
