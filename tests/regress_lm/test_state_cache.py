"""Stored hidden states of a frozen encoder."""

import pytest
import torch

from zoo.regress_lm.state_cache import StateCache


@pytest.mark.parametrize("content", [b"", b"12345", None, b"1234" * 3])
def test_damaged_states_are_computed_again(content, tmp_path):
    stored = StateCache(tmp_path / "states.sqlite", 2)
    stored.write([[1, 2]], [torch.arange(4.0).view(2, 2)])
    assert stored.read([[1, 2]])[0].tolist() == [[0, 1], [2, 3]]
    stored._execute("UPDATE states SET states = ?", content)
    assert stored.read([[1, 2], [3]]) == [None, None]
