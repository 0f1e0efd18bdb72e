"""One figure per analysis, drawn from the content of its JSON file. matplotlib is imported when one is drawn."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.icr.analysis.gradients import PARTS
from zoo.icr.analysis.scores import mean
from zoo.icr.figures import TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = dict[str, Any]
EXACT = {"ridge": "--", "dmmse": ":"}
MEASURES = {"mse": "error", "to_ridge": "distance to ridge", "to_dmmse": "distance to dmmse"}


def scores(result: Result) -> "Figure":
    """Error and distances to ridge and dMMSE against M, on both kinds of prompts; the colour shows the step."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    rows, references = result["checkpoints"], result["references"]
    diversities = [reference["M"] for reference in references]
    steps = sorted({row["step"] for row in rows})
    colours: Any = ScalarMappable(Normalize(steps[0], max(steps[-1], steps[0] + 1)), "viridis_r")
    after = {step: {row["M"]: row for row in rows if row["step"] == step} for step in steps}
    last = {row["M"]: row for row in rows}  # rows are sorted by M and step
    measures = [name for name in MEASURES if any(row["true"][name] for row in rows)]  # no dMMSE for infinite pools
    figure, panels = _panels(2, len(measures), sharex=True)
    for kind, across in zip(("true", "pretrain"), panels, strict=True):
        for measure, axes in zip(measures, across, strict=True):

            def curve(of: dict[Any, Result], kind: str = kind, measure: str = measure) -> list[float]:
                return [mean(of[M], kind, measure) if M in of else float("nan") for M in diversities]

            for step in steps:
                axes.plot(curve(after[step]), color=colours.to_rgba(step), marker=".")
            axes.plot(curve(last), color="black", linewidth=2.5, label="each M's last checkpoint")
            for name, dashes in EXACT.items():
                if measure != f"to_{name}":
                    exact = curve({reference["M"]: reference[name] for reference in references})
                    axes.plot(exact, color="tab:red", linestyle=dashes, label=name)
            axes.set_xticks(range(len(diversities)), [str(M) for M in diversities])
            axes.set(title=f"{TITLES[kind]}: {MEASURES[measure]}", xlabel="M, tasks in the pool", yscale="log")
            axes.legend(fontsize="small")
        across[0].set_ylabel("mean square")
    figure.colorbar(colours, ax=panels, label="steps")
    return figure


def gradients(result: Result) -> "Figure":
    """Each part of the gradient against the step: the norm for the means, the average for the standard deviations."""
    figure, panels = _panels(2, 3, sharex=True)
    rows, best = result["checkpoints"], result["ridge"]
    for part, axes in zip(sorted(PARTS, key=lambda part: part.endswith("sd")), panels.flat, strict=True):

        def size(row: Result, part: str = part) -> tuple[float, float]:
            value, error = (np.array(row[name][part]) for name in ("gradients", "standard_errors"))
            if part.endswith("mean"):
                return float(np.linalg.norm(value)), float(np.linalg.norm(error))
            return value.mean(), error.mean()

        for M, colour, some in _by_diversity(rows):
            values, errors = zip(*map(size, some), strict=True)
            axes.errorbar([row["step"] for row in some], values, errors, color=colour, marker=".", label=f"M = {M}")
        axes.axhline(size(best)[0], color="tab:red", linestyle="--", label="ridge")
        size_name = "length of" if part.endswith("mean") else "mean of"
        axes.set(title=part.replace("_", " "), xlabel="steps", ylabel=f"{size_name} dL / d {part.replace('_', ' ')}")
    panels[0, 0].legend(fontsize="small")
    figure.suptitle("Gradient of the expected loss by mean and standard deviation of x, task and noise")
    return figure


def pca(result: Result) -> "Figure":
    """Each M's path through the first two components; a large mark shows its last checkpoint."""
    figure, [[axes]] = _panels(1, 1)
    for M, colour, some in _by_diversity(result["checkpoints"]):
        across, up = zip(*(row["place"] for row in some), strict=True)
        axes.plot(across, up, color=colour, marker=".", label=f"M = {M}")
        axes.plot(across[-1], up[-1], color=colour, marker="o", markersize=9)
    labels = [f"component {i}: {share:.0%} of the variance" for i, share in enumerate(result["explained"], 1)]
    axes.set(xlabel=labels[0], ylabel=labels[1], title="Gradients of the expected loss over training")
    axes.legend(fontsize="small")
    return figure


def regression(result: Result) -> "Figure":
    """Predicted against true OOD score; filled marks are leave-one-out, hollow marks in-sample predictions."""
    figure, [[axes]] = _panels(1, 1)
    for M, colour, some in _by_diversity(result["checkpoints"]):
        true, out, inside = ([row[name] for row in some] for name in ("ood_score", "predicted", "predicted_in_sample"))
        axes.plot(true, out, "o", color=colour, label=f"M = {M}")
        axes.plot(true, inside, "o", color=colour, markerfacecolor="none", markersize=9)
    ends = [f(row["ood_score"] for row in result["checkpoints"]) for f in (min, max)]
    axes.plot(ends, ends, color="gray", linewidth=1)
    r2 = {name: result[f"r2_{name}"] for name in ("leave_one_out", "leave_one_M_out", "in_sample")}
    title = ", ".join(f"{value:.3f} {name.replace('_', ' ')}" for name, value in r2.items() if value is not None)
    axes.set(xlabel="OOD score", ylabel="predicted from the gradients", title=f"R2 {title}")
    axes.legend(fontsize="small")
    return figure


def _panels(down: int, across: int, **options: Any) -> tuple["Figure", np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 4.5 * across, 1 + 4 * down), layout="constrained")
    return figure, figure.subplots(down, across, squeeze=False, **options)


def _by_diversity(rows: list[Result]) -> Iterable[tuple[Any, Any, list[Result]]]:
    """Yields each M with a colour and its rows."""
    from matplotlib import colormaps

    groups: dict[Any, list[Result]] = {}
    for row in rows:
        groups.setdefault(row["M"], []).append(row)
    for i, (M, some) in enumerate(groups.items()):
        yield M, colormaps["viridis_r"]((i + 1) / len(groups)), some
