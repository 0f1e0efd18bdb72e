"""Limit on the tensors that a constructor may create, for models built from the settings in a file.

The settings may say 10^9 layers where the file holds two. The limit follows from the tensors in the file, and is
checked before a tensor's memory is used.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from zoo.errors import UserError
from zoo.files.digest import SKIP, is_skipped
from zoo.weights import find_weights

TABLES = 2**28  # bytes for tensors that no file stores, such as tables of rotary angles
COPIES = 4  # a model's tensors may be created several times: empty, initialized, and in another dtype
SMALL_MODEL = 4_000  # number of parameters that any model may have
BY_SIZE = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.tril_indices)


class MemoryLimit(TorchFunctionMode):
    """Counts the bytes of tensors that are created inside it, and refuses those beyond the limit.

    Args:
        path: the file, for messages.
        n_bytes: size in bytes of the tensors in the file.
        n_tensors: number of tensors in the file.
    """

    current: "MemoryLimit | None" = None  # of nested limits only the innermost one counts

    def __init__(self, path: str | Path, n_bytes: int, n_tensors: int) -> None:
        super().__init__()
        self.path = path
        self.n_bytes: float = COPIES * n_bytes + TABLES
        self.n_parameters = COPIES * n_tensors + SMALL_MODEL

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if MemoryLimit.current is self and (n := _elements(func, args, kwargs)):
            self.n_bytes -= 4 * n
            self.check(self.n_bytes >= 0)
        return func(*args, **kwargs)

    def count_parameter(self, module: nn.Module, name: str, parameter: Any) -> None:
        """Called by torch for every parameter of a new module."""
        if MemoryLimit.current is self and isinstance(parameter, Tensor):
            self.n_parameters -= 1
            self.check(self.n_parameters >= 0)

    def check(self, is_inside: bool) -> None:
        """Raises UserError if a count is beyond its limit."""
        if not is_inside:
            raise UserError(
                f"{self.path} declares a model that is far larger than the tensors in the file: it is damaged, or not "
                f"what it seems; give another file ({SKIP}=0 in the environment builds the model nevertheless)"
            )


@contextmanager
def memory_limit(path: str | Path, n_bytes: int, n_tensors: int) -> Iterator[None]:
    """Refuse tensors in this block that are far larger than those of a file; arguments as for `MemoryLimit`.

    Raises:
        UserError: the block creates more.
    """
    if is_skipped():
        yield
        return
    limit, outer = MemoryLimit(path, n_bytes, n_tensors), MemoryLimit.current
    hook = register_module_parameter_registration_hook(limit.count_parameter)
    try:
        MemoryLimit.current = limit
        with limit:
            yield
    finally:
        MemoryLimit.current = outer
        hook.remove()


@contextmanager
def no_memory_limit() -> Iterator[None]:
    """Suspend the limit of an outer block, for tensors that are loaded from files of their size."""
    outer, MemoryLimit.current = MemoryLimit.current, None
    try:
        yield
    finally:
        MemoryLimit.current = outer


def tensor_sizes(state: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes, as fp32, and number of the tensors in a state dict."""
    tensors = [tensor for tensor in state.values() if isinstance(tensor, Tensor)]
    return 4 * sum(tensor.numel() for tensor in tensors), len(tensors)


def file_bytes(path: str | Path | None) -> int:
    """Bytes of a file, or of all files in a folder; 0 where there is none."""
    path = None if path is None else find_weights(str(path))
    if path is None or not Path(path).exists():
        return 0
    folder = Path(path)
    files = folder.iterdir() if folder.is_dir() else [folder]
    return sum(file.stat().st_size for file in files if file.is_file())


def _elements(func: Any, args: Any, kwargs: Mapping[str, Any]) -> float:
    """Elements of the tensor that a call of torch creates, where it is known from the arguments; else 0."""
    if func is torch.arange:
        numbers = [*args, *(kwargs[name] for name in ("start", "end", "step") if name in kwargs)]
        start, end, step = {1: (0, *numbers, 1), 2: (*numbers, 1)}.get(len(numbers), numbers[:3])
        return abs((end - start) / step) if step else 0
    if func is torch.linspace:
        return kwargs.get("steps", args[2] if len(args) > 2 else 0)
    if func is torch.outer and all(isinstance(vector, Tensor) for vector in args):
        return math.prod(vector.numel() for vector in args)
    if func in BY_SIZE:
        sizes = kwargs.get("size", args[0] if args else 0)
        sizes = sizes if isinstance(sizes, list | tuple) else [size for size in args if isinstance(size, int)]
        return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else 0
    return 0
