"""Figures of the ICR transformer. matplotlib is imported when one is drawn, because that takes half a second."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"pretrain": "tasks of the pool", "true": "new tasks"}
LABELS = {"dmmse": "dMMSE", "least_squares": "least squares"}


def plot_error_curves(curves: dict[str, dict[str, list[float]]], title: str) -> "Figure":
    """Squared error against the number of examples seen, one line per predictor (K values), one panel per kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (kind, lines) in zip(panels, curves.items(), strict=True):
        for name, errors in lines.items():
            is_model = name == "transformer"
            style = {"linewidth": 2.5, "color": "black"} if is_model else {"linewidth": 1.2, "linestyle": "--"}
            axes.plot(range(len(errors)), errors, label=LABELS.get(name, name), **style)
        # Least squares is unbounded where there are as many examples as D: it does not set the limits.
        shown = [error for name, errors in lines.items() if name != "least_squares" for error in errors]
        axes.set(xlabel="examples in the context", title=TITLES.get(kind, kind), yscale="log")
        axes.set_ylim(top=1.5 * max(shown))
    panels[0].set_ylabel("mean squared error")
    panels[0].legend()
    figure.suptitle(title)
    return figure
