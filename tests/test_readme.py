"""The README's Python examples that need no files run as written."""

import re

import pytest
import torch

from tests.commands import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", ["zoo.revdeq", "zoo.regress_lm"])
def test_readme_example_runs(name):
    (block,) = (block for block in BLOCKS if f"from {name} import" in block)
    namespace = {}
    exec(block, namespace)
    if name == "zoo.revdeq":
        assert namespace["solution"].z.shape == (4, 16)
        assert all(p.grad is not None for p in namespace["layer"].parameters())
    else:
        assert all(namespace[f"samples{i}"].shape == (128,) for i in (1, 2))
    assert torch.is_grad_enabled()
