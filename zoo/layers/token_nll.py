"""Negative log-likelihood of every token of a sequence, by operations that are deterministic on every device."""

from torch import Tensor


def token_nll(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """-log softmax(logits)[target] (B, T), 0 where the target is `ignored`.

    The same numbers as cross_entropy(logits.mT, targets, reduction="none"), whose CUDA kernel for sequences is refused
    under `torch.use_deterministic_algorithms(True)`.

    Args:
        logits: (B, T, V), fp32 or fp64.
        targets: (B, T) int64, below V.
        ignored: the target that is not scored.
    """
    is_ignored = targets == ignored
    index = targets.masked_fill(is_ignored, 0)[:, None]  # (B, 1, T)
    # The classes are the axis before the last, as in cross_entropy: along another axis torch rounds differently.
    log_probs = logits.mT.log_softmax(1).gather(1, index).squeeze(1)  # (B, T)
    return (-log_probs).masked_fill(is_ignored, 0.0)
