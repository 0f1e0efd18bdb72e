"""Validation loss of the tiny RevDEQ trained with reversible gradients and by unrolling, with equal steps and seeds.

    python benchmarks/revdeq_tiny.py [--seeds 0 1 2]

Both blocks, with configs/tiny/revdeq.yaml, and n-gram models of the same bytes. Rows are written to
revdeq_tiny.json.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from zoo.baselines import NGram  # noqa: E402
from zoo.cli.command_line import ZooCLI  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402

CONFIG = ROOT / "configs" / "tiny" / "revdeq.yaml"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def train(block: str, backward: str, seed: int, folder: Path) -> tuple[dict[str, Any], Any]:
    """Train once: (validation loss in nats per byte over the whole split, the data module)."""
    argv = [f"--config={CONFIG}", f"--output_dir={folder}", f"--seed_everything={seed}", *QUIET]
    start = time.perf_counter()
    ZooCLI(["fit", *argv, f"--model.block={block}", f"--model.backward={backward}", "--samples.max_new_tokens=0"])
    seconds = time.perf_counter() - start
    cli = ZooCLI(["validate", f"--ckpt_path={folder / 'best.ckpt'}", QUIET[0]])
    loss = cli.trainer.callback_metrics["val_loss"].item()
    about = {"block": block, "model": f"trained {backward}", "seed": seed}
    return {**about, "nats": loss, "seconds": seconds}, cli.datamodule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parse_arguments(parser, "revdeq_tiny.json")
    torch.set_num_threads(args.threads)
    about, rows = facts() | {"threads": args.threads}, []
    with tempfile.TemporaryDirectory() as folder:
        for block in ("post_norm", "paper"):
            for seed in args.seeds:
                for backward in ("reversible", "unroll"):
                    row, data = train(block, backward, seed, Path(folder) / f"{block}-{backward}-{seed}")
                    rows.append(row)
                    print(row, flush=True)
    for name, order in (("unigram", 1), ("Kneser-Ney trigram", 3)):
        nats = NGram(data.tokens("train"), data.vocab_size, order).nll(data.tokens("val"))
        rows.append({"block": "", "model": name, "nats": nats})
    args.output.write_text(dump_json([row | about for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
