"""Initial weights of a module from a checkpoint of the zoo: `--model.weights FILE` or `zoo:NAME`."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from zipfile import is_zipfile

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.files import regular_file
from zoo.files.checkpoint_folders import is_checkpoint_folder, read_meta
from zoo.files.checkpoints import read_checkpoint
from zoo.files.finite import check_finite
from zoo.files.memory_limit import memory_limit, tensor_sizes
from zoo.files.safetensors_checkpoints import is_safetensors_checkpoint, read_content
from zoo.tokenizers import Tokenizer, from_state
from zoo.tokenizers.load import adjacent_tokenizer
from zoo.weights import find_weights

Network = TypeVar("Network", bound=nn.Module)
PREFIX = "model."  # of the network's tensors in a module's state
PROBE = "The quick brown fox jumps over the lazy dog: 0.5 < 1,234 and {x}, naïve 日本.\n"  # text to compare tokenizers


class InitialWeights:
    """The network in a checkpoint of the zoo, from which another training starts. Without a path it does nothing.

    Args:
        path: the checkpoint, also as zoo:NAME; None starts from random weights.
        model: name of the class that must have written it.
        architecture: names of the settings that are taken from the checkpoint.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is damaged, not a checkpoint of this model, or a tensor is not finite.
    """

    def __init__(self, path: str | None, model: str, architecture: Iterable[str]) -> None:
        self.path = path
        self.stored: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        if path is None:
            return
        content = read_checkpoint(find_weights(path), required=("state_dict", "zoo", "hyper_parameters"))
        kind = content["zoo"]["model"].rpartition(".")[2]
        if kind != model:
            article = "an" if model[0] in "AEIOU" else "a"
            raise UserError(f"--model.weights {path} holds a {kind}, not {article} {model}: give weights of {model}")
        self.stored = content["hyper_parameters"]
        self.settings = {name: self.stored[name] for name in architecture if name in self.stored}
        self._state = content["state_dict"]
        self._tensors = self._part(PREFIX)
        check_finite(path, self._tensors)
        self._tokenizer = content.get("tokenizer")

    def _part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with a prefix, without it."""
        return {name.removeprefix(prefix): self._state[name] for name in self._state if name.startswith(prefix)}

    def restore(self, module: nn.Module, name: str) -> None:
        """Load the state of another part of the module, such as a scale; one that the checkpoint lacks is left.

        Raises:
            UserError: the names or shapes of the tensors differ.
        """
        if self.path is not None and (state := self._part(f"{name}.")):
            self._load(module, state)

    def _load(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        if difference := first_difference(state, module.state_dict()):
            name, given, expected = difference
            raise UserError(
                f"the weights in {self.path} do not fit: {name} is {given} in the file and {expected} in the model; "
                "give other weights"
            )
        module.load_state_dict(state)

    def check_data(self, tokenizer: Tokenizer | None = None, **sizes: tuple[Any, str]) -> None:
        """Compare what follows from the data with the checkpoint.

        Args:
            tokenizer: tokenizer of the data, where it has one.
            **sizes: name of a setting -> its value, and what to do where the checkpoint has another.

        Raises:
            UserError: a size or the tokenizer differs.
        """
        if self.path is None:
            return
        if tokenizer is not None and self._tokenizer is not None:
            refuse_other_tokenizer(self.path, tokenizer, self._tokenizer)
        for name, (value, remedy) in sizes.items():
            if name in self.stored and self.stored[name] != value:
                raise UserError(
                    f"the weights in {self.path} have {name} {self.stored[name]}, but the data {value}: {remedy}"
                )

    def build(self, make: Callable[[], Network]) -> Network:
        """The network that `make` returns, with the checkpoint's weights.

        Raises:
            UserError: the names or shapes of the tensors differ, or the settings declare a far larger network.
        """
        if self.path is None:
            return make()
        with memory_limit(self.path, *tensor_sizes(self._tensors)):
            network = make()
        self._load(network, self._tensors)
        return network


def first_difference(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, Any, Any] | None:
    """The first tensor that differs between a file and a model: its name, and its shape or "missing" in each."""
    for name in [*own, *stored]:
        given, expected = (tuple(tensors[name].shape) if name in tensors else "missing" for tensors in (stored, own))
        if given != expected:
            return name, given, expected
    return None


def tokenizer_of_weights(path: str | None) -> str | None:
    """Where the tokenizer of initial weights is, for `--data.tokenizer`; None if it is not known.

    A checkpoint of the zoo holds it; with a Hugging Face or llama2.c checkpoint it is a file in the same folder.
    """
    if not path:
        return None
    file = Path(find_weights(path))
    if (content := _zoo_content(file)) is not None:
        return path if "tokenizer" in content else None
    return str(tokenizer) if file.exists() and (tokenizer := adjacent_tokenizer(file)) else None


def check_tokenizer(path: str | None, tokenizer: Tokenizer | None) -> None:
    """Raises UserError if initial weights were trained with another tokenizer, which their checkpoint stores."""
    if tokenizer is not None and path and "tokenizer" in (content := _zoo_content(Path(find_weights(path))) or {}):
        refuse_other_tokenizer(path, tokenizer, content["tokenizer"])


def _zoo_content(file: Path) -> Mapping[str, Any] | None:
    """The entries of a checkpoint of the zoo, of a folder only those that are no tensors; None for other weights."""
    if is_checkpoint_folder(file):
        return read_meta(file)
    if is_safetensors_checkpoint(file):
        return read_content(file)
    content = read_checkpoint(file) if file.is_file() and is_zipfile(regular_file(file)) else {}
    return content if "state_dict" in content else None


def refuse_other_tokenizer(path: str, tokenizer: Tokenizer, stored: dict[str, Any]) -> None:
    """Raises UserError if a tokenizer gives other ids than the one that a checkpoint stores."""
    if tokenizer.encode_batch([PROBE]) != from_state(stored).encode_batch([PROBE]):
        raise UserError(
            f"the tokenizer of the data ({tokenizer.source}) is not that of the weights in {path}, so that their ids "
            f"mean other words: set --data.tokenizer {path}"
        )
