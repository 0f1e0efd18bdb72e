"""Output to the loggers of a run: grouped names of metrics, figures and texts, for each kind of logger."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

if TYPE_CHECKING:  # imported when something is drawn: it takes half a second
    from matplotlib.figure import Figure

SPLITS = ("train", "val", "test", "pretrain")


def chart_name(metric: str) -> str:
    """The name of a metric in the loggers: its group, which TensorBoard and W&B show together, then the rest.

    `val_loss` becomes `val/loss`, `tokens_per_second` `speed/tokens_per_second`, and any other metric of training, such
    as `grad_norm`, `train/grad_norm`. Names that have a group already stay, such as `val_mae/price` of one of several
    targets.
    """
    part = metric.partition("/")[2]  # Lightning appends the number of one of several dataloaders
    if (part and not part.startswith("dataloader_idx_")) or metric == "hp_metric":  # TensorBoardLogger's own
        return metric
    split, _, rest = metric.partition("_")
    if split in SPLITS and rest:
        return f"{split}/{rest}"
    return f"{'speed' if metric == 'mfu' or metric.endswith('_per_second') else 'train'}/{metric}"


def group_names(logger: Logger, names: set[str] | None = None) -> None:
    """Let a logger write all metrics under their `chart_name`; `monitor` and `callback_metrics` are not affected.

    Args:
        logger: the logger, which is changed.
        names: receives the names of the metrics that are written.
    """
    log_metrics = logger.log_metrics

    def log_grouped(metrics: Any, step: int | None = None) -> None:
        grouped = {chart_name(name): value for name, value in metrics.items()}
        if names is not None:
            names.update(grouped)
        log_metrics(grouped, step)

    logger.log_metrics = log_grouped  # type: ignore[method-assign]


def log_figure(logger: Logger, name: str, figure: "Figure", step: int) -> None:
    """Write a figure.

    TensorBoard and W&B get an image, MLflow an artifact, CSVLogger a file `figures/<name>-step<step>.png` in the folder
    of metrics.csv. Other loggers show no figures.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(f"figures/{name}", figure, step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(f"figures/{name}", [_pixels(figure)], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_figure(logger.run_id, figure, f"figures/{name}-step{step}.png")
    elif isinstance(logger, CSVLogger):
        figure.savefig(_file(logger, "figures", f"{name}-step{step}.png"), dpi=120)


def log_text(logger: Logger, name: str, text: str, step: int) -> None:
    """Write a text.

    TensorBoard shows it in its text tab, W&B in a table, MLflow gets an artifact, and CSVLogger a file
    `samples/<name>-step<step>.txt` in the folder of metrics.csv. Other loggers show no texts.
    """
    if isinstance(logger, TensorBoardLogger):
        # Four spaces make TensorBoard's Markdown show the text unchanged, with its line breaks.
        shown = "\n".join("    " + line for line in (text.splitlines() or [""]))
        logger.experiment.add_text(name, shown, step)
    elif isinstance(logger, WandbLogger):
        logger.log_text(f"samples/{name}", columns=["text"], data=[[text]], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, text, f"samples/{name}-step{step}.txt")
    elif isinstance(logger, CSVLogger):
        _file(logger, "samples", f"{name}-step{step}.txt").write_text(text, encoding="utf-8")


def _file(logger: CSVLogger, folder: str, name: str) -> Path:
    path = Path(logger.log_dir) / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _pixels(figure: "Figure") -> Any:
    """A figure as an array (height, width, 4) of uint8."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
