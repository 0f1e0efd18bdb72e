"""MuonAdamW: torch's Muon and our AdamW as one optimizer."""

import copy

import torch
from torch import nn
from torch.optim import Muon
from torch.optim.lr_scheduler import LambdaLR

from zoo.optim import AdamW, MuonAdamW


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def parts(model):
    return [model[0].weight, model[2].weight], [model[0].bias, model[2].bias]


def train(model, optimizers, steps=5):
    schedules = [LambdaLR(optimizer, lambda step: 1 / (step + 1)) for optimizer in optimizers]
    for step in range(steps):
        loss = model(torch.full((2, 5), 0.1 * step + 0.1)).square().sum()
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        for optimizer in optimizers:
            optimizer.zero_grad()


def test_equals_muon_and_adamw_as_two_optimizers():
    one, two = network(), network()
    matrices, vectors = parts(one)
    train(one, [MuonAdamW(matrices, vectors, muon_lr=0.02, lr=0.01)])
    matrices, vectors = parts(two)
    muon = Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    train(two, [muon, AdamW(vectors, lr=0.01)])
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)


def test_resume_from_a_file_is_bitwise(tmp_path):
    first = network()
    optimizer = MuonAdamW(*parts(first))
    train(first, [optimizer], 3)
    torch.save([first.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    again = network()
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(weights)
    resumed = MuonAdamW(*parts(again))
    resumed.load_state_dict(copy.deepcopy(state))
    for model, opt in ((first, optimizer), (again, resumed)):
        for group in opt.param_groups:
            group["initial_lr"] = group["lr"] = 0.01
        train(model, [opt], 3)
    for p, q in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
