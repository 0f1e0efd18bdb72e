"""Settings of `solve`: allowed values, checks, and a warning where rounding will exceed the bound."""

import math
import warnings
from typing import Literal, get_args

import torch

from zoo.errors import UserError, check_choice, check_number

Backward = Literal["reversible", "unroll", "checkpoint", "implicit", "phantom"]
Solver = Literal["reversible", "plain", "anderson", "broyden"]


def check_settings(
    beta: float,
    tol: float | None,
    backward: str,
    solver: str,
    keep_every: int | None = None,
    backward_steps: int | None = None,
) -> None:
    """Check settings of `solve`, one by one and in combination.

    Raises:
        UserError: a setting is out of range or cannot be combined with another one; the message names both.
    """
    can_be_undone = "in (0, 2) and not be 1, at which a step cannot be undone"
    check_number("beta", beta, can_be_undone, lambda share: 0 < share < 2 and share != 1)
    if tol is not None:
        positive = "positive, or null for a fixed number of steps"
        check_number("the tolerance", tol, positive, lambda residual: 0 < residual < math.inf)
    check_choice("backward", backward, get_args(Backward))
    check_choice("solver", solver, get_args(Solver))
    if backward in ("unroll", "checkpoint") and tol is not None:
        raise UserError(f"a tolerance excludes backward={backward}: drop one, or set backward=reversible")
    if backward not in ("implicit", "phantom") and solver != "reversible":
        raise UserError(f"solver={solver} needs backward=implicit or phantom, not {backward}")
    # Settings that only some gradient methods read.
    for name, count, methods in (
        ("keep_every", keep_every, ("reversible",)),
        ("backward_steps", backward_steps, ("implicit", "phantom")),
    ):
        if count is not None:
            check_number(name, count, "at least 1, or null", lambda n: n >= 1, whole=True)
        if count is not None and backward not in methods:
            raise UserError(f"{name} needs backward={' or '.join(methods)}, not {backward}")


def warn_of_rounding(beta: float, steps: int, dtype: torch.dtype, bound: float) -> None:
    """Warn where inverting `steps` steps may amplify the rounding of `dtype` beyond `bound`.

    Each inverted step multiplies rounding by up to 1 / (1 - beta)^2.
    """
    digits_per_step, digits = -2 * math.log(abs(1 - beta)), math.log(bound / torch.finfo(dtype).eps)
    if steps * digits_per_step > digits:
        warnings.warn(
            f"inverting {steps} steps of beta {beta} may lose more digits than {dtype} has: about "
            f"{int(digits / digits_per_step)} steps are safe; for more set keep_every, and watch reconstruction_error",
            stacklevel=3,
        )
