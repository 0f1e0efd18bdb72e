"""`solve` with samples that are not finite, and with wrong arguments."""

import warnings

import pytest
import torch
from torch import nn

from tests.revdeq.functions import Function, draw
from zoo.errors import UserError
from zoo.revdeq import solve
from zoo.revdeq.solver.fixed_point import SOLVERS


@pytest.mark.parametrize("solver", ["reversible", *SOLVERS])
@pytest.mark.parametrize("tol", [None, 1e-9])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_sample_without_a_finite_value_becomes_nan_and_leaves_the_others(solver, tol, bad):
    class Contraction(Function):
        def forward(self, z, x):
            return torch.cos(z) / 4 + x

    x = draw(4, 6)
    x[1, 2] = bad
    settings = {"solver": solver, "tol": tol, "max_steps": 60, "backward": "implicit"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        solution, alone = solve(Contraction(), x, **settings), solve(Contraction(), x[[0, 2, 3]], **settings)
    others = solution.z[[0, 2, 3]]
    assert not solution.z[1].isfinite().all()
    assert solver == "reversible" or solution.z[1].isnan().all()
    assert not solution.residual[1].isfinite()
    torch.testing.assert_close(others, alone.z, rtol=0, atol=1e-12)
    assert (solution.residual[[0, 2, 3]] < 1e-8).all()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"x": [torch.ones(3, 6)]}, "x must be a tensor or a tuple of tensors, not list"),
        ({"x": ()}, "x must be a tensor or a tuple of tensors, not an empty tuple"),
        ({"x": (torch.ones(3, 6), None)}, "not Tensor, NoneType"),
        ({"x": torch.tensor(1.0)}, "x must have an axis of samples"),
        ({"z0": 0.0}, "z0 must be a tensor of real numbers, not float"),
        ({"z0": torch.tensor(0.0)}, "z0 has no axis of samples"),
        ({"state_dtype": torch.int64}, "state_dtype must be a floating-point dtype"),
        ({"max_steps": True}, "max_steps must be a whole number, at least 1, not True"),
        ({"max_steps": 2.0}, "max_steps must be a whole number"),
        ({"beta": "0.5"}, "beta must be in"),
        ({"beta": float("nan")}, "beta must be in"),
        ({"tol": float("nan")}, "the tolerance must be positive"),
        ({"max_reconstruction_error": 0}, "max_reconstruction_error must be positive"),
        ({"f": nn.DataParallel(nn.Identity())}, "f must not be a DataParallel"),
        ({"f": nn.GRUCell(6, 6), "x": torch.ones(3, 6), "backward": 3}, "backward must be one of"),
    ],
)
def test_wrong_arguments_raise_user_error(given, sentence):
    with pytest.raises(UserError, match=sentence):
        solve(**{"f": Function(), "x": torch.ones(3, 6, dtype=torch.float64), **given})
