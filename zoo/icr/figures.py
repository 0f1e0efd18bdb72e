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

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (kind, lines) in zip(panels, curves.items(), strict=True):
        for name, errors in lines.items():
            if any(map(math.isfinite, errors)):
                axes.plot(range(len(errors)), errors, label=LABELS.get(name, name), **STYLES[name])
        # Least squares is unbounded where there are as many examples as D: it does not set the limits.
        shown = [e for name, errors in lines.items() if name != "least_squares" for e in errors if math.isfinite(e)]
        axes.set(xlabel="examples in the context", title=TITLES.get(kind, kind), yscale="log")
        axes.set_ylim(top=1.5 * max(shown))
        axes.legend(fontsize="small")
    panels[0].set_ylabel("mean squared error")
    figure.suptitle(title)
    return figure
