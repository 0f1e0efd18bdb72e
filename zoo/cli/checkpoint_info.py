"""Checkpoint metadata: the settings of model and data stored in a file, which become the command line's defaults."""

import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.cli.renamed_arguments import find_renamed, renamed_arguments
from zoo.datamodules.sources.corpus import data_label
from zoo.errors import UserError
from zoo.files import regular_file
from zoo.files.checkpoint_folders import is_checkpoint_folder, read_meta
from zoo.files.checkpoints import read_checkpoint
from zoo.files.memory_limit import file_bytes, memory_limit, tensor_sizes
from zoo.files.safetensors_checkpoints import is_safetensors_checkpoint
from zoo.registry import DATA_MODULES, MODELS
from zoo.tokenizers.load import adjacent_tokenizer

# Settings that concern the process that trained, not the model.
_NOT_RESTORED = {"_class_path", "_instantiator", "weights", "compile"}


@dataclass
class CheckpointInfo:
    """Metadata of a checkpoint.

    Args:
        path: the file or folder.
        model: {"class_path", "init_args"} of the model, or None.
        data: the same of the data module, or None.
        is_external: the file holds weights of another project, which the model itself reads (`model.weights`).
        step: number of optimizer steps before the checkpoint was saved; None if unknown.
        sizes: bytes and number of its tensors.
    """

    path: str
    model: dict[str, Any] | None
    data: dict[str, Any] | None
    is_external: bool
    step: int | None = None
    sizes: tuple[int, int] = (0, 0)

    def memory_limit(self) -> AbstractContextManager[None]:
        """Refuses a model that is far larger than the checkpoint's tensors, when it is built inside."""
        if self.is_external:  # its reader compares settings and sizes
            return nullcontext()
        settings = _settings(self.model)
        n_bytes, n_tensors = self.sizes
        return memory_limit(self.path, n_bytes + file_bytes(settings.get("base")), n_tensors)

    def defaults(self) -> dict[str, Any]:
        """Defaults for the parser."""
        return {key: spec for key, spec in (("model", self.model), ("data", self.data)) if spec}

    def check_names(self, classes: Mapping[str, type | None]) -> None:
        """Drop stored settings that no longer exist. Raises UserError for one that is known by another name today.

        Args:
            classes: the classes of "model" and "data".
        """
        for group, spec in self.defaults().items():
            # A removed argument is not renamed.
            for name, new_name in renamed_arguments(classes.get(group)).items():
                if not new_name:
                    spec["init_args"].pop(name, None)
                elif name in spec["init_args"]:
                    sentence = find_renamed([(f"{group}.{name}", self.path)], classes)
                    raise UserError(f"{sentence}; an older version of the zoo wrote this checkpoint")

    def check_model(self, name: str | None, cls: type | None) -> None:
        """Raises UserError if the command names another model than the one that wrote the checkpoint.

        Args:
            name: the model in configs and on the command line, if any.
            cls: its class, which may also be a subclass of the checkpoint's.
        """
        stored = _class_name(self.model)
        name = (name or "").rpartition(".")[2]
        if self.is_external or not stored or not name or name == stored:
            return
        if cls is not None and any(base.__name__ == stored for base in cls.__mro__):
            return
        raise UserError(
            f"{self.path} was written by {stored}, but the config or command line names {name}: drop --config and "
            f"--model, or give a checkpoint of {name}"
        )

    def check_texts(self, cls: type | None, settings: Mapping[str, Any]) -> str | None:
        """Compare the settings that decide how texts are made with those of the training.

        Args:
            cls: class of the data.
            settings: its settings in this command.

        Returns:
            A warning where the texts are made of other columns, which may be the names that other data uses, or where
            another setting changes their tokens.

        Raises:
            UserError: texts would be written in another way than in training.
        """
        stored = _settings(self.data)
        if cls is None or _class_name(self.data) != cls.__name__:
            return None

        def differs(name: str) -> bool:
            if name not in stored or name not in settings:
                return False
            old, new = _columns(stored[name]), _columns(settings[name])
            return old != new and not (name == "row_format" and {old, new} == {None, "text"})

        for name in getattr(cls, "text_arguments", ()):
            if differs(name):
                raise UserError(
                    f"--data.{name} is {settings[name]!r}, but the model in {self.path} was trained with "
                    f"{stored[name]!r}: drop --data.{name}"
                )
        for name in getattr(cls, "column_arguments", ()):
            if differs(name):
                return (
                    f"--data.{name} is {settings[name]!r}, but the model was trained with {stored[name]!r}: its "
                    "predictions are wrong unless these are names of the same columns"
                )
        for name in getattr(cls, "token_arguments", ()):
            if differs(name):
                return f"--data.{name} is {settings[name]!r}, but the model was trained with {stored[name]!r}"
        return None

    def check_tokenizer(self, data: Any) -> None:
        """Raises UserError if the data's tokenizer has another vocabulary size than the model was trained with."""
        trained = _settings(self.model).get("vocab_size")
        given = getattr(data, "vocab_size", trained)
        if given != trained:
            raise UserError(
                f"the tokenizer has {given} tokens, but the model in {self.path} has {trained}: "
                "drop --data.tokenizer, or set it to the tokenizer that the model was trained with"
            )

    def check_label(self, data: str | None) -> None:
        """Raises UserError if the checkpoint was trained on data of another label than `data`."""
        trained = _settings(self.data).get("data")
        if trained and data and data_label(trained) != data_label(data):
            raise UserError(
                f"{self.path} was trained on {data_label(trained)!r}, and this is {data_label(data)!r}: "
                "set --data_dir to the data it was trained on, or add --allow_other_data"
            )


