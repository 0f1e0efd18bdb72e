"""Fixture of the tests of a search: trials that only have a score."""

from types import SimpleNamespace

import pytest

from zoo.callbacks import Checkpoint
from zoo.errors import Diverged


@pytest.fixture
def scores(monkeypatch):
    """Replaces trials by a list: the scores of the next ones, None for one that diverges. Yields the list."""
    left = []

    def trial(words, callbacks, label):
        if (score := left.pop(0)) is None:
            raise Diverged("training has diverged")
        if isinstance(score, BaseException):
            raise score
        checkpoint = Checkpoint()
        checkpoint.best_score = score
        return SimpleNamespace(trainer=SimpleNamespace(checkpoint_callback=checkpoint))

    monkeypatch.setattr("zoo.search.study.TrialCLI", trial)

    def monitor(words):  # two words that are no options are the monitor and the direction
        return ("val_loss", "minimize") if words[0].startswith("--") else tuple(words[:2])

    monkeypatch.setattr("zoo.search.study.read_monitor", monitor)
    return left
