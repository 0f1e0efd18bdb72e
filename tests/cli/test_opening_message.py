"""The line at the start of a fit: size, where it continues, how often a text is read."""

import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Timer
from torch import nn

from zoo.callbacks.budget import Budget
from zoo.cli.opening_message import OpeningMessage
from zoo.training.language_model import LanguageModel


class Own(nn.Linear):
    """Ten weights and two biases."""

    def __init__(self):
        super().__init__(5, 2)


class Language(LanguageModel, Own):
    def __init__(self):
        Own.__init__(self)


class Large(Language):
    """Five million parameters and one more layer's."""

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.layer = nn.Linear(5_000_000, 1)


def start(model, **settings):
    """The trainer of a run of 300 steps in epochs of 5 batches, at the first step."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    defaults = {
        "is_global_zero": True, "global_step": 0, "max_steps": 300, "max_epochs": -1, "accumulate_grad_batches": 1,
        "num_training_batches": 5, "current_epoch": 0, "callbacks": [],
        "fit_loop": SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    }  # fmt: skip
    OpeningMessage().on_train_start(SimpleNamespace(**defaults | settings), model)


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        (Own, {}, "; 300 steps are 60 epochs"),
        # An epoch of five batches has three steps: its last window has one batch.
        (Own, {"accumulate_grad_batches": 2}, "; 300 steps are 100 epochs"),
        (Own, {"global_step": 7, "max_steps": -1}, "; continues after step 7"),
        (Own, {"num_training_batches": math.inf}, ""),
        (Own, {"max_epochs": 1}, ""),
        (Own, {"max_epochs": 12}, "; 60 steps are 12 epochs"),
        (Own, {"max_epochs": 12, "max_steps": -1}, "; 60 steps are 12 epochs"),
        (Own, {"max_epochs": 70}, "; 300 steps are 60 epochs"),
        (Own, {"callbacks": [Timer("00:00:01:00")]}, ""),
        (Own, {"callbacks": [Budget(60.0, 0.0, 6, print)]}, ""),
        (Language, {}, "; 300 steps are 60 epochs"),
        (
            Language,
            {"max_steps": 600},
            "; 600 steps are 120 epochs: for so short a text set --trainer.max_steps to at most 500",
        ),
        (Language, {"max_steps": 600, "max_epochs": 1}, ""),
    ],
)
def test_epochs_are_those_of_the_steps_that_will_be_made(model, settings, expected, capsys):
    start(model(), **settings)
    assert capsys.readouterr().err == f"zoo: {model.__name__}, 12 parameters{expected}\n"


def test_a_small_config_is_advised_for_a_large_model_only(capsys):
    start(Large(), max_steps=600)
    assert capsys.readouterr().err.endswith(" to at most 500, or take a small config such as tiny/llama\n")


def test_the_first_process_alone_prints(capsys):
    start(Own(), is_global_zero=False)
    assert not capsys.readouterr().err


def test_frozen_parameters_are_counted_apart(capsys):
    model = Own()
    model.bias.requires_grad_(False)
    start(model, max_steps=-1)
    assert capsys.readouterr().err == "zoo: Own, 12 parameters, 10 of them trained\n"
