"""The line at the start of a fit: size, where it continues, how often a text is read."""

from types import SimpleNamespace

import pytest
from torch import nn

from zoo.cli.opening_message import OpeningMessage
from zoo.training.language_model import LanguageModel


class Own(nn.Linear):
    """Ten weights and two biases."""

    def __init__(self):
        super().__init__(5, 2)


class Language(LanguageModel, Own):
    def __init__(self):
        Own.__init__(self)


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        (Own, {}, "zoo: Own, 12 parameters; 300 steps are 60 epochs\n"),
        (Own, {"accumulate_grad_batches": 2}, "zoo: Own, 12 parameters; 300 steps are 120 epochs\n"),
        (Own, {"global_step": 7, "max_steps": -1}, "zoo: Own, 12 parameters; continues after step 7\n"),
        (Own, {"num_training_batches": float("inf")}, "zoo: Own, 12 parameters\n"),
        (Own, {"is_global_zero": False}, ""),
        (Language, {}, "zoo: Language, 12 parameters; 300 steps are 60 epochs\n"),
        (Language, {"max_steps": 600}, "600 steps are 120 epochs: for so short a text set fewer --trainer.max_steps"),
    ],
)
def test_line(model, settings, expected, capsys):
    defaults = {
        "is_global_zero": True, "global_step": 0, "max_steps": 300, "accumulate_grad_batches": 1,
        "num_training_batches": 5,
    }  # fmt: skip
    OpeningMessage().on_train_start(SimpleNamespace(**defaults | settings), model())
    said = capsys.readouterr().err
    assert said == expected if expected.endswith("\n") or not expected else expected in said


def test_frozen_parameters_are_counted_apart(capsys):
    model = Own()
    model.bias.requires_grad_(False)
    trainer = SimpleNamespace(
        is_global_zero=True, global_step=0, max_steps=-1, accumulate_grad_batches=1, num_training_batches=5
    )
    OpeningMessage().on_train_start(trainer, model)
    assert capsys.readouterr().err == "zoo: Own, 12 parameters, 10 of them trained\n"
