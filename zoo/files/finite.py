"""Check of weights from files of other programs: a run that has diverged leaves NaN and infinite values."""

import os
from collections.abc import Mapping

from torch import Tensor

from zoo.errors import UserError


def check_finite(path: str | os.PathLike, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError if one of the tensors in the file holds NaN or infinity; the message names the tensor."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{path}: the tensor {name} is not finite: its training had diverged, or the file is damaged; "
                "give another file"
            )
