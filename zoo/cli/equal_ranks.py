"""The processes of a run are compared before it starts: their settings, their data, and the step they resume from.

Different ones would train without a message to a wrong result, or wait for each other indefinitely.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback

from zoo.errors import UserError

# Settings that may differ: folders, and what only one process uses or what does not change a result.
OF_ONE_PROCESS = (
    "config", "output_dir", "ckpt_path", "allow_other_data", "checkpoint.dirpath", "predictions", "plots",
    "data.init_args.cache_dir", "data.init_args.num_workers", "trainer.callbacks", "trainer.default_root_dir",
    "trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.logger", "trainer.plugins",
    "trainer.profiler",
)  # fmt: skip
SPLITS = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
MISSING = "not set"
LONGEST = 80  # characters of a value in a message


class EqualRanks(Callback):
    """Refuse a run whose processes differ.

    Args:
        settings: option -> value of this process, from `comparable_settings`.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = settings

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Exchange the settings and a description of the data. All processes raise the same UserError."""
        if trainer.world_size == 1 or not torch.distributed.is_initialized():
            return
        of_ranks: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(of_ranks, {**self.settings, **_describe_data(trainer, stage)})
        if difference := first_difference(of_ranks):
            raise UserError(
                f"{difference}: the processes of a run must have the same options and the same data; start all with "
                "the same command"
            )


def comparable_settings(config: Any, step: int | None) -> dict[str, str]:
    """Option -> value as text, for the settings that must be equal. Of a path only the last part counts.

    Args:
        config: the settings of a verb, as the parser returns them.
        step: number of optimizer steps in the checkpoint that is read; None without one.
    """
    settings = {"the step in the checkpoint of --ckpt_path": MISSING if step is None else str(step)}
    for key, value in config.items():
        if not any(key == name or key.startswith(f"{name}.") for name in OF_ONE_PROCESS):
            text = os.path.basename(value.rstrip(os.sep)) if isinstance(value, str) and os.sep in value else value
            settings[f"--{key.replace('.init_args', '')}"] = repr(text)
    return settings


def first_difference(of_ranks: list[dict[str, str]]) -> str | None:
    """A clause about the first entry in which two processes differ; None if all are equal."""
    first = of_ranks[0]
    for name in dict.fromkeys(name for entries in of_ranks for name in entries):
        for rank, entries in enumerate(of_ranks):
            one, other = first.get(name, MISSING), entries.get(name, MISSING)
            if one != other:
                return f"{name} is {_cut(one)} on rank 0 and {_cut(other)} on rank {rank}"
    return None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _describe_data(trainer: Any, stage: str) -> dict[str, str]:
    data, split = trainer.datamodule, SPLITS[str(getattr(stage, "value", stage))]
    if not hasattr(data, "fingerprint"):
        return {}
    splits = [split, "val"] if split == "train" and trainer.limit_val_batches else [split]
    return {
        f"the {name} of the {split} split": str(value)
        for split in splits
        for name, value in data.fingerprint(split).items()
    }
