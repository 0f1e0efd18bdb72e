"""Batches of texts: padding and its mask, rows for plain DataLoaders, and batches of rows of similar length."""

from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from zoo.errors import UserError
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import (
    IGNORED,
    BucketBatchSampler,
    Row,
    bucketed,
    check_token_ids,
    collate,
    targets_and_features,
    text_rows,
)


def test_collate_pads_to_the_longest_row():
    rows = [Row([7, 0, 9], (0.1,), 4, "abc"), Row([5], (float("nan"),), 2, "d")]
    batch = collate(rows)
    assert batch.tokens.tolist() == [[7, 0, 9], [5, 0, 0]]
    assert batch.padding_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.targets.dtype == torch.float64
    assert batch.targets[0, 0].item() == 0.1  # not its float32 neighbour
    assert batch.targets[1].isnan().all()
    assert batch.index.tolist() == [4, 2]
    assert batch.texts == ["abc", "d"]
    assert batch.features is None


def test_collate_of_equal_lengths_has_no_mask():
    batch = collate([Row([1, 2], (1.0, 2.0), i, "ab", (3.0,)) for i in range(3)])
    assert batch.padding_mask is None
    assert batch.targets.shape == (3, 2)
    assert batch.features.dtype == torch.float32
    assert batch.features.shape == (3, 1)


def lengths_and_order(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 500, (n,), generator=generator), torch.randperm(n, generator=generator)


def test_bucketed_keeps_every_row_once_and_reduces_padding():
    lengths, order = lengths_and_order(1003)
    new = bucketed(order, lengths, 10, torch.Generator().manual_seed(1))
    assert sorted(new.tolist()) == list(range(1003))
    assert new[1000:].tolist() == order[1000:].tolist()  # rows that fill no step stay in place

    def padding(order: torch.Tensor) -> float:
        steps = lengths[order[:1000]].view(-1, 10)
        return 1 - (steps.sum() / (steps.max(dim=1).values * 10).sum()).item()

    assert padding(order) > 0.4
    assert padding(new) < 0.03


def test_bucketed_depends_on_the_generator_and_is_not_sorted():
    lengths, order = lengths_and_order(200)
    first, same, other = (bucketed(order, lengths, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    longest = lengths[first].view(-1, 4).max(dim=1).values
    assert not torch.equal(longest, longest.sort().values)


def test_bucketed_keeps_rows_in_their_window():
    lengths, order = lengths_and_order(80)
    new = bucketed(order, lengths, 4, torch.Generator(), window=5)
    for start in range(0, 80, 20):
        assert set(new[start : start + 20].tolist()) == set(order[start : start + 20].tolist())


def test_bucket_batch_sampler_reshuffles_and_keeps_the_last_batch():
    lengths, _ = lengths_and_order(23)
    sampler = BucketBatchSampler(lengths.tolist(), 4, seed=1)
    first, second = list(sampler), list(sampler)
    assert len(sampler) == len(first) == 6
    assert [len(batch) for batch in first] == [4] * 5 + [3]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(23))
    assert first != second
    assert list(BucketBatchSampler(lengths.tolist(), 4, seed=1)) == first


def test_text_rows_serve_a_plain_dataloader():
    tokenizer = load_tokenizer("bytes")
    rows = text_rows(["a", "bcd"], [[1.5, 2.0], [3.0, np.nan]], tokenizer, [[7.0], [8.0]])
    assert rows[0] == Row(tokenizer.encode_batch(["a"])[0], (1.5, 2.0), 0, "a", (7.0,))
    [batch] = DataLoader(rows, batch_size=2, collate_fn=collate)
    assert batch.tokens.shape == (2, 3)
    assert batch.features.tolist() == [[7.0], [8.0]]
    [row] = text_rows(["a"], None, tokenizer)
    assert np.isnan(row.targets).tolist() == [True]
    for texts, targets, words in (
        (["a"], [1, 2], "1 texts, but 2 targets"),
        (["a", ""], [1, 2], "text 1 has no token"),
    ):
        with pytest.raises(ValueError, match=words):
            text_rows(texts, targets, tokenizer)


def test_targets_and_features_of_a_loaders_rows():
    rows = text_rows(["a", "b"], [1.0, 2.0], load_tokenizer("bytes"), [[3.0], [4.0]])
    targets, features = targets_and_features(DataLoader(rows, collate_fn=collate))
    assert targets.tolist() == [[1.0], [2.0]]
    assert features.tolist() == [[3.0], [4.0]]
    with pytest.raises(TypeError, match="map-style dataset"):
        targets_and_features(DataLoader([1, 2]))


@pytest.mark.parametrize(
    ("tokens", "targets", "sentence"),
    [
        (torch.tensor([[0, 5]]), None, "tokens hold the id 5, which is outside the model's vocabulary of 5"),
        (torch.tensor([[0, -1]]), None, "tokens hold the id -1"),
        (torch.tensor([[0, IGNORED]]), None, "tokens hold the id -100"),
        (torch.tensor([[0, 1]]), torch.tensor([[1, 5]]), "targets hold the id 5"),
        (torch.tensor([0, 1]), None, r"tokens must have shape \(batch, length\), not \(2,\): a single row is tokens\["),
        (torch.tensor([[0, 1]]), torch.tensor([1, 2]), r"targets must have shape \(1, 2\), not \(2,\)"),
        (torch.tensor([[0.0, 1.0]]), None, "tokens must be token ids, integers, not of torch.float32"),
        (torch.tensor([[True]]), None, "not of torch.bool"),
    ],
)  # fmt: skip
def test_wrong_token_ids_are_named(tokens, targets, sentence):
    with pytest.raises(UserError, match=sentence):
        check_token_ids(tokens, 5, targets)
    check_token_ids(torch.tensor([[0, 4]]), 5, torch.tensor([[IGNORED, 4]]))
    check_token_ids(torch.zeros(0, 3, dtype=torch.long), 5)


@pytest.mark.parametrize("wrong", [["1", "2"], ["x", 1], [1, [1, 2]], [{}, 1], ["1", None], 3.0, [1j, 2]])
@pytest.mark.parametrize("name", ["targets", "features"])
def test_rows_need_numbers(name, wrong):
    values = {"targets": [1.0, 2.0], "features": [[1.0], [2.0]]} | {name: wrong}
    with pytest.raises(UserError, match=f"{name} must be numbers, equally many for each text"):
        text_rows(["a", "b"], tokenizer=load_tokenizer("bytes"), **values)
    rows = text_rows(["a", "b"], [None, np.float32(2)], load_tokenizer("bytes"))
    assert np.isnan(rows[0].targets[0])
    assert rows[1].targets == (2.0,)


def test_rows_of_dates_are_refused():
    with pytest.raises(UserError, match="targets must be numbers"):
        text_rows(["a"], np.array(["2026-11-26"], dtype="datetime64[D]"), load_tokenizer("bytes"))


def test_rows_of_no_texts_of_one_text_and_of_one_feature():
    tokenizer = load_tokenizer("bytes")
    assert text_rows([], [], tokenizer) == text_rows([], None, tokenizer) == []
    with pytest.raises(UserError, match="texts must be a list of texts, not a single one"):
        text_rows("ab", [1, 2], tokenizer)
    assert [row.features for row in text_rows(["a", "b"], None, tokenizer, [1, 2])] == [(1.0,), (2.0,)]
    with pytest.raises(UserError, match="there are 2 texts, but 1 features"):
        text_rows(["a", "b"], None, tokenizer, [1])
