"""Shared by the tests of the classifiers: a folder of tiny reviews, random weights and modules."""

import json
from pathlib import Path

import torch

from tests.trainers import quiet_trainer
from zoo.datamodules import Reviews
from zoo.llama import Llama, LlamaClassifier, LlamaConfig, LlamaZeroShot, save_checkpoint
from zoo.tokenizers import load_tokenizer

SIZES = {"dim": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}
NAMES = ["bad", "good"]
SPELLINGS = ["0", "1"]
QUIET = [
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--throughput.every_n_steps=1", "--trainer.log_every_n_steps=1",
]  # fmt: skip


def write_reviews(folder: Path) -> str:
    """48 training, 13 dev and 7 test reviews; the word that decides the class is not the last one."""
    folder.mkdir()
    for split, n in (("train", 48), ("dev", 13), ("test", 7)):
        rows = [f"{i % 2} ||| {'a' * (i % 5)} {NAMES[i % 2]} film {i}\n" for i in range(n)]
        (folder / f"film-{split}.txt").write_text("".join(rows))
    return str(folder)


def write_weights(path: Path, seed: int = 0) -> str:
    """Random weights of a tiny Llama on bytes, as a llama2.c file."""
    torch.manual_seed(seed)
    save_checkpoint(Llama(LlamaConfig(vocab_size=257, **SIZES)), path, format="llama2c")
    return str(path)


def data(reviews, **options):
    return Reviews(reviews, "bad,good", batch_size=8, max_input_len=40, **options)


def classifier(method="full", weights=None, **options):
    options = {"vocab_size": 257, "label_spellings": SPELLINGS, "lr": 1e-2, "warmup_steps": 2} | options
    return LlamaClassifier(NAMES, method, weights, **({} if weights else SIZES), **options)


def zero_shot(weights, prompt="{text} It is", **options):
    parts = None if prompt is None else tuple(prompt.split("{text}"))
    return LlamaZeroShot(NAMES, weights, parts, tokenizer=load_tokenizer("bytes"), label_spellings=SPELLINGS, **options)


def predict(module, film):
    """All prediction rows of a data module or loader."""
    return [row for batch in quiet_trainer().predict(module, film) for row in batch]


def probabilities(rows):
    return torch.tensor([list(row["probabilities"].values()) for row in rows])


def read_predictions(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
