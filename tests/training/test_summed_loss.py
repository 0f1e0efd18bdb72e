"""Metrics: SummedLoss is exact for batches of different sizes, NaN and two processes; scores of any magnitude."""

import warnings

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from zoo.llama import LlamaLM
from zoo.training.batches import IGNORED, TokenBatch
from zoo.training.metrics import SummedLoss
from zoo.training.regression_metrics import scores

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
SIZES = {"vocab_size": 20, "dim": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 8}


def test_mean_over_tokens_of_ragged_batches():
    metric = SummedLoss()
    metric.update(torch.tensor(2.0), torch.tensor(3), torch.tensor([1.0, 0.5]))
    metric.update(torch.tensor(4.0), torch.tensor(1), torch.tensor([0.5]))
    result = metric.compute()
    assert result["loss"] == (2 * 3 + 4) / 4
    assert result["loss_per_word"] == (2 * 3 + 4) / 2


def test_without_word_counts_there_is_no_loss_per_word():
    metric = SummedLoss()
    metric.update(torch.tensor(2.0), torch.tensor(3))
    assert metric.compute().keys() == {"loss"}


def test_nan_in_one_batch_stays_nan():
    metric = SummedLoss()
    metric.update(torch.tensor(float("nan")), torch.tensor(3))
    metric.update(torch.tensor(1.0), torch.tensor(3))
    assert metric.compute()["loss"].isnan()


class Rows(Dataset):
    """Seven rows, of which each scores another number of its targets, with a word for every two scored targets."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> TokenBatch:
        tokens = torch.randint(20, (9,), generator=torch.Generator().manual_seed(index))
        targets = tokens[1:].clone()
        targets[: 7 - index] = IGNORED
        return TokenBatch(tokens[:-1], targets, torch.tensor(index), torch.tensor((index + 1) / 2))


@pytest.mark.parametrize("devices", [1, 2])
def test_validation_equals_the_sum_over_all_rows(devices, tmp_path):
    torch.manual_seed(0)
    module = LlamaLM(**SIZES)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto", default_root_dir=tmp_path,
        use_distributed_sampler=False, **off,
    )  # fmt: skip
    trainer.validate(module, Loader(), verbose=False)
    rows = [Rows()[i] for i in range(7)]
    with torch.no_grad():
        nll = sum(F.cross_entropy(module(r.tokens[None])[0], r.targets, reduction="sum").item() for r in rows)
    n_tokens, n_words = sum(range(1, 8)), sum(range(1, 8)) / 2
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(nll / n_tokens, rel=1e-6)
    assert trainer.callback_metrics["val_word_ppl"].log().item() == pytest.approx(nll / n_words, rel=1e-6)


class Loader(DataLoader):
    """Batches of 2 of this rank's rows: rank r of n takes rows r, r + n, ..., so that ranks differ in number."""

    def __init__(self) -> None:
        super().__init__(Rows(), batch_size=2)

    def __iter__(self):
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
        rows = [self.dataset[i] for i in range(rank, 7, ranks)]
        return iter([self.collate_fn(rows[i : i + 2]) for i in range(0, len(rows), 2)])

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize("unit", [2.0**1000, 2.0**-1000])
def test_scores_of_very_large_and_very_small_targets_are_those_in_another_unit(unit):
    targets, predictions = (np.random.default_rng(seed).normal(3, 2, (50, 1)) for seed in (0, 1))
    expected = scores(predictions, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = scores(predictions * unit, targets * unit)
    for name in ("mae", "median_error", "rmse"):
        assert got[name] == pytest.approx(expected[name] * unit, rel=1e-14)
    for name in ("r2", "spearman", "pearson"):
        assert got[name] == pytest.approx(expected[name], rel=1e-12)
