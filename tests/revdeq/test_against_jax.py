"""`solve` against the JAX original on the same weights: states, steps, residuals and gradients, to 1e-12 relative.

Gradients of A, B, b, C and x are compared; the original returns none for z0.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo.revdeq import solve

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden_jax.json").read_text())  # written by make_golden.py
UPSTREAM = os.environ.get("ZOO_REVERSIBLE_DEQ")


class F(nn.Module):
    """f(z, x) = C tanh(A z + B x + b)."""

    def __init__(self):
        super().__init__()
        self.A, self.B, self.b, self.C = (nn.Parameter(double(GOLDEN[name])) for name in ("A", "B", "b", "C"))

    def forward(self, z, x):
        return torch.tanh(z @ self.A.mT + x @ self.B.mT + self.b) @ self.C.mT


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def cases(adjoint):
    return [pytest.param(c, id=f"{c['beta']}-{c['N']}") for c in GOLDEN["cases"] if c["adjoint"] == adjoint]


def close(got, expected, tolerance=1e-12):
    expected = double(expected)
    return (got - expected).norm() <= tolerance * expected.norm()


def solve_and_check_gradients(case, **settings):
    """The solution of a case, after its gradients are compared with the original's."""
    f, x = F(), double(GOLDEN["x"]).requires_grad_()
    settings = {"beta": case["beta"], "max_steps": case["N"], "tol": case.get("tol"), **settings}
    solution = solve(f, x, double(case["z0"]), **settings)
    (solution.z * double(GOLDEN["cotangent"])).sum().backward()
    gradients = {"x": x.grad} | {name: p.grad for name, p in f.named_parameters()}
    assert gradients.keys() == case["gradients"].keys()
    assert all(close(gradients[name], expected) for name, expected in case["gradients"].items())
    return solution


@pytest.mark.parametrize("backward", ["reversible", "unroll", "checkpoint"])
@pytest.mark.parametrize("case", cases("reversible"))
def test_fixed_steps_match_jax(case, backward):
    solution = solve_and_check_gradients(case, backward=backward)
    assert close(solution.z, case["z"])
    assert close(solution.residual, case["residual"])
    assert [int(solution.steps)] * len(case["steps"]) == case["steps"]


@pytest.mark.parametrize("case", cases("tolerance"))
def test_tolerance_stops_each_sample_at_the_step_of_jax(case):
    solution = solve_and_check_gradients(case)
    assert len(set(case["steps"])) == 3
    assert solution.steps.tolist() == case["steps"]
    assert close(solution.z, case["z"])
    assert close(solution.residual, case["residual"])


@pytest.mark.parametrize("solver", ["reversible", "plain", "anderson", "broyden"])
@pytest.mark.parametrize("case", cases("implicit"))
def test_implicit_gradients_of_all_solvers_match_jax(case, solver):
    assert close(solve_and_check_gradients(case, backward="implicit", solver=solver, backward_steps=300).z, case["z"])


@pytest.mark.parametrize("case", cases("phantom"))
def test_phantom_gradients_match_jax(case):
    # One state more, because ours counts the first one. z itself differs: the original's includes the phantom steps.
    solve_and_check_gradients(case, backward="phantom", solver="plain", max_steps=case["N"] + 1)


def test_golden_values_match_upstream(tmp_path):
    """With jax and a checkout of the original in ZOO_REVERSIBLE_DEQ, its results are computed again."""
    if not UPSTREAM:
        pytest.skip("set ZOO_REVERSIBLE_DEQ to a checkout of sammccallum/reversible-deq")
    for package in ("jax", "equinox"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    path = tmp_path / "golden.json"
    subprocess.run([sys.executable, HERE / "make_golden.py", "--upstream", UPSTREAM, "--output", path], check=True)
    new = json.loads(path.read_text())
    for golden, case in zip(GOLDEN["cases"], new["cases"], strict=True):
        assert golden["steps"] == case["steps"]
        assert all(close(double(case["gradients"][k]), g) for k, g in golden["gradients"].items())
        assert close(double(case["z"]), golden["z"])
