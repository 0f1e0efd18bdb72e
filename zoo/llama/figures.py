"""The room's pictures; matplotlib is imported when one is drawn, for it takes half a second."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion(counts: np.ndarray, names: list[str], title: str) -> "Figure":
    """counts (C, C) of rows of a true class (down) that were given each class (across)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 0.8 * len(names), 1.6 + 0.8 * len(names)), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (down, across), count in np.ndenumerate(counts):
        color = "white" if shares[down, across] > 0.5 else "black"
        axes.text(across, down, f"{count:,}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=30)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return figure
