"""The score function: another estimator of the gradients in `zoo.icr.analysis.gradients`, to compare them with.

Williams 1992, https://doi.org/10.1007/BF00992696.
"""

import torch
from torch import Tensor

from zoo.icr.analysis.gradients import BATCH, Estimate, Normals, Predictor, estimate, losses, parts


@torch.no_grad()
def score_function(model: Predictor, parameters: Tensor, draws: Normals) -> tuple[Estimate, Estimate]:
    """The expected loss () and its gradient (4D + 2,), E[(L - b) d log p / d parameters].

    The baseline b is the mean loss of the other prompts.
    """
    # The losses of all prompts.
    batches = zip(*(part.split(BATCH) for part in draws), strict=True)
    loss = torch.cat([losses(model, parameters.expand(len(batch[0]), -1), Normals(*batch)) for batch in batches])
    # For N(m, s^2), d log p / dm = u / s and d log p / ds = (u^2 - 1) / s, with u the standard normal draw.
    u, v, r = draws.x, draws.task, draws.noise[..., None]
    sums = [u.sum(1), (u**2 - 1).sum(1), v, v**2 - 1, r.sum(1), (r**2 - 1).sum(1)]
    p = parts(parameters)
    score = torch.cat(sums, -1) / torch.cat([p[f"{name}_sd"] for name in ("x", "x", "task", "task", "noise", "noise")])
    # L - b, with b the mean of the other prompts, is n / (n - 1) times L - mean L.
    n = len(loss)
    return estimate(loss), estimate((loss - loss.mean())[:, None] * n / (n - 1) * score)
