"""Figures of regression: predictions over targets, calibration, ranking and intervals. Drawing imports matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zoo.callbacks.ranking import (
    Best,
    Floats,
    best_found,
    best_found_at_random,
    ranked,
    top_k_recall,
    top_k_recall_at_random,
)

if TYPE_CHECKING:  # imported when something is drawn: it takes half a second
    from matplotlib.figure import Figure

Names = Sequence[str] | None
LONGEST_NAME = 40  # characters of a name in a title
MOST_POINTS = 200  # values of k at which the curves of a ranking are drawn


def scatter(predictions: Floats, targets: Floats, names: Names = None) -> "Figure":
    """Predictions over targets, with the diagonal on which both are equal, on two equal axes; a panel per objective.

    The targets set the limits of both axes; predictions outside them are drawn at the edge and counted in the title.

    Args:
        predictions: (N, K) or (N,) predicted numbers.
        targets: (N, K) or (N,) true numbers.
        names: names of K objectives, for the titles. Default: their numbers.
    """
    predictions, targets = _columns(predictions), _columns(targets)
    figure, panels = _panels(predictions.shape[1])
    for k, axes in enumerate(panels):
        _scatter(axes, predictions[:, k], targets[:, k], _name(k, panels, names))
    return figure


def _scatter(axes: Any, predictions: Floats, targets: Floats, name: str) -> None:
    known = np.isfinite(targets) & ~np.isnan(predictions)
    true, predicted = targets[known], predictions[known]
    title = f"{name}{len(true):,} predictions"
    if len(true):
        low, high = true.min() / 2, true.max() / 2  # halves: the difference of two large numbers remains finite
        margin = 0.1 * (high - low) or max(abs(high), 0.5)
        low, high = np.nan_to_num(2 * (low - margin)), np.nan_to_num(2 * (high + margin))
        is_outside = (predicted < low) | (predicted > high)
        axes.scatter(true[~is_outside], predicted[~is_outside], s=8, alpha=0.4, linewidths=0, label="prediction")
        if is_outside.any():
            title += f", {is_outside.sum():,} outside the range shown"
            edge = predicted[is_outside].clip(low, high)
            axes.scatter(true[is_outside], edge, s=16, marker="x", color="tab:red", clip_on=False, label="outside")
        axes.plot([low, high], [low, high], color="black", linewidth=0.8, label="equal")
        axes.set(xlim=(low, high), ylim=(low, high))
        axes.legend(loc="upper left")
    axes.set_aspect("equal")
    axes.set(xlabel="target", ylabel="prediction", title=title)


def calibration(pit: Floats, names: Names = None) -> "Figure":
    """Share of targets below each predicted quantile, a line per objective.

    Args:
        pit: (N, K) or (N,) the predicted distribution functions at the targets.
        names: names of K objectives, for the legend. Default: their numbers.
    """
    pit = _columns(pit)
    figure, (axes,) = _panels(1)
    levels = np.linspace(0, 1, 101)
    for k, column in enumerate(pit.T):
        label = "model" if pit.shape[1] == 1 else f"model, {_shown(names, k)}"
        axes.plot(levels, [(column <= level).mean() for level in levels], label=label)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, label="calibrated")
    axes.set_aspect("equal")
    axes.legend(loc="upper left")
    axes.set(xlabel="predicted quantile", ylabel="share of targets below it", title="calibration")
    return figure


def ranking(predictions: Floats, targets: Floats, best: Best = "min", names: Names = None) -> "Figure":
    """Search by predictions: the share of the k best targets among the k best predictions, and the best target found.

    Both are drawn against the number k of candidates tried, next to the expectation for a random order and to the
    oracle, which knows the targets. Each objective has two panels. Rows with a NaN are left out.

    Args:
        predictions: (N, K) predicted numbers.
        targets: (N, K) true numbers.
        best: whether the smallest ("min") or the largest ("max") numbers are the best.
        names: names of K objectives, for the titles. Default: their numbers.
    """
    figure, panels = _panels(2 * predictions.shape[1], height=3.2)
    panels = panels.reshape(-1, 2)
    for k, (top, bottom) in enumerate(panels):
        known = ~(np.isnan(predictions[:, k]) | np.isnan(targets[:, k]))
        predicted, true = predictions[known, k], targets[known, k]
        n = len(true)
        top.set(xlabel="k", ylabel="top-k recall", xscale="log", ylim=(0, 1.05))
        bottom.set(xlabel="candidates tried", ylabel=f"best target found ({best})", xscale="log")
        if not n:
            continue
        tried = np.unique(np.geomspace(1, n, MOST_POINTS).round().astype(int))
        recall, at = top_k_recall(predicted, true, best), tried - 1
        tenth = max(1, n // 10)
        top.plot(tried, recall[at], label="predictions")
        top.plot(tried, top_k_recall_at_random(true, best)[at], "--", label="random order")
        top.axhline(1, color="black", linewidth=0.8, label="oracle")
        top.set_title(f"{_name(k, panels, names)}top-{tenth} recall of {n:,}: {recall[tenth - 1]:.2f}")
        bottom.plot(tried, best_found(predicted, true, best)[at], label="predictions")
        bottom.plot(tried, best_found_at_random(true, best, tried.tolist()), "--", label="random order")
        bottom.axhline(true[ranked(true, best)[0]], color="black", linewidth=0.8, label="oracle")
        top.legend(loc="lower right")
        bottom.legend()
    return figure


def intervals(
    predictions: Floats, targets: Floats, low: Floats | None, high: Floats | None, names: Names = None
) -> "Figure":
    """Predictions, targets and central 50% intervals in the order of the targets, a panel per objective.

    Args:
        predictions: (N, K) predicted numbers.
        targets: (N, K) true numbers; rows in which one is NaN are left out.
        low: (N, K) predicted 25% quantiles; None for models without a distribution.
        high: (N, K) predicted 75% quantiles; None for models without a distribution.
        names: names of K objectives, for the titles. Default: their numbers.
    """
    figure, panels = _panels(predictions.shape[1], width=6)
    for k, axes in enumerate(panels):
        known = np.flatnonzero(~np.isnan(targets[:, k]))
        order = known[np.argsort(targets[known, k], kind="stable")]
        places = np.arange(len(order))
        title = f"{_name(k, panels, names)}{len(order):,} rows"
        if low is not None and high is not None:
            below, above, true = low[order, k], high[order, k], targets[order, k]
            axes.fill_between(places, below, above, alpha=0.3, linewidth=0, label="25% to 75%")
            if len(order):
                title += f", {((below <= true) & (true <= above)).mean():.0%} within 25% to 75%"
        axes.plot(places, predictions[order, k], linewidth=0.8, label="prediction")
        axes.plot(places, targets[order, k], color="black", linewidth=1.2, label="target")
        axes.set(xlabel="row, by target", ylabel="number", title=title)
        _limit(axes, targets[order, k])
        axes.legend()
    return figure


def _limit(axes: Any, targets: Floats) -> None:
    """Let the targets set the limits, so that a few extreme predictions do not hide all others."""
    finite = targets[np.isfinite(targets)]
    if len(finite) and np.ptp(finite) > 0:
        axes.set_ylim(finite.min() - 0.5 * np.ptp(finite), finite.max() + 0.5 * np.ptp(finite))


def _columns(values: Floats) -> Floats:
    """(N, K) of (N, K) or (N,)."""
    return values[:, None] if values.ndim == 1 else values


def _name(objective: int, panels: NDArray[Any], names: Names) -> str:
    return f"{_shown(names, objective)}: " if len(panels) > 1 else ""


def _shown(names: Names, objective: int) -> str:
    """A name as matplotlib draws it unchanged: two dollar signs would enclose a formula."""
    if names is None:
        return f"objective {objective + 1}"
    name = names[objective]
    return (name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}...").replace("$", r"\$")


def _panels(down: int, width: float = 4.5, height: float = 4.5) -> "tuple[Figure, NDArray[Any]]":
    """A figure with panels (down,) in one column: TensorBoard shows every figure in the width of a few inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * down), layout="constrained")
    return figure, figure.subplots(down, 1, squeeze=False)[:, 0]
