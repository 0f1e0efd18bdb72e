"""CSVLogger in a resumed run: its values continue in the file of the run. Written for lightning 2.6.

Lightning starts another folder `version_<n>`, or deletes the file where the version is given.

Private members used: `CSVLogger._version`, `._get_next_version`, `._experiment`;
`ExperimentWriter._check_log_dir_exists`. tests/private_apis/test_csv_log.py fails when one of them changes.
"""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.files.atomic import replacing

INDICES = {"step", "epoch"}


class ContinuedWriter(ExperimentWriter):
    """Appends to the metrics.csv of an earlier part of the run, without the rows that the resumed run repeats."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        with open(self.metrics_file_path, newline="") as file:
            self.metrics_keys = next(csv.reader(file), [])
        self._is_cut = False

    def _check_log_dir_exists(self) -> None:
        """Lightning would delete the file here."""

    def save(self) -> None:
        if self.metrics and not self._is_cut:
            self._is_cut = True
            self._cut()
        super().save()

    def _cut(self) -> None:
        """Remove rows of steps after the first new one, and those of that step that have the same metrics."""
        first = min(row["step"] for row in self.metrics)
        new_keys = {key for row in self.metrics if row["step"] == first for key in row} - INDICES
        with open(self.metrics_file_path, newline="") as file:
            rows = list(csv.DictReader(file))
        kept = [row for row in rows if _is_earlier(row, first, new_keys)]
        if len(kept) < len(rows):
            with (
                replacing(Path(self.metrics_file_path)) as partial,
                partial.open("w", newline="") as file,
            ):
                writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
                writer.writeheader()
                writer.writerows(kept)


def _is_earlier(row: dict[str, Any], first: float, keys: set[str]) -> bool:
    """Whether a row of a file precedes step `first`, or is of that step and has none of the metrics `keys`."""
    if None in row or None in row.values() or not row.get("step", "").isdecimal():  # cut off when the run was killed
        return False
    step = int(row["step"])
    return step < first or (step == first and not any(row.get(key) for key in keys))


@rank_zero_only
def continue_csv(logger: CSVLogger, run_folder: str) -> None:
    """Let a CSVLogger of a resumed run continue the metrics.csv that the run has written, if there is one.

    Args:
        logger: not used yet.
        run_folder: folder of the run. The last version in it belongs to the run; in other folders only a version that
            is given does.
    """
    if logger._version is None:
        is_own = Path(logger.save_dir).resolve().is_relative_to(Path(run_folder).resolve())
        last = logger._get_next_version() - 1
        if not is_own or last < 0:
            return
        logger._version = last
    if (Path(logger.log_dir) / ContinuedWriter.NAME_METRICS_FILE).is_file():
        logger._experiment = ContinuedWriter(logger.log_dir)
