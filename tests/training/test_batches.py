"""Batches of texts: padded to their longest row and told apart from padding; steps of rows of like length."""

import torch

from zoo.training.batches import Row, bucketed, collate


def test_a_batch_is_as_wide_as_its_longest_row():
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


def test_rows_of_one_length_need_no_mask():
    batch = collate([Row([1, 2], (1.0, 2.0), i, "ab", (3.0,)) for i in range(3)])
    assert batch.padding_mask is None
    assert batch.targets.shape == (3, 2)
    assert batch.features.dtype == torch.float32
    assert batch.features.shape == (3, 1)


def lengths_and_order(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 500, (n,), generator=generator), torch.randperm(n, generator=generator)


def test_buckets_hold_every_row_once_and_waste_little():
    lengths, order = lengths_and_order(1003)
    new = bucketed(order, lengths, 10, torch.Generator().manual_seed(1))
    assert sorted(new.tolist()) == list(range(1003))
    assert new[1000:].tolist() == order[1000:].tolist()  # what fills no step stays where it was

    def padding(order: torch.Tensor) -> float:
        steps = lengths[order[:1000]].view(-1, 10)
        return 1 - (steps.sum() / (steps.max(dim=1).values * 10).sum()).item()

    assert padding(order) > 0.4
    assert padding(new) < 0.03


def test_buckets_are_a_function_of_the_generator_and_not_in_order_of_length():
    lengths, order = lengths_and_order(200)
    first, same, other = (bucketed(order, lengths, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    longest = lengths[first].view(-1, 4).max(dim=1).values
    assert not torch.equal(longest, longest.sort().values)


def test_a_row_stays_in_its_window():
    lengths, order = lengths_and_order(80)
    new = bucketed(order, lengths, 4, torch.Generator(), window=5)
    for start in range(0, 80, 20):
        assert set(new[start : start + 20].tolist()) == set(order[start : start + 20].tolist())
