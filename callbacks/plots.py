"""Plots of a regression model: predictions over targets, calibration, ranking, intervals, the model's own figures."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zoo.callbacks import regression_figures
from zoo.callbacks.loggers import log_figure
from zoo.callbacks.predictions import Predictions
from zoo.callbacks.ranking import Best
from zoo.errors import check_choice

if TYPE_CHECKING:  # imported when something is drawn: it takes half a second
    from matplotlib.figure import Figure


class Plots(Callback):
    """Draw predictions over targets, the calibration of predicted distributions, and the model's `figures()`.

    Validate and test write `test-scatter.png`, `test-calibration.png` and so on into the run's folder; figures of other
    data, whose name is in the metadata of the file, are not replaced. Predict writes `predictions-scatter.png` and so
    on next to the file of predictions and named after it; an existing figure is replaced only with `--overwrite`. Each
    validation during fit writes its figures to the loggers: images in TensorBoard and W&B, artifacts in MLflow, and
    with CSVLogger files in the folder `figures` next to metrics.csv. `pl_module.figures() -> {name: Figure}` is
    optional.

    The data are what a step returns: "prediction" and "target"; for the calibration "pit", the predicted distribution
    function at the target; and for intervals "quantiles" at 5, 25, 50, 75 and 95% (B, K, 5), or by level. They are
    tensors (B, K), or in a list of rows. Rows without a target are left out. With several processes only the rows of
    the first are drawn. Several objectives have a panel each, with the names `pl_module.target_labels`, which are
    optional.

    Args:
        enabled: whether to draw.
        ranking: also draw `test-ranking.png`, how a search that tries rows in the order of their predictions finds the
            best ones: the smallest targets with "min", the largest with "max". Default: not drawn.
        intervals: also draw `test-intervals.png`, predictions and 25 to 75% intervals in the order of the targets.
    """

    def __init__(self, enabled: bool = True, ranking: Best | None = None, intervals: bool = False) -> None:
        if ranking is not None:
            check_choice("plots.ranking", ranking, ("min", "max"))
        self.enabled, self.ranking, self.intervals = enabled, ranking, intervals
        self._columns: dict[str, list[np.ndarray]] = {}

    def _collect(self, outputs: Any) -> None:
        rows = outputs if isinstance(outputs, list) else [outputs]
        for row in rows if self.enabled else []:
            if isinstance(row, dict) and {"prediction", "target"} <= row.keys():
                for name, values in self._values(row).items():
                    batch = 1 if isinstance(outputs, list) else len(values)
                    self._columns.setdefault(name, []).append(values.reshape(batch, -1))

    def _values(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """Arrays of a batch, (B, K) or (B,), or of one row, (K,) or ()."""
        values: dict[str, Any] = {name: row[name] for name in ("prediction", "target", "pit") if name in row}
        if self.intervals and (quantiles := row.get("quantiles")) is not None:
            levels = ("0.25", "0.75") if isinstance(quantiles, dict) else ((..., 1), (..., 3))
            values |= {name: quantiles[level] for name, level in zip(("low", "high"), levels, strict=True)}
        return {name: torch.as_tensor(value).detach().double().cpu().numpy() for name, value in values.items()}

    def _figures(self, model: Any) -> "dict[str, Figure]":
        # All values since the last figures, which the next ones do not include.
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        self._columns = {}
        figures: dict[str, Figure] = model.figures() if self.enabled and hasattr(model, "figures") else {}
        names = getattr(model, "target_labels", None)
        if "pit" in columns:
            figures["calibration"] = regression_figures.calibration(columns["pit"], names)
        if columns:
            predictions, targets = columns["prediction"], columns["target"]  # (N, K)
            figures["scatter"] = regression_figures.scatter(predictions, targets, names)
            if self.ranking:
                figures["ranking"] = regression_figures.ranking(predictions, targets, self.ranking, names=names)
            if self.intervals:
                bounds = columns.get("low"), columns.get("high")
                figures["intervals"] = regression_figures.intervals(predictions, targets, *bounds, names=names)
        return figures

    def _write(self, trainer: Trainer, model: Any) -> None:
        assert trainer.state.fn is not None
        start, is_kept = self._name(trainer)
        data = _data_of(trainer)
        for name in ("ranking", "intervals"):
            if self.enabled and getattr(self, name) and not self._columns:
                rank_zero_warn(f"--plots.{name} draws nothing: no row has both a target and a predicted number")
        for name, figure in self._figures(model).items():
            if trainer.is_global_zero:
                path = start.with_name(f"{start.name}-{name}.png")
                if path.exists() and is_kept:
                    rank_zero_warn(f"{path} exists already and is not drawn again: add --overwrite to replace it")
                    continue
                drawn = _data_in(path) if trainer.state.fn != "predict" and path.exists() else None
                if drawn and drawn != data:
                    rank_zero_warn(f"{path} shows other data, {drawn}, and is not replaced: give another --output_dir")
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)  # missing where only an evaluation was run
                figure.savefig(path, dpi=120, metadata={"Source": data})

    @staticmethod
    def _name(trainer: Trainer) -> tuple[Path, bool]:
        """Start of the names of the figures, and whether existing figures are kept."""
        assert trainer.state.fn is not None
        written = next((callback for callback in trainer.callbacks if isinstance(callback, Predictions)), None)  # type: ignore[attr-defined]
        if trainer.state.fn != "predict" or written is None:
            return Path(trainer.default_root_dir, trainer.state.fn.value), False
        path = Path(written.main_path(trainer))
        return path.with_name(path.stem), not written.overwrite

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return self._write(trainer, pl_module)
        # Drawn by every rank and also for the sanity check, which clears the collected values.
        figures = self._figures(pl_module)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            for name, figure in figures.items():
                log_figure(logger, name, figure, trainer.global_step)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    on_predict_end = on_test_end

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._collect(outputs)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end  # type: ignore[assignment]


def _data_of(trainer: Trainer) -> str:
    """The name of the data of a run, a path as an absolute one; "" where it has none."""
    name = getattr(getattr(trainer, "datamodule", None), "hparams", {}).get("data")
    name = str(Path(name).absolute()) if isinstance(name, str) and os.path.exists(name) else str(name or "")
    return name.encode("utf-8", "replace").decode()


def _data_in(path: Path) -> str | None:
    """The name of the data in the metadata of a figure; None without one."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Source")
    except OSError:  # not an image
        return None
