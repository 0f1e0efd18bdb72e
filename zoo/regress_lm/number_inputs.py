"""Numbers from users as float64 arrays: Python numbers, lists, NumPy arrays, tensors, pandas columns."""

from numbers import Real
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.regress_lm.rounding import Floats
from zoo.text_formats.json_text import shorten


def as_numbers(name: str, values: Any) -> Floats:
    """A number or an array of numbers as float64, of the same shape.

    Args:
        name: name of the argument, for the message.
        values: a number, a list of numbers of any depth, an array, a tensor or a pandas column.

    Raises:
        UserError: a value is not a number (nor are text and bools), rows differ in length, or an integer is beyond
            the largest double.
    """
    given = values
    if hasattr(values, "detach"):  # a tensor, which may be on another device or in a dtype that NumPy lacks
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    if isinstance(values, dict | set | frozenset):
        raise UserError(f"{name} must be a number or a list of numbers, not a {type(given).__name__}")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{name} must be a number or a list of numbers, in rows of equal length") from error
    if isinstance(values, list | tuple):  # NumPy reads a bool next to a number as 1 or 0
        array = np.array(values, dtype=object)
    if array.dtype.kind == "O":  # Python's numbers of other types, such as integers above 2^63
        items = array.ravel().tolist()
        if not all(isinstance(item, Real) and not isinstance(item, bool) for item in items):
            raise UserError(f"{name} must be a number or a list of numbers, not {shorten(given, 60)}")
        try:
            array = np.array([float(item) for item in items]).reshape(array.shape)
        except OverflowError as error:
            raise UserError(f"{name} holds an integer beyond the largest double, 1.8e308") from error
    if array.dtype.kind not in "iuf" and array.size:
        raise UserError(f"{name} must be a number or a list of numbers, not {shorten(given, 60)}")
    return array.astype(np.float64)
