"""Failures of one of two ranks, which refuses its data or is killed: end of the run; real launchers, gloo, CPU.

Usage:

    python benchmarks/ranks.py [--only "ddp, rank 0"]

"two nodes" are two torchrun agents on 127.0.0.1 with one rank each. A row holds the seconds from the failure (for a
refusal: from the end of its rank) to the end of the last process, the exit codes, the messages, and whether the run
that is started again with the same command has the weights of an uninterrupted one. Rows go to ranks.json.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.commands import free_port  # noqa: E402
from benchmarks.measure import facts, parse_arguments, store  # noqa: E402

STEPS = 200
FIT = [
    "fit", "--config=tiny/llama", "--model.dim=32", "--model.n_layers=2", "--model.n_heads=2", "--data.seq_len=32",
    "--data.batch_size=4", f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=20",
    "--samples.max_new_tokens=0",
    "--trainer.limit_val_batches=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--ckpt_path=auto", "--trainer.strategy=ddp",
]  # fmt: skip


def start(launcher: str, folder: Path, data: Sequence[list[str]] = ([], [])) -> list[subprocess.Popen]:
    """Start a run of two ranks; returns the processes that a user starts.

    Args:
        launcher: "two nodes" or "ddp".
        folder: folder of the run.
        data: further words for each node.
    """
    words = [*FIT, f"--output_dir={folder}"]
    if launcher == "ddp":
        commands = [["-m", "zoo", *words, "--trainer.devices=2"]]
    else:
        address = ["--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
        agent = ["-m", "torch.distributed.run", "--nnodes=2", *address]
        nodes = ["--trainer.devices=1", "--trainer.num_nodes=2"]
        commands = [[*agent, f"--node_rank={n}", "-m", "zoo", *words, *nodes, *data[n]] for n in (0, 1)]
    logs = [folder.with_name(f"{folder.name}-{n}.log") for n in range(len(commands))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stderr=log.open("a"))
        for command, log in zip(commands, logs, strict=True)
    ]


def ranks_of(processes: list[subprocess.Popen], launcher: str) -> list[int]:
    """The numbers of the processes that train: rank 0, rank 1."""
    children = [
        [int(pid) for pid in Path(f"/proc/{p.pid}/task/{p.pid}/children").read_text().split()] for p in processes
    ]
    return [processes[0].pid, children[0][0]] if launcher == "ddp" else [of_agent[0] for of_agent in children]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def try_failure(launcher: str, failure: str, folder: Path, expected: Path) -> dict[str, Any]:
    """One row."""
    run = folder / "-".join((launcher, failure)).replace(" ", "-")
    refuses = failure == "rank 1 refuses its data"
    processes = start(launcher, run, [[], ["--data_dir=missing.txt"]] if refuses else [[], []])
    ranks: list[int] = []
    if refuses:
        while all(process.poll() is None for process in processes):
            if not ranks:
                ranks = ranks_of(processes, launcher) if _have_started(processes, launcher) else []
            time.sleep(0.05)
            if ranks and not all(map(is_alive, ranks)):
                break
    else:
        while not (run / "last.ckpt").exists():
            time.sleep(0.05)
        ranks = ranks_of(processes, launcher)
        os.kill(ranks[int(failure.split()[1])], signal.SIGKILL)
    since = time.monotonic()
    while any(map(is_alive, ranks)):
        time.sleep(0.05)
    seconds = time.monotonic() - since
    codes = [process.wait() for process in processes]
    text = "".join(log.read_text() for log in sorted(folder.glob(f"{run.name}-*.log")))
    messages = [line for line in text.splitlines() if line.startswith("zoo: ")]
    again = [process.wait() for process in start(launcher, run)]
    return {
        "benchmark": f"{launcher}, {failure}", "seconds": seconds, "codes": codes, "messages": messages,
        "resumed": again == [0] * len(again), "same_bits": same_weights(run, expected),
    } | facts()  # fmt: skip


def _have_started(processes: list[subprocess.Popen], launcher: str) -> bool:
    try:
        return len(ranks_of(processes, launcher)) == 2
    except (IndexError, OSError):
        return False


def same_weights(one: Path, other: Path) -> bool:
    states = [torch.load(run / "last.ckpt", weights_only=True) for run in (one, other)]
    same_step = states[0]["global_step"] == states[1]["global_step"] == STEPS
    weights = [state["state_dict"] for state in states]
    return same_step and all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="start of the names of the cases to try (default: all)")
    args = parse_arguments(parser, "ranks.json")
    only = args.only
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for process in start("ddp", folder / "uninterrupted"):
            process.wait()
        cases = [
            ("two nodes", "rank 1 refuses its data"), ("two nodes", "rank 1 is killed"),
            ("two nodes", "rank 0 is killed"), ("ddp", "rank 1 is killed"), ("ddp", "rank 0 is killed"),
        ]  # fmt: skip
        for launcher, failure in [case for case in cases if ", ".join(case).startswith(only)]:
            row = try_failure(launcher, failure, folder, folder / "uninterrupted")
            print(
                {name: row[name] for name in ("benchmark", "seconds", "codes", "messages", "resumed", "same_bits")},
                flush=True,
            )
            store([row], args.output)


if __name__ == "__main__":
    main()
