"""Low-rank adaptation."""

import pytest
import torch
from torch import nn

from zoo.layers.lora import add_lora, merge_lora


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_an_adapted_model_starts_as_the_one_it_adapts(model):
    tokens = torch.arange(7)
    before = model(tokens)
    add_lora(model, rank=2, alpha=4.0)
    assert torch.equal(model(tokens), before)


def test_only_the_low_rank_updates_train_and_merging_keeps_what_they_learnt(model):
    tokens, frozen = torch.arange(7), {name: p.clone() for name, p in model.named_parameters()}
    add_lora(model, rank=2, alpha=4.0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == 2 * (6 + 5) + 2 * (5 + 3)
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens).square().sum().backward()
        optimizer.step()
    adapted = model(tokens)
    merge_lora(model)
    assert torch.allclose(model(tokens), adapted, atol=1e-6)
    now = dict(model.named_parameters())
    assert now.keys() == frozen.keys()
    assert all(p.requires_grad for p in now.values())
    assert torch.equal(now["0.weight"], frozen["0.weight"])
    assert torch.equal(now["1.bias"], frozen["1.bias"])
    update = (now["1.weight"] - frozen["1.weight"]).detach()
    assert 1 <= torch.linalg.matrix_rank(update, rtol=1e-4) <= 2


def test_a_rank_of_zero_is_refused(model):
    with pytest.raises(ValueError, match="lora_rank must be at least 1, not 0"):
        add_lora(model, rank=0, alpha=1.0)
