"""Factors of the logits of a classifier's head and bag of words."""

import pytest
import torch
import torch.nn.functional as F

from zoo.llama.logit_scales import fit_scales


def drawn(n):
    """Logits (N, 3) of two independent parts, and classes drawn from the softmax of their sum."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(n, 3, generator=generator) for _ in range(2))
    classes = torch.multinomial((first + second).softmax(1), 1, generator=generator)[:, 0]
    return first, second, classes


def test_factors_undo_a_change_of_scale():
    first, second, classes = drawn(20_000)
    assert fit_scales(4 * first, second / 2, classes) == pytest.approx([0.25, 2.0], abs=0.06)


@pytest.mark.parametrize("n", [200, 20_000])
def test_a_head_that_learned_nothing_gets_the_factor_0(n):
    first, second, classes = drawn(n)
    noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    head, bag = fit_scales(3 * noise, first, classes)
    assert head == 0
    assert 0.5 < bag < 1.1
    # The bag of words has the factor of the bag alone.
    assert bag == pytest.approx(fit_scales(torch.zeros(n, 3), first, classes)[1], abs=1e-5)
    # A part that contradicts the classes is not turned round.
    assert fit_scales(-second, first, classes)[0] == 0


def test_few_rows_change_the_factors_little():
    first, second, classes = drawn(2)
    assert fit_scales(first, second, classes) == pytest.approx([0.5, 1.0], abs=0.3)
    # A head without a bag of words is never left out.
    assert fit_scales(first, torch.zeros(2, 3), classes)[0] == pytest.approx(0.5, abs=0.3)
    assert fit_scales(torch.zeros(2, 3), torch.zeros(2, 3), classes) == [0.5, 1.0]


def test_a_head_that_helps_counts():
    first, second, classes = drawn(200)

    def loss(a, b):
        return F.cross_entropy(a * first + b * second, classes, reduction="sum").item()

    head, bag = fit_scales(first, second, classes)
    assert head > 0.5
    assert loss(head, bag) < loss(0, fit_scales(0 * first, second, classes)[1]) - 1


def test_the_loss_is_that_of_the_minimum():
    first, second, classes = drawn(500)
    head, bag = fit_scales(3 * first, second, classes)

    def loss(a, b):
        prior = ((a - 0.5) / 0.5) ** 2 / 2 + ((b - 1) / 0.5) ** 2 / 2
        return F.cross_entropy(a * 3 * first + b * second, classes, reduction="sum").item() + prior

    for a, b in ((head + 0.02, bag), (head - 0.02, bag), (head, bag + 0.02), (head, bag - 0.02)):
        assert loss(head, bag) < loss(a, b)
