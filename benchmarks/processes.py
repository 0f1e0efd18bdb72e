"""Every sharded model on one process, on two with DDP and on two with FSDP2: differences after ten steps, on a CPU.

    python benchmarks/processes.py                      # about five minutes on two cores
    python benchmarks/processes.py --only RegressLM     # one model

Each row is a run of the command line: ten steps from the same weights, each step with the same four samples in the same
order, gradients clipped to norm 0.5, no dropout. `loss` and `weights` are the largest differences from the run of one
process in fp32 with the same optimizer: of the training loss of a step, and of a weight after the last step. Rows are
written to processes.json.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments, store  # noqa: E402
from zoo.files.checkpoints import read_checkpoint  # noqa: E402

STEPS, SAMPLES = 10, 4
COMMON = [
    f"--trainer.max_steps={STEPS}", "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=5",
    "--trainer.limit_val_batches=2", "--trainer.log_every_n_steps=1", "--trainer.gradient_clip_val=0.5",
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--samples.max_new_tokens=0", "--model.dropout=0",
]  # fmt: skip
MODELS = {"LlamaLM": "tiny/llama", "RevDEQLM": "tiny/revdeq", "RegressLM": "tiny/regress_lm"}
WAYS: dict[str, tuple[int, list[str]]] = {  # way -> number of processes, options
    "1 process": (1, []),
    "2 processes, DDP": (2, ["--trainer.strategy=ddp"]),
    "2 processes, FSDP2": (2, ["--trainer.strategy=fsdp2"]),
    "2 processes, FSDP2, bf16-mixed": (2, ["--trainer.strategy=fsdp2", "--trainer.precision=bf16-mixed"]),
}
MUON = {"1 process, Muon": WAYS["1 process"], "2 processes, FSDP2, Muon": WAYS["2 processes, FSDP2"]}


def run(config: str, folder: Path, processes: int, options: list[str]) -> tuple[list[float], dict[str, Any]]:
    """The training loss of each step, and the last weights."""
    argv = [sys.executable, "-m", "zoo", "fit", f"--config={config}", *COMMON, f"--output_dir={folder}",
            f"--trainer.devices={processes}", f"--data.batch_size={SAMPLES // processes}", *options]  # fmt: skip
    subprocess.run(argv, cwd=ROOT, check=True)
    events = EventAccumulator(str(folder))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == STEPS
    return losses, read_checkpoint(folder / "last.ckpt")["state_dict"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=MODELS)
    args = parse_arguments(parser, "processes.json")
    only = args.only
    common = facts()
    with tempfile.TemporaryDirectory() as temporary:
        for model, config in MODELS.items():
            if only not in (None, model):
                continue
            rows = []
            muon = {way: (n, [*o, "--model.optimizer=muon"]) for way, (n, o) in MUON.items()}
            ways = {**WAYS, **(muon if model == "LlamaLM" else {})}
            reference: Any = None
            for number, (way, (processes, options)) in enumerate(ways.items()):
                losses, weights = run(config, Path(temporary) / f"{model}{number}", processes, options)
                row = {"benchmark": f"{model}, {way}", "model": model, "way": way, "last_loss": losses[-1]}
                if processes == 1:
                    reference = losses, weights
                else:
                    row["loss"] = max(abs(a - b) for a, b in zip(losses, reference[0], strict=True))
                    row["weights"] = max((weights[n] - w).abs().max().item() for n, w in reference[1].items())
                rows.append(row | common)
                print(rows[-1], flush=True)
            store(rows, args.output)


if __name__ == "__main__":
    main()
