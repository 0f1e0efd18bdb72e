"""CSVLogger in a resumed run: one file, in which each step has its values once."""

import csv

import pytest
from lightning.pytorch.loggers import CSVLogger

from tests.commands import fit
from zoo.private_apis.csv_log import continue_csv


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def log(folder, steps, *, is_resumed=False, **options):
    logger = CSVLogger(folder, **options)
    if is_resumed:
        continue_csv(logger, str(folder))
    for step in steps:
        logger.log_metrics({"loss": step / 2}, step)
        if step % 2:
            logger.log_metrics({"val": step / 4}, step + 1)
    logger.finalize("success")


@pytest.mark.parametrize("version", [None, 0, "", "mine"])
def test_repeated_steps_replace_those_after_the_checkpoint(tmp_path, version):
    log(tmp_path, range(7), version=version)  # the last checkpoint was written after step 3, and its validation
    [path] = tmp_path.rglob("metrics.csv")
    with path.open("a") as file:
        file.write("3.")  # the process was killed while it wrote
    log(tmp_path, range(4, 9), is_resumed=True, version=version)
    assert list(tmp_path.rglob("metrics.csv")) == [path]
    rows = rows_of(path)
    assert [(int(row["step"]), float(row["loss"])) for row in rows if row["loss"]] == [(i, i / 2) for i in range(9)]
    assert [int(row["step"]) for row in rows if row["val"]] == [2, 4, 6, 8]


def test_files_stay_until_the_first_value_and_other_runs_are_not_continued(tmp_path):
    log(tmp_path / "runs", range(5))
    [path] = tmp_path.rglob("metrics.csv")
    before = path.read_bytes()
    log(tmp_path / "runs", [], is_resumed=True)
    assert path.read_bytes() == before
    other = CSVLogger(tmp_path / "runs")
    continue_csv(other, str(tmp_path / "another"))
    assert other.version == 1
    continue_csv(new := CSVLogger(tmp_path / "new"), str(tmp_path / "new"))
    assert new.version == 0


def test_fit_continues_the_file(tmp_path, text_file):
    def run(max_steps, *options):
        return fit(tmp_path / "run", text_file, "--trainer.logger=CSVLogger", *options, max_steps=max_steps)

    assert run(3) == 0
    assert run(6, "--ckpt_path=last") == 0
    [path] = tmp_path.rglob("metrics.csv")
    steps = [int(row["step"]) for row in rows_of(path) if row["train/loss"]]
    assert steps == list(range(6))
    assert path.parent.name == "version_0"
