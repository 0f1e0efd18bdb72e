"""Learning-rate schedules: factors on the peak learning rate, for `torch.optim.lr_scheduler.LambdaLR`."""

import math


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, min_ratio: float = 0.1) -> float:
    """Linear warm-up to 1, then cosine decay to `min_ratio`, which is kept after `total_steps`.

    Args:
        step: index of the optimizer step, from 0.
        warmup_steps: number of warm-up steps; the first has the factor 1 / warmup_steps, the last 1. 0: no warm-up.
        total_steps: number of steps after which the factor is `min_ratio`.
        min_ratio: final factor, from 0 to 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps + 1) / max(1, total_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2


def triangle(step: int, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to 1, then linear decay, which reaches 0 only after the last step.

    Args:
        step: index of the optimizer step, from 0.
        warmup_steps: number of warm-up steps; the first has the factor 1 / warmup_steps, the last 1. 0: no warm-up.
        total_steps: number of steps; the factor at this index is 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (total_steps - step) / (total_steps - warmup_steps + 1)) if total_steps > warmup_steps else 1.0
