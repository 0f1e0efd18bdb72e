"""Requirements of `solve` on f, x and z0: checks that raise UserError where gradients would be missing or wrong."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn.parallel import DataParallel, DistributedDataParallel

from zoo.errors import UserError
from zoo.private_apis.torch_api import transforms_are_active, version
from zoo.revdeq.solver.evaluation import BoundModule, Evaluate


def check_inputs(f: Any, x: Any, z0: Any, state_dtype: Any) -> tuple[Tensor, ...]:
    """Check the types and shapes of the arguments of `solve`, and return x as a tuple.

    Raises:
        UserError: one of them is not what `solve` needs.
    """
    inputs = x if isinstance(x, tuple) else (x,)
    if not inputs or not all(isinstance(part, Tensor) for part in inputs):
        kinds = ", ".join(type(part).__name__ for part in inputs) if isinstance(x, tuple) else type(x).__name__
        raise UserError(f"x must be a tensor or a tuple of tensors, not {kinds or 'an empty tuple'}")
    if not inputs[0].is_floating_point():
        raise UserError(f"x must be of a floating-point dtype, in which f computes, not {inputs[0].dtype}")
    if not inputs[0].ndim:
        raise UserError("x must have an axis of samples, (B, ...), but it is a single number")
    if not isinstance(state_dtype, torch.dtype) or not state_dtype.is_floating_point:
        raise UserError(f"state_dtype must be a floating-point dtype of torch, not {state_dtype!r}")
    if z0 is not None:
        if not isinstance(z0, Tensor) or z0.is_complex():
            raise UserError(f"z0 must be a tensor of real numbers, not {getattr(z0, 'dtype', type(z0).__name__)}")
        # Not len(), which torch.export would make a constant.
        if not z0.ndim or z0.shape[0] != inputs[0].shape[0]:
            samples = z0.shape[0] if z0.ndim else "no axis of"
            raise UserError(f"z0 has {samples} samples, but x {inputs[0].shape[0]}: they must be equal")
        if z0.device != inputs[0].device:
            raise UserError(f"z0 is on {z0.device}, but x on {inputs[0].device}: move one of them")
    if not isinstance(f, nn.Module) and (torch.is_grad_enabled() or not callable(f)):
        raise UserError("f must be an nn.Module: gradients go to its parameters")
    if isinstance(f, DistributedDataParallel | DataParallel):
        raise UserError(f"f must not be a {type(f).__name__}: wrap the model that calls solve in it instead")
    if isinstance(f, torch.jit.ScriptModule):
        raise UserError("f must not be a scripted module, which solve cannot evaluate: pass the original one")
    return inputs


def refuse_transforms(backward: str, tensors: Sequence[Tensor]) -> None:
    """Raises UserError under torch.func.grad, vmap, jvp and the like, and for tensors with a forward-mode tangent."""
    if torch.compiler.is_compiling():
        return
    if transforms_are_active() or any(unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise UserError(
            f"backward={backward} does not work under torch.func.grad, vmap, jvp or forward-mode derivatives: set "
            "backward=unroll, without a tolerance"
        )


def refuse_inference_tensors(tensors: Sequence[Tensor]) -> None:
    """Raises UserError if a tensor was made in inference mode, so that autograd cannot save it."""
    if any(tensor.is_inference() for tensor in tensors):
        raise UserError(
            "x, z0 or a parameter or buffer of f was made in torch.inference_mode, where no gradients are possible: "
            "clone it outside, or call solve under torch.no_grad"
        )


CHANGED = (
    "x, z0 or a parameter or buffer of f was changed between solve and its backward pass: call backward() before "
    "optimizer.step() and other changes in place"
)


def read_saved_tensors(ctx: Any) -> tuple[Tensor, ...]:
    """The tensors that the forward pass of an autograd Function has saved.

    Raises:
        UserError: one of them was changed in place since then.
    """
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            raise UserError(CHANGED) from error
        raise


def refuse_second_derivatives(backward: str) -> None:
    """Raises UserError in a backward pass that is itself recorded (create_graph=True)."""
    if torch.is_grad_enabled():
        raise UserError(f"backward={backward} has no second derivatives (create_graph=True): set backward=unroll")


@contextmanager
def refuse_changing_state(f: BoundModule | None, device: torch.device, backward: str) -> Iterator[None]:
    """A context for the forward pass. Raises UserError if f drew random numbers in it, or changed a tensor it owns.

    The backward pass evaluates f again, and would then see other values.

    Args:
        f: the module.
        device: device of the states, whose random numbers f may draw.
        backward: gradient method, for the message.
    """
    if f is None or torch.compiler.is_compiling():
        yield
        return
    # BatchNorm's kernel does not count its changes of running statistics: compare values where that is cheap.
    buffers = dict(f.f.named_buffers())
    counts = {name: version(f.tensors[i]) for name, i in f.names.items()}
    copies = {name: buffer.clone() for name, buffer in buffers.items() if buffer.device.type == "cpu"}
    random_state = _random_state(device)
    yield
    remedy = f"so backward={backward}, which evaluates it again, would differentiate another function"
    changed = {*f.reassigned, *(name for name, i in f.names.items() if counts[name] != version(f.tensors[i]))}
    for name, buffer in f.f.named_buffers():
        is_same = buffer is buffers.get(name)
        if is_same and name in copies:
            is_same = torch.equal(buffer.nan_to_num(), copies[name].nan_to_num())
        if not is_same:
            changed.add(name)
    if changed:
        name = min(changed)
        kind = "buffer" if any(name == n for n, _ in f.f.named_buffers(remove_duplicate=False)) else "parameter"
        raise UserError(
            f"f changes its {kind} {name} when it is called, {remedy}: call f.eval(), use a layer without running "
            "statistics, or set backward=unroll"
        )
    if not all(map(torch.equal, random_state, _random_state(device))):
        raise UserError(
            f"f draws random numbers, {remedy}: pass dropout masks in x, call f.eval(), or set backward=unroll"
        )


def _random_state(device: torch.device) -> list[Tensor]:
    """The states of the random generators of the CPU and the device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda" and torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing():
        states.append(torch.cuda.get_rng_state(device))
    return states


class Unchanged:
    """A function that refuses to be evaluated after its tensors have changed, as autograd does for saved tensors.

    Args:
        evaluate: the function.
        tensors: tensors that it uses; they may change until `finish` is called.
    """

    def __init__(self, evaluate: Evaluate, tensors: Sequence[Tensor]) -> None:
        self.evaluate, self.tensors = evaluate, tensors
        self.counts: list[int] | None = None

    def finish(self) -> None:
        """The forward pass is over: from now on the tensors must stay as they are."""
        self.counts = [version(tensor) for tensor in self.tensors]

    def __call__(self, state: Tensor) -> Tensor:
        if self.counts is not None and self.counts != [version(tensor) for tensor in self.tensors]:
            raise UserError(CHANGED)
        return self.evaluate(state)
