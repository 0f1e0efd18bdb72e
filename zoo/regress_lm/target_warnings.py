"""Warnings about training targets that the tokens of numbers do not represent well."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from zoo.regress_lm.number_formats import finer_format
from zoo.regress_lm.vocabulary import NumberVocabulary
from zoo.training.distinct_targets import find_merged, warn_of_constant


def warn_of_targets(
    vocabulary: NumberVocabulary,
    targets: np.ndarray,
    is_absent: np.ndarray,
    tokens: Tensor,
    settings: Mapping[str, Any],
) -> None:
    """Warn of targets that are clamped to the range of the tokens, are all equal, or become equal as tokens.

    Args:
        vocabulary: vocabulary of the number tokens.
        targets: (N, K) of the rows of the data, without copies and synthetic rows.
        is_absent: (N, K) whether a row has no such target.
        tokens: (N, L) of the targets.
        settings: `number_format`, `number_digits` and `number_exponent` of the model.
    """
    vocabulary.tokenizer.encode(targets[~is_absent])  # warns of those that are clamped
    warn_of_constant(np.where(is_absent, np.nan, targets))
    represented = vocabulary.decode(tokens)
    for merged in find_merged(np.where(is_absent, np.nan, targets), represented):
        format_settings = (settings[name] for name in ("number_format", "number_digits", "number_exponent"))
        better = finer_format(merged.quantiles, *format_settings)
        warnings.warn(
            f"{merged.describe(vocabulary.n_objectives)} as number tokens, so that the model cannot tell them "
            f"apart: {f'set {better}' if better else 'subtract a constant from them, or scale them'}",
            stacklevel=3,
        )


def warn_of_unscored(vocabulary: NumberVocabulary, targets: np.ndarray) -> bool:
    """Warn if one of the targets (B, K) of an evaluation is outside the range of the tokens; returns whether one is.

    NaN does not count. The other scores, such as the mean absolute error, are those of the targets as they are given.
    """
    values = targets[np.isfinite(targets)]
    outside = values[vocabulary.tokenizer.encode_clamped(values)[1]] if len(values) else values
    if not len(outside):
        return False
    low, high = vocabulary.tokenizer.limits
    warnings.warn(
        f"a target, {outside[0]:g}, is beyond the range of the number tokenizer, {low:g} to {high:g}: loss and nll are "
        "those of the nearest number in it",
        stacklevel=3,
    )
    return True
