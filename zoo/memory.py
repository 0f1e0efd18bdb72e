"""What a checkpoint remembers: the settings of its model and its data, as the CLI's defaults."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# What a fresh process must not take over from the one that trained.
_FORGOTTEN = {"_class_path", "_instantiator", "weights", "compile"}


@dataclass
class Memory:
    """Defaults for `model` and `data`, each {"class_path", "init_args"} or None.

    `foreign` says that the file is another project's weights, to be read by the model itself (`model.weights`);
    `step` is how many optimizer steps the checkpoint has behind it.
    """

    path: str
    model: dict[str, Any] | None
    data: dict[str, Any] | None
    foreign: bool
    step: int | None = None

    def defaults(self) -> dict[str, Any]:
        """What the parser takes as its defaults."""
        return {key: spec for key, spec in (("model", self.model), ("data", self.data)) if spec}

    def check_tokenizer(self, data: Any) -> None:
        """Raise ValueError where the data's tokenizer does not fit the vocabulary that the weights were trained on."""
        trained = (self.model or {}).get("init_args", {}).get("vocab_size")
        given = getattr(data, "vocab_size", trained)
        if given != trained:
            raise ValueError(
                f"the tokenizer has {given} tokens, but the model in {self.path} {trained}: "
                "drop --data.tokenizer, or give the one it was trained with"
            )


def remembered(path: str) -> Memory:
    """The memory of one of our checkpoints, or of a foreign Llama with the tokenizer that lies beside it."""
    if zipfile.is_zipfile(path):
        checkpoint = load(path)
        if "zoo" in checkpoint:
            return _ours(path, checkpoint)
    return _foreign(path)


def load(path: str) -> dict[str, Any]:
    """A torch file's dictionary, tensors left on disk; never runs code from it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises half a dozen types for a broken file
        raise ValueError(f"{path} cannot be read as a checkpoint; it is damaged, or holds more than weights") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def _ours(path: str, checkpoint: dict[str, Any]) -> Memory:
    def spec(kind: str, hparams: str) -> dict[str, Any] | None:
        class_path = checkpoint["zoo"][kind]
        settings = {k: v for k, v in checkpoint.get(hparams, {}).items() if k not in _FORGOTTEN}
        return {"class_path": class_path, "init_args": settings} if class_path else None

    data = spec("data", "datamodule_hyper_parameters")
    if data and "tokenizer" in checkpoint:
        data["init_args"]["tokenizer"] = path  # the one inside, which the data it was trained on no longer needs
    return Memory(path, spec("model", "hyper_parameters"), data, foreign=False, step=checkpoint.get("global_step"))


def _foreign(path: str) -> Memory:
    data: dict[str, Any] = {"class_path": "TextLM", "init_args": {}}
    if tokenizer := tokenizer_beside(Path(path)):
        data["init_args"]["tokenizer"] = str(tokenizer)
    return Memory(path, {"class_path": "LlamaLM", "init_args": {"weights": path}}, data, foreign=True)


def tokenizer_beside(path: Path) -> Path | None:
    """The one tokenizer in a Hugging Face folder or beside a llama2.c file; None where there is none or several."""
    if path.is_dir():
        named = [path] if any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model")) else []
    else:
        named = [*path.parent.glob("tok*.bin"), *path.parent.glob("*.model")]
    return named[0] if len(named) == 1 else None
