"""Helpers of the command-line tests: a micro Llama, `fit` with it, a command as a process, the message of a refusal."""

import os
import subprocess
import sys
from pathlib import Path

from zoo.__main__ import main

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "tiny" / "llama.yaml"
TEXT = "The quick brown fox\njumps over the lazy dog.\n" * 60
MICRO = [
    "--model.dim=16", "--model.n_layers=1", "--model.n_heads=2", "--model.max_seq_len=64", "--model.dropout=0.1",
    "--data.seq_len=16", "--data.batch_size=4", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=2",
    "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", "--throughput.every_n_steps=1",
    "--samples.max_new_tokens=8", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip


def fit(out, text_file, *options, max_steps=4):
    return main(
        ["fit", f"--config={TINY}", *MICRO, f"--data_dir={text_file}", f"--output_dir={out}",
         f"--trainer.max_steps={max_steps}", *map(str, options)]
    )  # fmt: skip


def start(*argv, module="zoo"):
    """A command as a process of its own session, with pipes for its output."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, argv)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def complaint(capsys, code, *argv):
    """The only line on standard error of a command that ends with `code`, except a notice about the warm-up."""
    try:
        got = main([str(a) for a in argv])
    except SystemExit as stop:
        got = stop.code
    err = [line for line in capsys.readouterr().err.splitlines() if line and "reach its peak" not in line]
    assert got == code, err
    assert len(err) == 1, err
    assert err[0].startswith("zoo: ")
    return err[0]
