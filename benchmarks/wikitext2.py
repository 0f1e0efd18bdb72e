"""Perplexity of the Llama on WikiText-2, for several seeds, compared with n-gram models on the same tokens.

    python benchmarks/wikitext2.py --data_dir wikitext-2/    # a folder with train.txt, valid.txt, test.txt

Writes llama_wikitext2.json (a row per model) and results/llama_wikitext2.png (validation perplexity over
training). The folders of the runs remain in --output_dir, for TensorBoard.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from zoo.baselines import NGram  # noqa: E402
from zoo.cli.command_line import ZooCLI  # noqa: E402
from zoo.datamodules import TextLM  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402

CONFIG = ROOT / "configs" / "wikitext2" / "llama.yaml"
N_GRAMS = {"unigram": 1, "Kneser-Ney bigram": 2, "Kneser-Ney trigram": 3, "Kneser-Ney 5-gram": 5}
Row = dict[str, Any]


def perplexities(loss: float, data: TextLM, split: str) -> Row:
    """Per-token and per-word perplexity of a loss in nats per token."""
    stats = data.stats(split)
    scored = stats["tokens"] - 1  # the first token of a split is not predicted
    return {f"{split}_ppl": math.exp(loss), f"{split}_word_ppl": math.exp(loss * scored / stats["words"])}


def n_gram_rows(data: TextLM) -> list[Row]:
    """One row for each n-gram model."""
    rows = []
    for name, order in N_GRAMS.items():
        start = time.perf_counter()
        model = NGram(data.tokens("train"), data.vocab_size, order)
        losses = {split: model.nll(data.tokens(split)) for split in ("val", "test")}
        seconds = time.perf_counter() - start
        scores = {k: v for split, loss in losses.items() for k, v in perplexities(loss, data, split).items()}
        rows.append({"model": name, **scores, "seconds": seconds})
    return rows


def train(config: Path, seed: int, data_dir: Path, folder: Path, options: list[str]) -> Row:
    """Train with one seed through the command line, and measure its best checkpoint on the complete splits."""
    argv = [f"--config={config}", f"--data_dir={data_dir}", f"--seed_everything={seed}", f"--output_dir={folder}"]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "zoo", "fit", *argv, *options], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)  # the peak memory of this child process
    if status:
        raise subprocess.CalledProcessError(status, "zoo fit")
    seconds = time.perf_counter() - start
    scores = {}
    for verb, split in (("validate", "val"), ("test", "test")):
        cli = ZooCLI([verb, f"--ckpt_path={folder / 'best.ckpt'}", "--trainer.enable_progress_bar=false"])
        scores |= perplexities(cli.trainer.callback_metrics[f"{split}_loss"].item(), cli.datamodule, split)
    step = torch.load(folder / "best.ckpt", weights_only=True, mmap=True)["global_step"]
    parameters = sum(p.numel() for p in cli.model.parameters())
    about = {"seconds": seconds, "steps": step, "parameters": parameters, "peak_MB": usage.ru_maxrss / 1024}
    return {"model": f"{type(cli.model).__name__}, seed {seed}", "seed": seed, **scores, **about}


def plot(folders: list[Path], data: TextLM, path: Path) -> None:
    """Plot validation perplexity during training, a line per seed, and that of n-gram models on the same tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = yaml.safe_load(CONFIG.read_text())
    # Tokens in the validation batches that training evaluates.
    scored = settings["trainer"]["limit_val_batches"] * data.batch_size * data.seq_len
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for folder in folders:
        points = EventAccumulator(str(folder)).Reload().Scalars("val/ppl")
        axes.plot([p.step for p in points], [p.value for p in points], "o-", label=f"Llama, {folder.name}")
    for shade, order in (("0.75", 2), ("0.5", 3), ("0.25", 5)):
        level = math.exp(NGram(data.tokens("train"), data.vocab_size, order).nll(data.tokens("val")[: scored + 1]))
        axes.axhline(level, color=shade, linestyle="--", label=f"Kneser-Ney, order {order}")
    axes.set(xlabel="optimizer steps", ylabel=f"perplexity of the first {scored:,} validation tokens")
    axes.set_title("WikiText-2, BPE of 4,096 tokens")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="WikiText-2's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "wikitext2-llama")
    parser.add_argument("options", nargs="*", help="further options of `zoo fit`, after --")
    args = parse_arguments(parser, "llama_wikitext2.json")
    about = facts()
    folders = [args.output_dir / f"seed {seed}" for seed in args.seeds]
    runs = zip(args.seeds, folders, strict=True)
    rows = [train(CONFIG, seed, args.data_dir.resolve(), folder, args.options) for seed, folder in runs]
    names = ("val_ppl", "val_word_ppl", "test_ppl", "test_word_ppl", "seconds")
    mean = {name: statistics.mean(row[name] for row in rows) for name in names}
    spread = {f"{name}_sd": statistics.stdev(row[name] for row in rows) for name in names[:-1]}
    rows.append({"model": f"LlamaLM, mean of {len(rows)} seeds", **mean, **spread, "parameters": rows[0]["parameters"]})
    data = ZooCLI(["validate", f"--ckpt_path={folders[0] / 'best.ckpt'}", "--trainer.fast_dev_run=1"]).datamodule
    rows += n_gram_rows(data)
    tokens = {split: data.stats(split)["tokens"] for split in ("train", "val", "test")}
    about |= {"tokens_per_split": tokens, "threads": torch.get_num_threads()}
    path = args.output
    path.write_text(dump_json([{**row, **about} for row in rows], indent=1) + "\n")
    plot(folders, data, path.with_suffix(".png"))
    for row in rows:
        print(f"{row['model']:<24} val {row['val_ppl']:7.2f} test {row['test_ppl']:7.2f} per token")


if __name__ == "__main__":
    main()
