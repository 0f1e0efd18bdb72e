"""experiment_metadata.json: the settings of a sweep and the status of each member."""

import sys
import time
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.files.atomic import replacing
from zoo.icr.task import Diversity
from zoo.text_formats.json_text import describe_json_error, dump_json, parse_json
from zoo.text_formats.text_file import read_text

ENDED = ("done", "stopped early")
WAITING: dict[str, Any] = {"status": "waiting", "step": 0}


def member_folder(folder: Path, M: Diversity | str) -> Path:
    """The folder of a member in that of the sweep."""
    return folder / f"checkpoints_M{M}"


class Metadata:
    """The file in a sweep's folder, which any number of processes change without locks.

    The process that trains a member writes the member's status into `status.json` in its folder. `collect` copies all
    statuses into the sweep's file.

    Args:
        folder: the sweep's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "experiment_metadata.json"

    def array_tasks(self) -> int | None:
        """The number of tasks of a job array that the members are divided among; None if it is not run as an array."""
        return self._read().get("array_tasks")

    def start(self, settings: dict[str, Any], members: list[Diversity], array_tasks: int | None = None) -> None:
        """Store the settings and add the members; raises UserError where the folder has other settings.

        Args:
            settings: settings of the sweep.
            members: members of this call.
            array_tasks: number of tasks of a job array to be stored, if this process is one of them.
        """
        content = self._read()
        for name, value in content.setdefault("settings", settings).items():
            if settings.get(name) != value:
                raise UserError(
                    f"{self.folder} is a sweep with {name} {value}, not {settings.get(name)}: "
                    "give the same settings, or another --output_dir"
                )
        known = content.get("members", {})
        waiting = {str(M): WAITING for M in members if str(M) not in known}
        is_divided = array_tasks is not None and content.get("array_tasks") != array_tasks
        if is_divided:
            content["array_tasks"] = array_tasks
        if waiting or not known or is_divided:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.path, content | {"members": known | waiting})

    def members(self) -> dict[str, dict[str, Any]]:
        """The status of each member, by M as a string; {} where the folder has no sweep."""
        members = dict(self._read().get("members", {}))
        for path in sorted(self.folder.glob("checkpoints_M*/status.json")):
            if status := _read_status(path):
                members[path.parent.name.removeprefix("checkpoints_M")] = status
        return members

    def status(self, M: Diversity) -> str:
        """The status of one member."""
        return self.members().get(str(M), WAITING)["status"]

    def report(self, M: Diversity, status: str, **facts: Any) -> None:
        """Store a member's status with further values; a failure is also printed.

        Only one process at a time may report a member.

        Args:
            M: the member.
            status: "waiting", "running", "stopped" (by a signal), "failed", or one of `ENDED`. After SIGKILL a member
                remains "running", with the step of its last checkpoint, until the sweep is started again.
            **facts: further values. The step is by default the one reported last.
        """
        folder = member_folder(self.folder, M)
        folder.mkdir(parents=True, exist_ok=True)
        facts.setdefault("step", self.members().get(str(M), WAITING)["step"])
        _write(folder / "status.json", {"status": status, **facts, "time": time.strftime("%Y-%m-%d %H:%M:%S")})
        self.collect()
        if status == "failed":
            print(f"zoo: M {M} failed: {facts['error']}", file=sys.stderr)

    def collect(self) -> dict[str, dict[str, Any]]:
        """Copy the status of each member into the sweep's file, and return them as `members` does.

        After writing, the file is compared with the statuses again: another process may have replaced it meanwhile.
        """
        while (members := self.members()) != (content := self._read()).get("members", {}):
            _write(self.path, content | {"members": members})
        return members

    def _read(self) -> dict[str, Any]:
        """The content of the sweep's file; {} where there is none."""
        content = _read_mapping(self.path)
        # Mappings as `start` and `collect` write them.
        groups = [content.get(key, {}) for key in ("settings", "members")]
        tasks = content.get("array_tasks", 1)
        is_valid = all(isinstance(group, dict) for group in groups) and type(tasks) is int and tasks >= 1
        if not is_valid or not all(map(_is_status, groups[1].values())):
            raise UserError(f"{self.path} is not the metadata of a sweep: fix it, or give another --output_dir")
        return content


def _read_status(path: Path) -> dict[str, Any]:
    """What `report` has stored of a member; {} where the file has been removed."""
    status = _read_mapping(path)
    if status and not _is_status(status):
        raise UserError(f"{path} is not the status of a member: remove it, or give another --output_dir")
    return status


def _is_status(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("status"), str) and type(value.get("step")) is int


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(path))
    except FileNotFoundError:
        return {}
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({describe_json_error(error)}): fix it, or give another --output_dir"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not the metadata of a sweep: fix it, or give another --output_dir")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path, durable=True) as partial:
        partial.write_text(dump_json(content, indent=1) + "\n", encoding="utf-8")
