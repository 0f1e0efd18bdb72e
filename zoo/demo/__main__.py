"""`make demo`: train every model on its embedded default, and print what each reached beside its baseline.

    python -m zoo.demo [--output_dir DIR] [config ...]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from zoo.baselines.baselines import NGram, bag_of_words
from zoo.cli.command_line import ZooCLI
from zoo.cli.overview import ROOT
from zoo.console.table import table
from zoo.icr import ICRTransformer
from zoo.llama import LlamaClassifier
from zoo.training.language_model import LanguageModel


def language_row(cli: ZooCLI) -> dict[str, str]:
    """Validation loss of a language model beside two counting models on the very same tokens."""
    data = cli.datamodule
    train, held_out = data.tokens("train"), data.tokens("val")
    unigram, trigram = (NGram(train, data.vocab_size, order).nll(held_out) for order in (1, 3))
    return {
        "metric": f"val nats/token {cli.trainer.callback_metrics['val_loss'].item():.3f}",
        "baseline": f"unigram {unigram:.3f}, Kneser-Ney trigram {trigram:.3f}",
    }


def regression_row(cli: ZooCLI) -> dict[str, str]:
    """Validation error of a regression model beside that of the training targets' median."""
    data = cli.datamodule
    error = np.abs(data.targets("val") - np.median(data.targets("train"), axis=0)).mean()
    metrics = cli.trainer.callback_metrics
    return {
        "metric": f"val MAE {metrics['val_mae'].item():.4g}, Spearman {metrics['val_spearman'].item():.3f}",
        "baseline": f"the median's MAE {error:.4g}",
    }


def icr_row(cli: ZooCLI) -> dict[str, str]:
    """Distances to the best estimators per dimension: to ridge on new tasks, to dMMSE on those of the pool."""
    reached, data, model = cli.trainer.callback_metrics, cli.datamodule, cli.model
    assert isinstance(model, ICRTransformer)
    ours, zero = [], []
    for kind, best in (("true", "ridge"), ("pretrain", "dmmse")):
        if (name := f"val_{kind}_to_{best}") in reached:
            where = "ridge on new tasks" if best == "ridge" else "dMMSE on its pool"
            ours.append(f"{reached[name].item() / model.config.D:.3f} from {where}")
            zero.append(f"{getattr(data.evaluation('val'), kind).answers[best].square().mean() / model.config.D:.3f}")
    return {"metric": f"M = {model.config.M}: {', '.join(ours)}", "baseline": f"answering 0: {', '.join(zero)}"}


def classifier_row(cli: ZooCLI) -> dict[str, str]:
    """Validation accuracy of a classifier beside those of the commonest class and of a bag of words."""
    data = cli.datamodule
    train, held_out = ((data.texts(split), data.targets(split)[:, 0].astype(int)) for split in ("train", "val"))
    bag, _ = bag_of_words("logistic regression", *train, held_out)
    commonest = np.mean(held_out[1] == np.bincount(train[1]).argmax())
    return {
        "metric": f"val accuracy {cli.trainer.callback_metrics['val_accuracy'].item():.3f}",
        "baseline": f"the commonest class {commonest:.3f}, words and pairs of words {bag.score(*held_out):.3f}",
    }


def row_of(cli: ZooCLI) -> dict[str, str]:
    if isinstance(cli.model, LanguageModel):
        return language_row(cli)
    if isinstance(cli.model, LlamaClassifier):
        return classifier_row(cli)
    return icr_row(cli) if isinstance(cli.model, ICRTransformer) else regression_row(cli)


def run(config: Path, output_dir: Path) -> dict[str, str]:
    """Train one config, evaluate its best checkpoint on the whole validation split, and describe the result."""
    print(f"\n{config}", file=sys.stderr)
    start = time.perf_counter()
    folder = output_dir / config.stem
    ZooCLI(["fit", f"--config={config}", f"--output_dir={folder}"])
    seconds = time.perf_counter() - start
    cli = ZooCLI(["validate", f"--ckpt_path={folder / 'best.ckpt'}", "--trainer.enable_progress_bar=false"])
    parameters = sum(p.numel() for p in cli.model.parameters())
    return {
        "model": type(cli.model).__name__,
        "parameters": f"{parameters:,}",
        **row_of(cli),
        "seconds": f"{seconds:.0f}",
    }


def main() -> None:
    """Train the named configs, or all of configs/tiny, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m zoo.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("configs", nargs="*", type=Path, default=sorted((ROOT / "configs" / "tiny").glob("*.yaml")))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    parser.add_argument("--output_dir", type=Path, default=Path("runs") / f"demo-{stamp}")
    args = parser.parse_args()
    rows = [run(config, args.output_dir) for config in args.configs]
    print("\n" + table(rows))
    print(f"\nThe runs are in {args.output_dir}; `make tensorboard` shows them.")
    for plot in sorted(args.output_dir.glob("*/*.png")):
        print(f"A plot: {plot}")


if __name__ == "__main__":
    main()
