"""TensorBoard's event file after its folder was removed or replaced, and on a full disk."""

import shutil
import threading
import warnings
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zoo.private_apis.lightning_logger import DeferredTensorBoardLogger


@pytest.fixture
def logger(tmp_path, monkeypatch):
    failures = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    logger = DeferredTensorBoardLogger(tmp_path / "run", name="", version="", default_hp_metric=False)
    logger.log_metrics({"loss": 3.0}, 0)
    assert not (tmp_path / "run").exists()
    logger.start()
    logger.log_metrics({"loss": 2.0}, 1)
    logger.save()
    yield logger
    assert not failures


def losses(folder):
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def log_twice(logger):
    for step in (2, 3):
        logger.log_metrics({"loss": 1.0}, step)
        logger.save()
    logger.finalize("success")


def test_values_before_and_after_the_start_are_in_one_file(logger, tmp_path):
    assert losses(tmp_path / "run") == [(0, 3.0), (1, 2.0)]
    logger.log_metrics({"loss": 1.0}, 2)
    logger.finalize("success")
    assert losses(tmp_path / "run") == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert sum("tfevents" in path.name for path in (tmp_path / "run").iterdir()) == 1


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_removed_folder_is_not_written(logger, tmp_path, is_replaced):
    shutil.rmtree(tmp_path / "run")
    if is_replaced:
        (tmp_path / "run").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger.log_metrics({"loss": 1.0}, 2)
        logger.save()
        logger.finalize("success")
    assert list(tmp_path.rglob("*")) == ([tmp_path / "run"] if is_replaced else [])


def test_a_full_disk_ends_the_curves_with_one_warning(logger, tmp_path):
    file = logger.experiment.file_writer.event_writer._async_writer._writer._writer
    file._file.close()
    file._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115, closed by the warning
    with pytest.warns(
        UserWarning, match=r"cannot write .*tfevents.* \(No space left on device\): the curves"
    ) as caught:
        log_twice(logger)
    assert len(caught) == 1
    assert losses(tmp_path / "run") == [(0, 3.0), (1, 2.0)]
