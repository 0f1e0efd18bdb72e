"""Learning-rate schedules, as multipliers of the peak rate for `torch.optim.lr_scheduler.LambdaLR`."""

import math


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, min_ratio: float = 0.1) -> float:
    """Multiplier of the step-th update (from 0): rises linearly to 1, falls as a cosine to `min_ratio`, stays.

    The first update already moves (1 / warmup_steps), the last warm-up update runs at the peak.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps + 1) / max(1, total_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2


def triangle(step: int, warmup_steps: int, total_steps: int) -> float:
    """Multiplier of the step-th update (from 0): rises linearly to 1 in `warmup_steps`, falls linearly to 0.

    The first update already moves, the last one still does.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (total_steps - step) / (total_steps - warmup_steps + 1)) if total_steps > warmup_steps else 1.0
