"""Pretended CUDA tensors for machines without a GPU: CPU tensors that report the device cuda:0 and compute real values.

Inside `pretend_cuda`, a tensor that is created on, or moved to, the device "cuda" is a `PretendedTensor`. An operation
that mixes it with a CPU tensor of one dimension or more raises DeviceMismatch, as CUDA does. Recorded are

- synchronisations, for which the host would wait for the device: `.item()`, `bool()`, `.tolist()`, copies to the CPU,
  `nonzero`, boolean indices, `torch.cuda.synchronize()`;
- copies from the host;
- operations that raise an error on CUDA under `torch.use_deterministic_algorithms(True)`.

Not tested are kernels, memory and speed, and the choice of kernels: torch itself sees CPU tensors. Autocast for "cuda"
has no effect, so nest `torch.autocast("cpu", dtype)` in it. With `PretendedStrategy` a Lightning Trainer uses the
device.
"""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import lightning
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._pytree import tree_flatten, tree_map_only
from torchmetrics import Metric

CUDA = torch.device("cuda", 0)
SOURCES = tuple(str(Path(__file__).resolve().parents[1] / folder) for folder in ("zoo", "callbacks", "datamodules"))
LIGHTNING = str(Path(lightning.__file__).parent)
_aten = torch.ops.aten
# Operations whose result, or its shape, the host needs.
_SYNCHRONISING = {_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.equal, _aten.is_nonzero}
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
# From the documentation of torch.use_deterministic_algorithms in torch 2.13.
_WITHOUT_DETERMINISTIC_KERNEL = {
    _aten.nll_loss2d_forward, _aten.nll_loss2d_backward, _aten.histc, _aten.kthvalue, _aten.median, _aten.put_,
    _aten._ctc_loss, _aten.cumprod, _aten.grid_sampler_2d, _aten._embedding_bag,
}  # fmt: skip


class DeviceMismatch(RuntimeError):
    """An operation on a tensor on the device and a tensor on the CPU."""


class Record:
    """What happened on the pretended device, each as "operation at file:line" of the zoo."""

    def __init__(self) -> None:
        self.synchronisations: list[str] = []
        self.copies_to_device: list[str] = []
        self.nondeterministic: list[str] = []

    def clear(self) -> None:
        """Forget everything so far, for instance the construction of a model."""
        for events in vars(self).values():
            events.clear()


_record = Record()


def _place(operation: str) -> str:
    """The operation with the innermost line of the zoo that called it, or else with that of Lightning."""
    frames = traceback.extract_stack()
    for folders in (SOURCES, LIGHTNING):
        if own := [f for f in frames if f.filename.startswith(folders)]:
            return f"{operation} at {Path(own[-1].filename).name}:{own[-1].lineno}"
    return operation


def _is_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


