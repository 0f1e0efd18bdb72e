"""Plots of a regression model: predictions over targets, calibration, and the model's own figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

if TYPE_CHECKING:  # imported when something is drawn: it takes half a second
    from matplotlib.figure import Figure


class Plots(Callback):
    """Draw predictions over targets, the calibration of predicted distributions, and the model's `figures()`.

    Validate, test and predict write `test-scatter.png`, `test-calibration.png` and so on into the run's folder; each
    validation during fit writes its figures to TensorBoard. `pl_module.figures() -> {name: Figure}` is optional.
    The data are what a step returns: "prediction" and "target", and for the calibration "pit", the predicted
    distribution function at the target; as tensors (B, K), or in a list of rows. Rows without a target are left out.
    With several processes only the rows of the first are drawn.

    Args:
        enabled: whether to draw.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._columns: dict[str, list[np.ndarray]] = {}

    def _collect(self, outputs: Any) -> None:
        rows = outputs if isinstance(outputs, list) else [outputs]
        for row in rows if self.enabled else []:
            if isinstance(row, dict) and {"prediction", "target"} <= row.keys():
                for name in {"prediction", "target", "pit"} & row.keys():
                    values = torch.as_tensor(row[name]).detach().double().cpu().flatten()
                    self._columns.setdefault(name, []).append(values.numpy())

    def _figures(self, model: Any) -> "dict[str, Figure]":
        # All values since the last figures, which the next ones do not include.
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        self._columns = {}
        figures: dict[str, Figure] = model.figures() if self.enabled and hasattr(model, "figures") else {}
        if columns:
            figures["scatter"] = scatter(columns["prediction"], columns["target"])
        if "pit" in columns:
            figures["calibration"] = calibration(columns["pit"])
        return figures

    def _write(self, trainer: Trainer, model: Any) -> None:
        assert trainer.state.fn is not None
        folder = Path(trainer.default_root_dir)
        for name, figure in self._figures(model).items():
            if trainer.is_global_zero:
                folder.mkdir(parents=True, exist_ok=True)  # missing where only an evaluation was run
                figure.savefig(folder / f"{trainer.state.fn.value}-{name}.png", dpi=120)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return self._write(trainer, pl_module)
        # Drawn by every rank and also for the sanity check, which clears the collected values.
        figures = self._figures(pl_module)
        if not trainer.sanity_checking and trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            for name, figure in figures.items():
                trainer.logger.experiment.add_figure(name, figure, trainer.global_step)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._collect(outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._collect(outputs)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._collect(outputs)


def scatter(predictions: np.ndarray, targets: np.ndarray) -> "Figure":
    """Predictions (N,) over targets (N,), with the diagonal on which both are equal."""
    figure, axes = _square()
    axes.scatter(targets, predictions, s=6, alpha=0.4, linewidths=0)
    axes.axline((0, 0), slope=1, color="black", linewidth=0.8)
    axes.set(xlabel="target", ylabel="prediction", title=f"{len(targets):,} predictions")
    return figure


def calibration(pit: np.ndarray) -> "Figure":
    """Share of targets below each predicted quantile, from the distribution functions at the targets, pit (N,)."""
    figure, axes = _square()
    levels = np.linspace(0, 1, 101)
    axes.plot(levels, [(pit <= level).mean() for level in levels])
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    axes.set(xlabel="predicted quantile", ylabel="share of targets below it", title="calibration")
    return figure


def _square() -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    return figure, figure.subplots()
