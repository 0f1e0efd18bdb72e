"""token_nll against torch's cross_entropy: the same bits, value and gradient."""

import torch
import torch.nn.functional as F

from zoo.layers.token_nll import token_nll


def test_has_the_bits_of_cross_entropy():
    logits = torch.randn(5, 7, 33, requires_grad=True)
    targets = torch.randint(33, (5, 7))
    targets[:, 5:] = -100
    ours = token_nll(logits, targets, ignored=-100)
    theirs = F.cross_entropy(logits.mT, targets, reduction="none")
    assert torch.equal(ours, theirs)
    weights = torch.randn(5, 7)
    assert torch.equal(*(torch.autograd.grad((nll * weights).sum(), logits)[0] for nll in (ours, theirs)))


def test_a_token_can_be_the_ignored_one():
    logits, targets = torch.randn(2, 3, 4), torch.tensor([[0, 1, 2], [3, 0, 0]])
    expected = F.cross_entropy(logits.mT, targets, reduction="none", ignore_index=0)
    assert torch.equal(token_nll(logits, targets, ignored=0), expected)
