"""Low-rank adaptation."""

import copy
import pickle

import pytest
import torch
from torch import nn

from zoo.errors import UserError
from zoo.layers.lora import add_lora, merge_lora


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_adapted_model_starts_with_the_same_outputs(model):
    tokens = torch.arange(7)
    before = model(tokens)
    add_lora(model, rank=2, alpha=4.0)
    assert torch.equal(model(tokens), before)


def test_only_updates_train_and_merging_keeps_the_outputs(model):
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


def test_updates_have_the_type_of_the_weights(model):
    add_lora(model.double(), rank=2, alpha=3.0)
    update = model[1].parametrizations.weight[0]
    nn.init.normal_(update.b)
    expected = model[1].parametrizations.weight.original + 1.5 * update.b @ update.a
    assert expected.dtype == torch.float64
    merge_lora(model)
    torch.testing.assert_close(model[1].weight, expected, rtol=1e-14, atol=0)


def test_rank_zero_raises_user_error(model):
    with pytest.raises(UserError, match="lora_rank must be at least 1, not 0"):
        add_lora(model, rank=0, alpha=1.0)


def test_unknown_target_and_second_adaptation_raise_user_error(model):
    with pytest.raises(UserError, match="lora_targets names no '7' of this model, which has 1, 3"):
        add_lora(model, rank=1, alpha=1.0, targets=["7"])
    add_lora(model, rank=1, alpha=1.0, targets=["3"])
    with pytest.raises(UserError, match="has low-rank updates already"):
        add_lora(model, rank=1, alpha=1.0)


def test_pickling_keeps_names_weights_and_gradients(model):
    add_lora(model, rank=2, alpha=4.0)
    nn.init.normal_(model[1].parametrizations.weight[0].b)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert [(n, p.requires_grad) for n, p in again.named_parameters()] == [
            (n, p.requires_grad) for n, p in model.named_parameters()
        ]
        tokens = torch.arange(7)
        assert torch.equal(again(tokens), model(tokens))
        nn.init.ones_(again[1].parametrizations.weight[0].b)  # a copy: the original does not change
        assert not torch.equal(again(tokens), model(tokens))
        assert pickle.loads(pickle.dumps(again))(tokens).equal(again(tokens))
        merge_lora(again)
        assert type(again[1]) is nn.Linear
