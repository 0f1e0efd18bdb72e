"""Figures of the ICR transformer. matplotlib is imported when one is drawn, because that takes half a second."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"pretrain": "tasks of the pool", "true": "new tasks"}
STYLES: dict[str, dict[str, Any]] = {
    "transformer": {"color": "black", "linewidth": 2.5},
    "ridge": {"color": "tab:blue", "linewidth": 1.6, "linestyle": "--"},
    "dmmse": {"color": "tab:orange", "linewidth": 1.6, "linestyle": "-."},
    "least_squares": {"color": "tab:green", "linewidth": 1.6, "linestyle": ":"},
}
LABELS = {"dmmse": "dMMSE", "least_squares": "least squares"}


def plot_error_curves(curves: dict[str, dict[str, list[float]]], title: str) -> "Figure":
    """Squared error against the number of examples seen, one line per predictor (K values), one panel per kind.

    A predictor that is not defined, such as dMMSE for an infinite pool, is left out of the lines and the legend. The
    dashes of the estimators differ, so that equal curves can be distinguished.
    """
    from matplotlib.figure import Figure

    # TensorBoard shows all figures with the same width, at which one column of panels is large enough to be read.
    figure = Figure(figsize=(4.5, 0.5 + 3 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (kind, lines) in zip(panels, curves.items(), strict=True):
        for name, errors in lines.items():
            if any(map(math.isfinite, errors)):
                axes.plot(range(len(errors)), errors, label=LABELS.get(name, name), **STYLES[name])
        # Least squares is unbounded where there are as many examples as D: it does not set the limits.
        shown = [e for name, errors in lines.items() if name != "least_squares" for e in errors if math.isfinite(e)]
        axes.set(ylabel="mean squared error", title=TITLES.get(kind, kind), yscale="log")
        axes.set_ylim(top=1.5 * max(shown))
        axes.legend(fontsize="small")
    panels[-1].set_xlabel("examples in the context")
    figure.suptitle(title)
    return figure
