"""RevDEQ and a Llama with the same number of parameters on WikiText-2: equal steps and tokens, several seeds.

    python benchmarks/revdeq_wikitext2.py --data_dir wikitext-2/    # a folder with train.txt, valid.txt, test.txt

Both are trained with their configs in configs/wikitext2, the Llama reduced to RevDEQ's size. Rows are written to
revdeq_wikitext2.json; the runs remain in --output_dir.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, in_turn, parse_arguments  # noqa: E402
from benchmarks.wikitext2 import N_GRAMS, n_gram_rows, train  # noqa: E402
from zoo.cli.command_line import ZooCLI  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402

CONFIGS = ROOT / "configs" / "wikitext2"
STEPS = ["--trainer.max_steps=600", "--trainer.val_check_interval=200", "--model.warmup_steps=100"]
STEPS_TO_REST = (1, 2, 4, 8, 16, 32)
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--samples.max_new_tokens=0"]
# Name of the row -> config, options, number of blocks or layers that a token passes through.
MODELS = {
    "RevDEQ-post_norm": ("revdeq.yaml", ["--model.block=post_norm"], 8),
    "RevDEQ-paper": ("revdeq.yaml", ["--model.block=paper"], 8),
    "Llama": ("llama.yaml", ["--model.dim=128", "--model.hidden_dim=288"], 4),
}


def residuals(checkpoint: Path) -> dict[str, list[float]]:
    """Relative residual after N steps on the first validation batch, and the perplexity with that state."""
    cli = ZooCLI(["validate", f"--ckpt_path={checkpoint}", "--trainer.fast_dev_run=1"])
    model = cli.model.model.eval()
    inputs, targets = next(iter(cli.datamodule.val_dataloader()))[:2]
    result: dict[str, list[float]] = {"N": list(STEPS_TO_REST), "residual": [], "batch_ppl": []}
    with torch.no_grad():
        for steps in STEPS_TO_REST:
            solution = model.solve(inputs, max_steps=steps)
            result["residual"].append(solution.residual.mean().item())
            result["batch_ppl"].append(model.loss(inputs, targets, solution).exp().item())
    return result


def step_seconds(checkpoints: dict[str, Path]) -> dict[str, float]:
    """Seconds of forward and backward pass of a training step under bf16 autocast, the models measured alternately."""

    def step(checkpoint: Path) -> Callable[[], None]:
        model = ZooCLI(["validate", f"--ckpt_path={checkpoint}", "--trainer.fast_dev_run=1"]).model.model.train()
        tokens = torch.randint(model.config.vocab_size, (8, 257))

        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            loss.backward()

        return run

    return in_turn({name: step(checkpoint) for name, checkpoint in checkpoints.items()}, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="WikiText-2's folder")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), help="models to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "wikitext2-revdeq")
    args = parse_arguments(parser, "revdeq_wikitext2.json")
    path = args.output
    about = facts() | {"threads": torch.get_num_threads()}
    again = [*args.models, *N_GRAMS]
    rows = [r for r in json.loads(path.read_text()) if r["model"] not in again] if path.exists() else []
    for name in args.models:
        config, sizes, evaluations = MODELS[name]
        for seed in args.seeds:
            folder = args.output_dir / f"{name}-{seed}"
            row = train(CONFIGS / config, seed, args.data_dir.resolve(), folder, [*STEPS, *QUIET, *sizes])
            row |= {"model": name, "evaluations": evaluations, "million_parameters": row["parameters"] / 1e6}
            if config == "revdeq.yaml":
                row |= residuals(folder / "best.ckpt")
            rows.append(row | about)
            path.write_text(dump_json(rows, indent=1) + "\n")
            print(f"{name}, seed {seed}: val {row['val_ppl']:.2f}, test {row['test_ppl']:.2f}", flush=True)
    trained = {name: args.output_dir / f"{name}-{args.seeds[0]}" / "best.ckpt" for name in MODELS}
    trained = {name: checkpoint for name, checkpoint in trained.items() if checkpoint.exists()}
    seconds = step_seconds(trained)
    rows = [row | {"step_seconds": seconds[row["model"]]} if row["model"] in seconds else row for row in rows]
    last = [*trained.values()][-1]
    data = ZooCLI(["validate", f"--ckpt_path={last}", "--trainer.fast_dev_run=1"]).datamodule
    rows += [row | about for row in n_gram_rows(data)]
    path.write_text(dump_json(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
