"""Training batches of texts of similar length: every row once, equal for any number of ranks, exactly resumable."""

import csv
from itertools import chain

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer

from tests.resume import assert_resume_is_bitwise
from zoo.datamodules import TextRegression
from zoo.private_apis.lightning_api import batch_index
from zoo.training.random_streams import derive


@pytest.fixture
def reviews(tmp_path):
    """60 texts of 6 to 120 characters; 48 of them are for training."""
    with (tmp_path / "reviews.csv").open("w", newline="") as content:
        rows = [("word " * (1 + i % 20) + str(i % 10), i) for i in range(60)]
        csv.writer(content).writerows([("text", "y"), *rows])
    return str(tmp_path / "reviews.csv")


class Mean(LightningModule):
    """A regression on the mean of a text's embedded tokens; dropout is seeded by the step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(257, 8)
        self.out = torch.nn.Linear(8, 1)

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        torch.manual_seed(derive(7, "step", self.global_rank, batch_index(self.trainer)))

    def training_step(self, batch, batch_idx: int):
        mask = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.padding_mask is None else batch.padding_mask
        mean = (self.embedding(batch.tokens) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return (self.out(torch.nn.functional.dropout(mean, 0.2)) - batch.targets.float()).square().mean()

    def validation_step(self, batch, batch_idx: int) -> None: ...

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.parametrize("devices", [1, 2])
def test_resume_is_bitwise(devices: int, reviews, tmp_path):
    options = {"target_columns": "y", "batch_size": 4 // devices, "num_workers": devices - 1}
    options |= {"augment_copies": 1, "number_formats": True}
    # 48 rows and as many copies: epochs of 24 steps, of which the last checkpoint lies in the second.
    training = {"max_steps": 30, "max_epochs": -1, "every": 9, "limit_val_batches": 0, "devices": devices}
    assert_resume_is_bitwise(Mean, lambda: TextRegression(reviews, **options), tmp_path / "runs", **training)


def batches(data: TextRegression, count: int) -> list[list[int]]:
    return [batch.index.tolist() for batch, _ in zip(data.train_dataloader(), range(count), strict=False)]


def test_training_batches_hold_texts_of_similar_length(reviews):
    data = TextRegression(reviews, target_columns="y", batch_size=4, seed=1)
    lengths, seen = data.lengths("train"), batches(data, 24)
    assert sorted(chain(*seen[:12])) == sorted(chain(*seen[12:])) == list(range(48))
    assert seen[:12] != seen[12:]
    spread = [np.ptp(lengths[batch]) for batch in seen]
    assert np.mean(spread) < 25 < np.ptp(lengths) / 2
    assert batches(data, 24) == seen


def test_two_ranks_see_the_rows_of_one_rank_with_twice_the_batch(reviews, monkeypatch):
    alone = batches(TextRegression(reviews, target_columns="y", batch_size=4, seed=1), 20)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(TextRegression, "rank_and_ranks", lambda _, rank=rank: (rank, 2))
        parts.append(batches(TextRegression(reviews, target_columns="y", batch_size=2, seed=1), 20))
    assert alone == [a + b for a, b in zip(*parts, strict=True)]


def test_without_shuffling_rows_keep_their_order(reviews, monkeypatch):
    data = TextRegression(reviews, target_columns="y", batch_size=4)
    data.shuffle = False
    assert list(chain(*batches(data, 12))) == list(range(48))


def test_overfit_batches_are_the_first_rows(reviews, tmp_path):
    class Seen(Mean):
        def training_step(self, batch, batch_idx: int):
            seen.append(batch.index.tolist())
            return super().training_step(batch, batch_idx)

    seen: list[list[int]] = []
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, overfit_batches=2, limit_val_batches=0, default_root_dir=tmp_path, **quiet
    )
    trainer.fit(Seen(), TextRegression(reviews, target_columns="y", batch_size=4))
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
