"""RegressLM on a pretrained encoder, and ridge regression on the encoder's mean states: moods of tweets and reviews.

    python benchmarks/encoder_regression.py --data_dir DIR --encoder FOLDER [--encoder_modes frozen lora full]

The texts and splits are those of `text_regression.py vader`. Writes regress_lm_encoders.json, where rows of an
earlier run with other modes or seeds stay. The CPU seconds of a frozen encoder are those of the decoder: the baselines
have stored the encoder's states before.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from benchmarks.text_regression import TFIDF, Row, Table, one_objective, texts_and_moods, tfidf_ridge, vader_splits  # noqa: E402
from zoo.regress_lm import Example, ExampleInput, RegressLM, estimates  # noqa: E402
from zoo.regress_lm.encoders import load_encoder  # noqa: E402
from zoo.regress_lm.pretrained_encoder import PretrainedEncoder, states_folder  # noqa: E402
from zoo.regress_lm.state_cache import StateCache  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402
from zoo.tokenizers import Tokenizer, load_tokenizer  # noqa: E402
from zoo.training.batches import collate, text_rows  # noqa: E402
from zoo.training.random_streams import derive  # noqa: E402


def frozen_encoder(name: str) -> PretrainedEncoder:
    """The encoder, with its states stored on disk."""
    encoder = PretrainedEncoder(load_encoder(name), dim=1)
    encoder.cache = StateCache(states_folder() / f"{encoder.digest}.sqlite", encoder.width)
    return encoder


def mean_states(encoder: PretrainedEncoder, tokenizer: Tokenizer, texts: list[str], longest: int = 128) -> np.ndarray:
    """(N, width) mean of the encoder's hidden states over the first `longest` tokens of each text."""
    rows = [row._replace(tokens=tokenizer.truncated(row.tokens, longest)) for row in text_rows(texts, None, tokenizer)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    means = np.empty((len(rows), encoder.width))
    for start in range(0, len(order), 64):
        some = order[start : start + 64]
        batch = collate([rows[i] for i in some])
        mask = torch.ones_like(batch.tokens) if batch.padding_mask is None else batch.padding_mask.long()
        states = encoder.states(batch.tokens, batch.padding_mask)
        means[some] = ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
    return means


def vader(args: argparse.Namespace) -> Iterator[Row]:
    """The texts of `vader`, read by a pretrained encoder, with ridge regression on its mean states as baseline."""
    splits = vader_splits(args)
    name = args.encoder_name or Path(args.encoder).name
    encoder, tokenizer = frozen_encoder(args.encoder), load_tokenizer(f"transformers:{args.encoder}")
    states = {
        (source, split): mean_states(encoder, tokenizer, [row["text"] for row in table])
        for source, tables in splits.items()
        for split, table in tables.items()
    }

    def unit(vectors: np.ndarray) -> np.ndarray:
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    for source in args.trained_on:
        tables = splits[source]
        texts, y = texts_and_moods(tables["train"])
        baselines = {TFIDF: tfidf_ridge(texts, y)}
        for scale, label in ((np.asarray, "mean states"), (unit, "mean states of length 1")):
            ridge = RidgeCV(alphas=np.logspace(-2, 3, 11)).fit(scale(states[source, "train"]), y)
            baselines[f"ridge on {name}'s {label}"] = (scale, ridge)
        for other, others in splits.items():
            held_out, target = texts_and_moods(others["test"])
            about = {"trained_on": source, "tested_on": other}
            for model, fitted in baselines.items():
                scale, ridge = fitted if isinstance(fitted, tuple) else (None, fitted)
                predictions = ridge.predict(scale(states[other, "test"]) if scale else held_out)
                yield {"model": model, **about, **one_objective(predictions, target)}
        # RegressLM; the samples of all seeds together are an ensemble.
        for mode in args.encoder_modes:
            drawn: dict[str, list[np.ndarray]] = {other: [] for other in splits}
            for seed in args.seeds:
                start = time.process_time()
                model = fit_encoder(args, mode, tables["train"], seed)
                took = {"cpu_seconds": time.process_time() - start}
                if mode == "frozen":
                    model.model.encoder.cache = encoder.cache
                for other, others in splits.items():
                    held_out, target = texts_and_moods(others["test"])
                    samples = np.stack(model.sample([ExampleInput(text) for text in held_out], 64, seed=0))
                    drawn[other].append(samples)
                    about = {"model": f"RegressLM on {name}, {mode}", "trained_on": source, "tested_on": other}
                    yield {**about, "seed": seed, **sample_scores(samples, target, y), **took}
            if len(args.seeds) > 1:
                for other, others in splits.items():
                    about = {"model": f"the same, {len(args.seeds)} seeds together, {mode}", "trained_on": source}
                    target = texts_and_moods(others["test"])[1]
                    samples = np.concatenate(drawn[other], axis=1)
                    yield {**about, "tested_on": other, **sample_scores(samples, target, y)}


# The decoder's settings were chosen by the validation loss on Amazon reviews, seed 0.
DECODER = {"dim": 128, "n_heads": 4, "n_decoder_layers": 1, "number_digits": 2, "dropout": 0.3, "residual_dropout": 0.3}
RECIPES: dict[str, Row] = {  # by encoder_mode
    "frozen": {"max_epochs": 8, "lr": 1e-3},
    "lora": {"max_epochs": 4, "lr": 1e-3},
    "full": {"max_epochs": 3, "lr": 1e-3},
}


def fit_encoder(args: argparse.Namespace, mode: str, table: Table, seed: int) -> RegressLM:
    """A RegressLM on the pretrained encoder, trained on a table of which a tenth of the reviews is held out."""
    groups = sorted({row["review"] for row in table})
    held_out = set(np.random.default_rng(derive(seed, "held out")).permutation(groups)[: len(groups) // 10].tolist())
    examples = {
        side: [Example(r["text"], float(r["sentiment"])) for r in table if (r["review"] in held_out) == side]
        for side in (False, True)
    }
    rank = {"lora_rank": 8} if mode == "lora" else {}
    model = RegressLM.from_scratch(
        encoder=args.encoder, encoder_mode=mode, encoder_lr=5e-4 if rank else 1e-4, seed=seed, **DECODER, **rank
    )
    recipe = {"warmup_share": 0.1, "weight_decay": 0.1, "patience": 3, "progress": False} | RECIPES[mode]
    model.fine_tune(examples[False], examples[True], seed=seed, **recipe)
    return model


def sample_scores(samples: np.ndarray, target: np.ndarray, trained: np.ndarray) -> Row:
    """Scores of samples (N, S): of their median, and as "mean_pearson" of the mean of those within the trained range.

    A wrong exponent makes a sample that outweighs all others in a mean.
    """
    clipped = samples.clip(trained.min(), trained.max())
    crps = estimates.crps(torch.from_numpy(clipped)[..., None], torch.from_numpy(target)[:, None]).mean().item()
    mean = one_objective(clipped.mean(1), target)
    return one_objective(np.median(samples, 1), target) | {"crps": crps, "mean_pearson": mean["pearson"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--encoder", required=True, help="folder of a pretrained encoder")
    parser.add_argument("--encoder_name", help="its name in the rows (default: the folder's)")
    parser.add_argument("--encoder_modes", nargs="+", default=["frozen"], choices=RECIPES)
    parser.add_argument("--trained_on", nargs="+", default=["tweets", "amazon"], choices=("tweets", "amazon"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parse_arguments(parser, "regress_lm_encoders.json")
    about = facts() | {"threads": torch.get_num_threads()}
    rows = {row_key(row): row for row in json.loads(args.output.read_text())} if args.output.exists() else {}
    for row in vader(args):
        rows[row_key(row)] = {**row, **about}
        print(dump_json({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        args.output.write_text(dump_json(list(rows.values()), indent=1) + "\n")


def row_key(row: Row) -> tuple[Any, ...]:
    """The key of a row; a new row replaces the old one with the same key."""
    return row["trained_on"], row["tested_on"], row["model"], row.get("seed")


if __name__ == "__main__":
    main()
