"""The figure of a confusion matrix. matplotlib is imported when one is drawn: its import takes half a second."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_confusion_matrix(counts: np.ndarray, names: list[str], title: str) -> "Figure":
    """A confusion matrix, coloured by each cell's share of its row.

    Args:
        counts: (C, C) numbers of texts by true class (rows) and predicted class (columns).
        names: names of the C classes.
        title: title of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 0.8 * len(names), 1.6 + 0.8 * len(names)), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)  # (C, C)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, predicted), count in np.ndenumerate(counts):
        color = "white" if shares[true, predicted] > 0.5 else "black"
        axes.text(predicted, true, f"{count:,}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=30)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return figure
