"""AdamW with the "efficient" bias correction and decoupled weight decay.

Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, end of section 2. With m and v the running means of the gradient and
of its square, both bias corrections are part of the step size:

    alpha_t = lr sqrt(1 - b2^t) / (1 - b1^t),   p -= alpha_t m / (sqrt(v) + eps)

So eps is not divided by sqrt(1 - b2^t), and has more influence in the first steps than in torch.optim.AdamW. Weight
decay (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) then acts on the updated weights, p -= lr wd p; torch
decays before the update. With correct_bias=False alpha_t = lr, as in the original BERT.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from zoo.errors import UserError
from zoo.private_apis.torch_api import fused_adamw, has_fused_adamw
from zoo.sharding.tensors import is_divided, local

Bucket = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # parameters, gradients, m, v


class AdamW(Optimizer):
    """AdamW as defined in this module, for dense real parameters.

    Args:
        params: parameters, or dictionaries with "params" and settings of a group.
        lr: learning rate, at least 0.
        betas: decay rates of the running means of the gradient and of its square, in [0, 1).
        eps: added to the root of the second moment, at least 0.
        weight_decay: decoupled weight decay, at least 0; 0 turns it off.
        correct_bias: correct the running means for their start at 0; False: alpha_t = lr.
        fused: True: update by torch's fused kernel, for float parameters on a CPU or a CUDA GPU; False: by the plain
            formula; None: by the kernel where it exists.

    Raises:
        UserError: a setting is outside its range, a gradient is sparse, or fused=True does not support a parameter.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias,
            "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = {**self.defaults, **param_group}
        # The settings of every group are checked, also of groups that are added later.
        for name in ("lr", "eps", "weight_decay"):
            if not group[name] >= 0:
                raise UserError(f"AdamW: {name} must be at least 0, not {group[name]}")
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise UserError(f"AdamW: betas must be in [0, 1), not {group['betas']}")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if there is one."""
        # The closure, if given, computes the loss and the gradients again.
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for (step, fused, _, _), bucket in self._buckets(group).items():
                # alpha_t = lr sqrt(1 - b2^t) / (1 - b1^t), the same for all parameters of a bucket.
                beta1, beta2 = group["betas"]
                correction = (1 - beta2**step) ** 0.5 / (1 - beta1**step)
                alpha = group["lr"] * (correction if group["correct_bias"] else 1.0)
                (_fused_step if fused else _plain_step)(bucket, group, step, alpha)
        return loss

    def _buckets(self, group: dict[str, Any]) -> dict[tuple[int, bool, torch.device, torch.dtype], Bucket]:
        """Parameters with a gradient, grouped by (step, fused, device, dtype): one kernel call updates each bucket."""
        buckets: dict[Any, Bucket] = defaultdict(lambda: ([], [], [], []))
        # lr wd = 1 sets the weights to 0, which the fused kernel cannot express: see `_fused_step`.
        has_kernel = has_fused_adamw()
        is_allowed = has_kernel and group["fused"] is not False and group["lr"] * group["weight_decay"] < 1
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.is_sparse:
                raise UserError("AdamW needs dense gradients: build the embedding with sparse=False")
            # The first update starts with running means of 0.
            state = self.state[parameter]
            if not state:
                state["step"] = 0  # a plain int: reading it never waits for a GPU
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            # Use the fused kernel where it exists and the settings allow it.
            device = parameter.device
            is_supported = device.type in ("cpu", "cuda") and parameter.is_floating_point()
            if group["fused"] and not (has_kernel and is_supported):
                raise UserError(f"AdamW: fused=True has no kernel for {parameter.dtype} on {device}")
            parameters, gradients, m, v = buckets[state["step"], is_allowed and is_supported, device, parameter.dtype]
            tensors = [parameter, gradient, state["exp_avg"], state["exp_avg_sq"]]
            if is_divided(parameter):  # the update is elementwise: each process updates its part
                tensors = [local(tensor) for tensor in tensors]
            parameters.append(tensors[0])
            gradients.append(tensors[1])
            m.append(tensors[2])
            v.append(tensors[3])
        return buckets


def _plain_step(bucket: Bucket, group: dict[str, Any], step: int, alpha: float) -> None:
    """The update as in the module's documentation."""
    beta1, beta2 = group["betas"]
    for parameter, gradient, m, v in zip(*bucket, strict=True):
        # The running means m and v, then p -= alpha_t m / (sqrt(v) + eps), then the decay of the updated weights.
        m.lerp_(gradient, 1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        parameter.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-alpha)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])


def _fused_step(bucket: Bucket, group: dict[str, Any], step: int, alpha: float) -> None:
    """The same update by torch's fused kernel. With its settings lr', wd' and eps' the kernel computes

        p <- (1 - lr' wd') p - lr' / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps')

    The update of this class, multiplied out, is

        p <- (1 - lr wd) p - (1 - lr wd) alpha m / (sqrt(v) + eps)

    Both are equal for eps' = eps / sqrt(1 - b2^t), lr' sqrt(1 - b2^t) / (1 - b1^t) = (1 - lr wd) alpha, lr' wd' = lr
    wd.
    """
    parameters, gradients, m, v = bucket
    beta1, beta2 = group["betas"]
    # Solve the equations above for lr', eps' and wd', and pass these to the kernel.
    root, decay = (1 - beta2**step) ** 0.5, group["lr"] * group["weight_decay"]
    lr = (1 - decay) * alpha * (1 - beta1**step) / root
    steps = [torch.full((), float(step), dtype=torch.float32, device=parameters[0].device)] * len(parameters)
    fused_adamw(
        parameters, gradients, m, v, steps, lr=lr, beta1=beta1, beta2=beta2, eps=group["eps"] / root,
        weight_decay=decay / lr if decay else 0.0,
    )  # fmt: skip
