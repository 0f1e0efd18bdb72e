"""Charts for a run's loggers in addition to metrics: learning rates, baselines, TensorBoard's layout and HParams."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from zoo.callbacks.loggers import chart_name, group_names

CHARTS: dict[str, Sequence[str]] = {  # of every model, after its own
    "learning rate": ("train/lr.*",),
    "gradient norm": ("train/grad_norm",),
    "speed": ("speed/.*_per_second",),
}
MOST_WAITING = 50  # steps whose learning rates are written together
LONGEST_HPARAM = 200  # characters of a text in TensorBoard's table of hyperparameters


class Charts(Callback):
    """Group the names of metrics in the loggers, and add what belongs next to them.

    - names: `train_loss`, `val_loss` and `tokens_per_second` are `train/loss`, `val/loss` and `speed/tokens_per_second`
      in every logger; `monitor` and `trainer.callback_metrics` have the names of the modules.
    - `train/lr`, the learning rate of each optimizer step: TensorBoard has every step, other loggers every
      `log_every_n_steps`-th. Parameter groups with other peaks have `train/lr_2` and so on, from the largest group on.
    - `baseline/<metric>_<baseline>`: a horizontal line from the first step to the last validation.
    - TensorBoard's tab Custom Scalars has the charts `pl_module.charts`, title -> regular expressions of names, and the
      tab HParams the settings of the run with the metrics `pl_module.hparam_metrics`. Both attributes are optional.
      After the first validation the layout has only charts with a line. HParams shows five settings at first: those
      that differ from the defaults of `pl_module` come before the others.

    Args:
        baselines: called after the first validation as `baselines(trainer, pl_module, datamodule)`, in the first
            process only; returns the scores of models without a network, `<metric>_<baseline>` -> score on the
            validation data.
    """

    def __init__(self, baselines: Callable[[Trainer, Any, Any], Mapping[str, float]] | None = None) -> None:
        self.baselines = baselines
        self._scores: dict[str, float] | None = None
        self._first_step = 0
        self._rates: list[tuple[int, dict[str, float]]] = []  # steps and learning rates that TensorBoard waits for
        self._logged: set[str] = set()  # names that the loggers have received
        self._described: dict[Logger, list[str]] = {}  # TensorBoard's loggers -> titles of the charts in their layout

    @property
    def scores(self) -> dict[str, float]:
        """The baselines' scores, `<metric>_<baseline>` -> score; empty before the first validation."""
        return {name.partition("/")[2]: score for name, score in (self._scores or {}).items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            group_names(logger, self._logged)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step, self._rates = trainer.global_step, []

    # ---- learning rates

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not trainer.is_global_zero:
            return
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_logged = every > 0 and (step + 1) % every == 0
        others = [logger for logger in trainer.loggers if not isinstance(logger, TensorBoardLogger)]
        if len(others) < len(trainer.loggers) or is_logged:
            self._rates.append((step, learning_rates(trainer.optimizers)))
        if is_logged:
            for logger in others:
                logger.log_metrics(self._rates[-1][1], step)
        # Together, because each value on its own wakes TensorBoard's thread, which delays the step.
        if is_logged or len(self._rates) >= MOST_WAITING:
            self._write_rates(trainer)
        if is_logged:
            self._describe(trainer, pl_module)

    def _write_rates(self, trainer: Trainer) -> None:
        """Write the learning rates of the steps since the last time to TensorBoard."""
        waiting, self._rates = self._rates, []
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for step, rates in waiting:
                    logger.log_metrics(rates, step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_rates(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write_rates(trainer)

    # ---- baselines

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero or not trainer.loggers:
            return
        steps = [trainer.global_step]
        if self._scores is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            scores = {} if self.baselines is None else self.baselines(trainer, pl_module, data)
            self._scores = {f"baseline/{name}": score for name, score in scores.items()}
            steps.insert(0, self._first_step)
        for logger in trainer.loggers if self._scores else []:
            # Loggers other than TensorBoard's require ascending steps.
            for step in steps if isinstance(logger, TensorBoardLogger) else steps[-1:]:
                logger.log_metrics(self._scores, step)
        self._describe(trainer, pl_module, is_logged=True)

    # ---- TensorBoard's layout and hyperparameters

    def _describe(self, trainer: Trainer, model: Any, is_logged: bool = False) -> None:
        """Write the hyperparameters once, and the layout of the charts, to each logger that has created its file.

        Args:
            is_logged: whether all metrics were logged once; the layout then has only charts with a line, and is written
                again when they are others.
        """
        charts = {**getattr(model, "charts", {}), **CHARTS}
        if is_logged:
            charts = {title: names for title, names in charts.items() if self._has_line(names)}
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger) or not getattr(logger, "is_started", True):
                continue
            written = self._described.get(logger)
            if written is None or (is_logged and written != [*charts]):
                lines = {title: ["Multiline", [f"{name}$" for name in names]] for title, names in charts.items()}
                logger.experiment.add_custom_scalars({type(model).__name__: lines})
                self._described[logger] = [*charts]
            if written is None:
                experiment, start, _ = self._hparams(logger, model)
                for summary in (experiment, start):
                    logger.experiment.file_writer.add_summary(summary)

    def _has_line(self, names: Sequence[str]) -> bool:
        return any(re.fullmatch(name, logged) for name in names for logged in self._logged)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_rates(trainer)
        if trainer.is_global_zero:
            self._describe(trainer, pl_module, is_logged=True)
            for logger in self._described:
                *_, end = self._hparams(logger, pl_module)
                logger.experiment.file_writer.add_summary(end)  # type: ignore[attr-defined]

    @staticmethod
    def _hparams(logger: Any, model: Any) -> tuple[Any, Any, Any]:
        """TensorBoard's summaries: the columns of its table, the hyperparameters of this run, and its end."""
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams

        settings = {
            name: value if isinstance(value, bool | int | float) else str(value)[:LONGEST_HPARAM]
            for name, value in logger.hparams.items()
            if not name.startswith("_")  # Lightning's own
        }
        metrics = {chart_name(name): 0.0 for name in getattr(model, "hparam_metrics", ("val_loss",))}
        experiment, start, end = hparams(settings, metrics)
        # The columns that "differ" are the first ones; TensorBoard shows five columns until others are chosen.
        changed, plugin_data = changed_settings(model, logger.hparams), experiment.value[0].metadata.plugin_data
        columns = HParamsPluginData.FromString(plugin_data.content)
        for column in columns.experiment.hparam_infos:
            column.differs = column.name in changed
        plugin_data.content = columns.SerializeToString()
        return experiment, start, end


def changed_settings(model: Any, settings: Mapping[str, Any]) -> set[str]:
    """Names of the settings that differ from the defaults of the model's constructor and of its `optimizer_config`.

    The constructor's `data_arguments`, which follow from the data, are left out.
    """
    parameters = inspect.signature(type(model).__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    if is_dataclass(config := getattr(model, "optimizer_config", None)):
        defaults |= {field.name: field.default for field in fields(config)}
    names = settings.keys() - set(getattr(model, "data_arguments", ()))
    return {name for name in names if name not in defaults or settings[name] != defaults[name]}


def learning_rates(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, float]:
    """The learning rates of parameter groups: `train/lr` of the largest group, then `train/lr_2` and so on.

    Groups with the same peak are one, because the schedule multiplies all rates by the same factor.
    """
    groups: dict[Any, list[dict[str, Any]]] = {}  # optimizer and peak -> parameter groups
    for number, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            if group["params"]:
                groups.setdefault((number, float(group.get("initial_lr", group["lr"]))), []).append(group)
    largest_first = list(groups.values())
    if len(largest_first) > 1:  # otherwise nothing is counted, which would take time in every step
        largest_first.sort(key=lambda same: -sum(p.numel() for group in same for p in group["params"]))
    return {f"train/lr_{i}" if i > 1 else "train/lr": float(same[-1]["lr"]) for i, same in enumerate(largest_first, 1)}
