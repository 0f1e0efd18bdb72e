"""AdamW with the "efficient" bias correction and decoupled weight decay.

Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, end of section 2: both bias corrections move into the step,

    alpha_t = lr sqrt(1 - b2^t) / (1 - b1^t),   p -= alpha_t m / (sqrt(v) + eps),

so eps is not divided by sqrt(1 - b2^t) and weighs more in the first steps than in torch.optim.AdamW. Then decay,
Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101, on the weights that have already moved (torch decays
before): p -= lr wd p. With correct_bias=False alpha_t = lr, as in BERT's original.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from zoo.errors import UserError

Bucket = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # parameters, gradients, m, v


class AdamW(Optimizer):
    """The rule above, for dense real parameters.

    `fused` None takes torch's one-pass kernel where it has one (float parameters on a CPU or a CUDA GPU), True
    insists on it, False takes the plain path, which is the definition. Raises ValueError for settings outside
    their range and for sparse gradients.
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
        for name in ("lr", "eps", "weight_decay"):
            if not group[name] >= 0:
                raise UserError(f"AdamW: {name} must be at least 0, not {group[name]}")
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise UserError(f"AdamW: betas must lie in [0, 1), not {group['betas']}")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for (step, fused, _, _), bucket in self._buckets(group).items():
                beta1, beta2 = group["betas"]
                correction = (1 - beta2**step) ** 0.5 / (1 - beta1**step)
                alpha = group["lr"] * (correction if group["correct_bias"] else 1.0)
                (_fused_step if fused else _plain_step)(bucket, group, step, alpha)
        return loss

    def _buckets(self, group: dict[str, Any]) -> dict[tuple[int, bool, torch.device, torch.dtype], Bucket]:
        """The group's parameters with a gradient: those that one kernel call may take lie together."""
        buckets: dict[Any, Bucket] = defaultdict(lambda: ([], [], [], []))
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.is_sparse:
                raise UserError("AdamW needs dense gradients: build the embedding with sparse=False")
            state = self.state[parameter]
            if not state:
                state["step"] = 0  # a plain int: reading it never waits for a GPU
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            fused = parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda")
            if group["fused"] and not fused:
                raise UserError(f"AdamW: fused=True has no kernel for {parameter.dtype} on {parameter.device}")
            # lr wd = 1 would set the weights to 0: the one case the fused kernel's terms cannot express.
            fused = fused and group["fused"] is not False and group["lr"] * group["weight_decay"] < 1
            bucket = buckets[state["step"], fused, parameter.device, parameter.dtype]
            tensors = (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])
            for part, tensor in zip(bucket, tensors, strict=True):
                part.append(tensor)
        return buckets


def _plain_step(bucket: Bucket, group: dict[str, Any], step: int, alpha: float) -> None:
    beta1, beta2 = group["betas"]
    for parameter, gradient, m, v in zip(*bucket, strict=True):
        m.lerp_(gradient, 1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        parameter.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-alpha)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])


def _fused_step(bucket: Bucket, group: dict[str, Any], step: int, alpha: float) -> None:
    """The same update by torch's kernel, which computes, in one pass over memory and with hats for its settings,

        p <- (1 - lr^ wd^) p - lr^ / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps^)

    while ours, multiplied out, is p <- (1 - lr wd) p - (1 - lr wd) alpha m / (sqrt(v) + eps): equal where
    eps^ = eps / sqrt(1 - b2^t), lr^ sqrt(1 - b2^t) / (1 - b1^t) = (1 - lr wd) alpha and lr^ wd^ = lr wd.
    """
    parameters, gradients, m, v = bucket
    beta1, beta2 = group["betas"]
    root, decay = (1 - beta2**step) ** 0.5, group["lr"] * group["weight_decay"]
    lr = (1 - decay) * alpha * (1 - beta1**step) / root
    steps = [torch.full((), float(step), device=parameters[0].device)] * len(parameters)
    torch._fused_adamw_(
        parameters, gradients, m, v, [], steps, lr=lr, beta1=beta1, beta2=beta2, eps=group["eps"] / root,
        weight_decay=decay / lr if decay else 0.0, amsgrad=False, maximize=False,
    )  # fmt: skip
