"""Export of a LlamaClassifier's checkpoint: merge its low-rank updates, so that it needs no other file."""

from pathlib import Path
from typing import Any

from zoo.export.merging import merge_updates
from zoo.export.write import NOT_EXPORTED
from zoo.files.checkpoints import read_checkpoint, write_checkpoint
from zoo.llama.classifier import LlamaClassifier


def export(path: str | Path, target: str | Path, base: str | Path | None = None) -> None:
    """Write the checkpoint at `path` to `target` with all its weights, as if its method were "full".

    Args:
        path: checkpoint of a LlamaClassifier.
        target: file to write. It omits the optimizer state, so training cannot be resumed from it.
        base: path of the pretrained weights of a "head" or "lora" checkpoint, where they have moved since training.
    """
    options: Any = {} if base is None else {"base": str(base)}
    module = LlamaClassifier.load_from_checkpoint(path, map_location="cpu", **options)
    merge_updates(module)
    checkpoint = read_checkpoint(path)
    exported = {name: value for name, value in checkpoint.items() if name not in NOT_EXPORTED}
    write_checkpoint(exported | {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, target)
