"""A TensorBoard logger that creates no file before the run has started, and values for the progress bar. Written for
lightning 2.6.

Private members used: `DummyExperiment`, on which every method does nothing. Lightning reads `experiment` in its setup.
`_logger_connector._progress_bar_metrics`, the values that the progress bar shows. tests/cli/test_run_folder.py and
tests/shared/test_synchronisations.py fail when one of them changes.
"""

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities import rank_zero_only

from zoo.private_apis.tensorboard_file import open_event_file_once


def show_in_progress_bar(trainer: Trainer, name: str, value: torch.Tensor) -> None:
    """Show a value () in the progress bar until it is replaced; waits for the device of the value.

    `LightningModule.log(..., prog_bar=True)` reads its value again after every step.
    """
    trainer._logger_connector._progress_bar_metrics[name] = value.item()


class DeferredTensorBoardLogger(TensorBoardLogger):
    """Keeps values until `start` is called, so that a run that fails before its first step leaves no files.

    `hparams.yaml` is written at the start, also over the file of an earlier part of a resumed run.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: list[tuple[dict[str, Any], int | None]] | None = []  # None after the start

    @property
    def is_started(self) -> bool:
        """Whether the files exist."""
        return self._waiting is None

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer; before the start an object that ignores every call."""
        return super().experiment if self._waiting is None else DummyExperiment()

    @rank_zero_only
    def start(self, with_hparams: bool = True) -> None:
        """Create the files and write the values that were logged so far; `hparams.yaml` only `with_hparams`."""
        if self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        open_event_file_once(self.experiment)
        self.save()
        if with_hparams:
            save_hparams_to_yaml(f"{self.log_dir}/{self.NAME_HPARAMS_FILE}", self.hparams)
        for metrics, step in waiting:
            self.log_metrics(metrics, step)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self._waiting is None:
            super().log_metrics(metrics, step)
        else:
            self._waiting.append((dict(metrics), step))

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged. Only `start` writes `hparams.yaml`: the folder may belong to another run by now."""
        if self._waiting is None:
            self.experiment.flush()