class PretendedTensor(Tensor):
    """A CPU tensor, `inner`, that reports the device cuda:0."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "PretendedTensor":
        tensor = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="cpu", requires_grad=inner.requires_grad,
        )  # fmt: skip
        tensor.inner = inner.detach()
        return tensor

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def __repr__(self, **_: Any) -> str:
        return f"PretendedTensor({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet, leaves = func.overloadpacket, tree_flatten((args, kwargs))[0]
        on_cpu = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, PretendedTensor)]
        if packet in _INDEXING and isinstance(args[0], PretendedTensor):
            # CUDA copies indices from the CPU.
            _record.copies_to_device.extend(_place(f"index of {func}") for index in on_cpu if index.ndim)
        elif any(tensor.ndim for tensor in on_cpu) and packet not in (_aten.copy_, _aten._to_copy):
            raise DeviceMismatch(_place(f"{func} on tensors on cuda:0 and on the CPU"))
        _note(func, packet, args)
        inner_args, inner_kwargs = tree_map_only(PretendedTensor, lambda t: t.inner, (args, kwargs))
        result = func(*inner_args, **inner_kwargs)
        # In-place operations return their own argument, and an alias keeps it alive.
        if func._schema.is_mutable:
            originals = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, PretendedTensor)}
            return tree_map_only(Tensor, lambda t: originals.get(id(t), t), result)
        return tree_map_only(Tensor, PretendedTensor, result)


def _note(func: Any, packet: Any, args: Any) -> None:
    """Record what an operation would do on CUDA."""
    if packet in _SYNCHRONISING:
        _record.synchronisations.append(_place(str(func)))
    indexes = args[1] if packet in _INDEXING else ()
    if any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indexes):
        _record.synchronisations.append(_place(f"{func} with a boolean index"))
    if packet is _aten.copy_ and isinstance(args[0], PretendedTensor) != isinstance(args[1], PretendedTensor):
        is_upload = isinstance(args[0], PretendedTensor)
        (_record.copies_to_device if is_upload else _record.synchronisations).append(_place(str(func)))
    is_float_cumsum = packet is _aten.cumsum and args[0].is_floating_point()
    if packet in _WITHOUT_DETERMINISTIC_KERNEL or is_float_cumsum:
        _record.nondeterministic.append(_place(str(func)))


def _pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """`torch._pack_padded_sequence`, whose own gradients would be on the CPU."""
    x = x if batch_first else x.transpose(0, 1)
    sizes = [int((lengths > t).sum()) for t in range(int(lengths.max()))]
    return torch.cat([x[:size, t] for t, size in enumerate(sizes)]), torch.tensor(sizes)


def _unpack(data: Tensor, sizes: Tensor, batch_first: bool, value: float, length: int) -> tuple[Tensor, Tensor]:
    """`torch._pad_packed_sequence`, the inverse of `_pack`."""
    steps, rows = data.split(sizes.tolist()), int(sizes[0])
    steps = [nn.functional.pad(step, (0, 0, 0, rows - len(step)), value=value) for step in steps]
    steps += [torch.full_like(steps[0], value)] * (length - len(steps))
    lengths = torch.tensor([int((sizes > row).sum()) for row in range(rows)])
    return torch.stack(steps, dim=int(batch_first)), lengths


_PACKING = {"_pack_padded_sequence": _pack, "_pad_packed_sequence": _unpack}


class _Redirect(TorchFunctionMode):
    """Create tensors on the pretended device, and record copies between it and the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        on_device = bool(args) and isinstance(args[0], PretendedTensor)
        if name in ("to", "cpu", "cuda") and args and isinstance(args[0], Tensor):
            return self._move(name, func, args, kwargs)
        if name in _PACKING and on_device:
            return _PACKING[name](*args)
        if name in ("tolist", "numpy", "__array__") and on_device:
            _record.synchronisations.append(_place(name))
            return func(args[0].inner, *args[1:], **kwargs)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
            if name in ("tensor", "as_tensor", "from_numpy"):
                _record.copies_to_device.append(_place(name))
            return tree_map_only(Tensor, _pretend, func(*args, **kwargs))
        return func(*args, **kwargs)

    def _move(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """`Tensor.to`, `.cpu` and `.cuda`: the cast happens on the pretended device or on the CPU, then the move."""
        tensor, *others = args
        others = [getattr(other, "device", other) if isinstance(other, PretendedTensor) else other for other in others]
        dtype = [args[1].dtype] if len(args) > 1 and isinstance(args[1], Tensor) else []
        target = kwargs.pop("device", None)
        is_asynchronous = kwargs.get("non_blocking", False)
        rest = []
        for other in others:
            if isinstance(other, str | torch.device):
                target = other
            elif isinstance(other, Tensor):
                target = other.device
            elif other is not None:
                rest.append(other)
        target = {"cpu": "cpu", "cuda": "cuda"}.get(name, target)
        if dtype or rest or kwargs:
            options = {k: v for k, v in kwargs.items() if k != "non_blocking"}
            tensor = Tensor.to(tensor, *dtype, *rest, **options) if dtype or rest or options else tensor
        if target is None or _is_cuda(target) == isinstance(tensor, PretendedTensor):
            return tensor
        if _is_cuda(target):
            if tensor.ndim or tensor.numel():
                _record.copies_to_device.append(_place(name))
            return _pretend(tensor)
        if not is_asynchronous:
            _record.synchronisations.append(_place(f"{name} to the CPU"))
        return tensor.inner.clone()


def _pretend(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, PretendedTensor) else PretendedTensor(tensor)


def _group_by_device(tensors: Any, with_indices: bool = False) -> Any:
    """torch's grouping for gradient clipping, which takes pretended tensors for CPU tensors."""
    groups = _foreach_utils._group_tensors_by_device_and_dtype(tensors, with_indices)
    is_pretended = any(isinstance(tensor, PretendedTensor) for each in tensors for tensor in each)
    return {(CUDA if is_pretended else device, dtype): group for (device, dtype), group in groups.items()}


class _Generator(torch.Generator):
    """A generator on the CPU for every device."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        return super().__new__(cls, "cpu")


def _synchronize(device: Any = None) -> None:
    _record.synchronisations.append(_place("torch.cuda.synchronize"))


def _no_grad_if(on: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.no_grad() if on else contextlib.nullcontext()


@contextlib.contextmanager
def pretend_cuda() -> Iterator[Record]:
    """Inside the block, "cuda" is the pretended device. Yields the record, which starts empty.

    Inference mode is `no_grad` there, because torch cannot detach subclasses in it.
    """
    _record.clear()
    with (
        _Redirect(),
        mock.patch.object(torch._C, "_InferenceMode", _no_grad_if),
        mock.patch.object(torch.cuda, "synchronize", _synchronize),
        mock.patch.object(torch, "Generator", _Generator),
        mock.patch.object(nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", _group_by_device),
    ):
        yield _record


def on_cuda(module: nn.Module) -> nn.Module:
    """The module with its parameters, buffers and the states of its metrics on the pretended device."""
    shared: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not isinstance(parameter, PretendedTensor):
                new = nn.Parameter(PretendedTensor(parameter.detach()), parameter.requires_grad)
                part._parameters[name] = shared.setdefault(id(parameter), new)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else _pretend(buffer)
        if isinstance(part, Metric):
            for name, default in part._defaults.items():
                if isinstance(default, Tensor):
                    part._defaults[name] = _pretend(default)
                    setattr(part, name, _pretend(getattr(part, name)))
    return module


class PretendedStrategy(SingleDeviceStrategy):
    """One pretended GPU for a Lightning Trainer, inside `pretend_cuda`."""

    def __init__(self) -> None:
        super().__init__(device="cpu", accelerator=CPUAccelerator())

    @property
    def root_device(self) -> torch.device:
        return CUDA

    def model_to_device(self) -> None:
        on_cuda(self.model)
        self.model._device = CUDA

    def setup_environment(self) -> None:
        """Without the accelerator's check that it is a CPU."""

    def teardown(self) -> None:
        """The module stays on the pretended device."""
