"""TensorBoard's event file, opened once. Written for tensorboard 2.20.

TensorBoard opens the file again at every write, in a thread: the thread ends with a traceback where the folder was
removed or the disk is full, and in a new folder of the same name it would create a file.

Private members used: `EventFileWriter._file_name`, `EventFileWriter._async_writer._writer._writer`.
tests/private_apis/test_tensorboard_file.py fails when one of them changes.
"""

import contextlib
import warnings
from pathlib import Path
from typing import Any


class EventFile:
    """A file for TensorBoard's records that reports the first failed write in a warning, and ignores later writes.

    Args:
        path: path of an existing file, to which records are appended.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._file = self.path.open("ab", buffering=0)
        self._waiting: list[bytes] = []  # written together by `flush`
        self.closed = False

    def write(self, record: bytes) -> None:
        self._waiting.append(record)

    def flush(self) -> None:
        content = memoryview(b"".join(self._waiting))
        self._waiting.clear()
        try:
            while content and not self._file.closed:
                content = content[self._file.write(content) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.close()
            warnings.warn(
                f"cannot write {self.path} ({error.strerror}): the curves of this run end here, and training goes on",
                stacklevel=2,
            )

    def close(self) -> None:
        self.flush()
        with contextlib.suppress(OSError):
            self._file.close()
        self.closed = True


def open_event_file_once(experiment: Any) -> None:
    """Let a SummaryWriter, which has just been created, write through an `EventFile`."""
    writer = experiment.file_writer.event_writer
    writer._async_writer._writer._writer = EventFile(writer._file_name)