def read_checkpoint_info(path: str, own_classes: Mapping[str, str] | None = None) -> CheckpointInfo:
    """Metadata of a checkpoint of the zoo, or of an external Llama together with the tokenizer next to it.

    Args:
        path: the file or folder.
        own_classes: class name -> import path of classes that are not registered but named by the user, and that the
            checkpoint may therefore name too.
    """
    if is_checkpoint_folder(path):
        return _own(path, read_meta(path), own_classes or {})
    if is_safetensors_checkpoint(path):
        return _own(path, read_checkpoint(path, required=("zoo", "state_dict")), own_classes or {})
    if Path(path).is_dir():
        return _external(path)
    # Checkpoints by torch.save are zip files; those of the zoo have an entry "zoo".
    if zipfile.is_zipfile(regular_file(path, "--ckpt_path")):
        checkpoint = read_checkpoint(path)
        if "zoo" in checkpoint:
            return _own(path, checkpoint, own_classes or {})
    return _external(path)


def _own(path: str, checkpoint: dict[str, Any], own_classes: Mapping[str, str]) -> CheckpointInfo:
    def spec(name: str | None, hparams: str) -> dict[str, Any] | None:
        settings = {k: v for k, v in checkpoint.get(hparams, {}).items() if k not in _NOT_RESTORED}
        return {"class_path": own_classes.get(name, name), "init_args": settings} if name else None

    # Only the last part of the class's name is used.
    stored = str(checkpoint["zoo"].get("model", "")).rpartition(".")[2]
    if stored not in MODELS and stored not in own_classes:  # never imported: a file must not choose what code runs
        raise UserError(
            f"{path} was written by a model {stored!r} that is not registered in zoo.registry: name its class in a "
            "config or with --model IMPORT.PATH"
        )
    # Lightning stores a data module's state under the name of its class.
    data_name = next((name for name in (*own_classes, *DATA_MODULES) if name in checkpoint), None)
    if data_name is None:  # older versions of the zoo stored the import path of the class
        older_name = str(checkpoint["zoo"].get("data", "")).rpartition(".")[2]
        data_name = older_name if older_name in DATA_MODULES else None
    data = spec(data_name, "datamodule_hyper_parameters")
    if data and "tokenizer" in checkpoint:
        data["init_args"]["tokenizer"] = path  # the stored tokenizer; its original file is not needed
    return CheckpointInfo(
        path,
        spec(stored, "hyper_parameters"),
        data,
        is_external=False,
        step=checkpoint.get("global_step"),
        sizes=tensor_sizes(checkpoint.get("state_dict", {})),
    )


def _settings(spec: dict[str, Any] | None) -> dict[str, Any]:
    return (spec or {}).get("init_args", {})


def _class_name(spec: dict[str, Any] | None) -> str:
    """The name of a class without its package; "" for None."""
    return (spec or {}).get("class_path", "").rpartition(".")[2]


def _columns(value: Any) -> Any:
    """A setting for comparison: names separated by commas as a list, one name as itself."""
    if isinstance(value, str) and "," in value:
        value = [name.strip() for name in value.split(",") if name.strip()]
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _external(path: str) -> CheckpointInfo:
    data: dict[str, Any] = {"class_path": "TextLM", "init_args": {}}
    if tokenizer := adjacent_tokenizer(Path(path)):
        data["init_args"]["tokenizer"] = str(tokenizer)
    return CheckpointInfo(path, {"class_path": "LlamaLM", "init_args": {"weights": path}}, data, is_external=True)
