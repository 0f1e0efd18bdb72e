"""experiment_metadata.json: the settings of a sweep and the status of each member."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from zoo.errors import UserError
from zoo.files.atomic import replacing
from zoo.icr.task import Diversity
from zoo.text_formats.json_text import describe_json_error, dump_json, parse_json
from zoo.text_formats.text_file import read_text

ENDED = ("done", "stopped early")


def member_folder(folder: Path, M: Diversity) -> Path:
    """The folder of a member in that of the sweep."""
    return folder / f"checkpoints_M{M}"


class Metadata:
    """The file in a sweep's folder; a lock lets several processes change it one after the other.

    Args:
        folder: the sweep's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "experiment_metadata.json"

    def read(self) -> dict[str, Any]:
        """The content; {} where there is no file."""
        try:
            content = parse_json(read_text(self.path))
        except FileNotFoundError:
            return {}
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"{self.path} is damaged ({describe_json_error(error)}): fix it, or give another --output_dir"
            ) from error
        # Mappings as `start` and `report` write them.
        groups = [content.get(key, {}) for key in ("settings", "members")] if isinstance(content, dict) else []
        is_valid = len(groups) == 2 and all(isinstance(group, dict) for group in groups)
        members = list(groups[1].values()) if is_valid else []
        if not is_valid or not all(isinstance(m, dict) and isinstance(m.get("status"), str) for m in members):
            raise UserError(f"{self.path} is not the metadata of a sweep: fix it, or give another --output_dir")
        return content

    @contextmanager
    def edit(self) -> Iterator[dict[str, Any]]:
        """The content, to be changed in place; the file is replaced at the end."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            content = self.read()
            yield content
            with replacing(self.path, durable=True) as partial:
                partial.write_text(dump_json(content, indent=1) + "\n", encoding="utf-8")

    def start(self, settings: dict[str, Any], members: list[Diversity]) -> None:
        """Store the settings and add the members; raises UserError where the folder has other settings."""
        with self.edit() as content:
            for name, value in content.setdefault("settings", settings).items():
                if settings.get(name) != value:
                    raise UserError(
                        f"{self.path.parent} is a sweep with {name} {value}, not {settings.get(name)}: "
                        "give the same settings, or another --output_dir"
                    )
            statuses = content.setdefault("members", {})
            statuses |= {str(M): {"status": "waiting", "step": 0} for M in members if str(M) not in statuses}

    def members(self) -> dict[str, dict[str, Any]]:
        """The status of each member, by M as a string."""
        return self.read()["members"]

    def report(self, M: Diversity, status: str, **facts: Any) -> None:
        """Store a member's status with further values; a failure is also printed."""
        with self.edit() as content:
            content["members"][str(M)] = {"status": status, **facts, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        if status == "failed":
            print(f"zoo: M {M} failed: {facts['error']}", file=sys.stderr)
