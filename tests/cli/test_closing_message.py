"""The closing message of `zoo fit`: the limit that a finished run has reached."""

from types import SimpleNamespace

import pytest

from zoo.cli.closing_message import ClosingMessage


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "option"),
    [
        (20, -1, "max_steps"),
        (-1, 1, "max_epochs"),
        (100, 1, "max_epochs"),
        (20, 5, "max_steps"),
        (20, None, "max_steps"),
    ],
)
def test_a_finished_run_names_the_limit_that_it_has_reached(max_steps, max_epochs, option, capsys):
    trainer = SimpleNamespace(
        is_global_zero=True, fast_dev_run=False, global_step=20, max_steps=max_steps, max_epochs=max_epochs,
        checkpoint_callback=None, callbacks=[], default_root_dir="runs/a",
    )  # fmt: skip
    ClosingMessage(resumed_step=20).on_fit_end(trainer, None)
    assert capsys.readouterr().err.endswith(f"; nothing was left to do: raise --trainer.{option} to go on\n")
