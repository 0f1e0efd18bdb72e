"""Base data module of text: a tokenizer, loaded or trained, which a resumed run must share."""

import os
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from zoo.datamodules.resumable import ZooDataModule
from zoo.errors import UserError
from zoo.files.cache_folder import cache_folder, check_is_local
from zoo.tokenizers import Tokenizer, load_tokenizer

# The splits that each of the trainer's functions reads.
SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class TextData(ZooDataModule):
    """Base data module of text.

    A subclass has `tokenizer` and `cache_dir` among its hyperparameters and implements `train_tokenizer`.
    """

    changeable_arguments = (*ZooDataModule.changeable_arguments, "tokenizer", "bpe_vocab_size")
    """As in `ZooDataModule`; `load_state_dict` compares the tokenizers themselves."""
    learnt: tuple[str, ...] = ("bpe",)
    """Values of the option `tokenizer` for which a tokenizer is trained on the training split."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded or trained at first use."""
        name = self.hparams["tokenizer"]
        return self.train_tokenizer(name) if name in self.learnt else load_tokenizer(name)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.tokenizer.vocab_size

    @property
    def cache(self) -> Path:
        """Folder of files that can be computed or downloaded again: `cache_dir`, else $ZOO_CACHE, else ~/.cache/zoo."""
        given = self.hparams["cache_dir"]
        if given is None:
            return cache_folder()
        check_is_local("--data.cache_dir", given)
        return Path(os.path.expanduser(given))

    @abstractmethod
    def train_tokenizer(self, kind: str) -> Tokenizer:
        """A tokenizer of a kind in `learnt`, trained on the training split; the same each time."""

    def setup(self, stage: str) -> None:
        """Open every split that the stage reads, so that errors in the data are raised first, and on every rank."""
        for split in SPLITS[stage]:
            self.dataset(split)

    def fingerprint(self, split: str) -> dict[str, Any]:
        return super().fingerprint(split) | {"tokenizer": self.tokenizer.fingerprint}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"tokenizer": self.tokenizer.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the checkpoint's tokenizer and arguments with these.

        Raises:
            UserError: they differ.
        """
        super().load_state_dict(state_dict)
        if state_dict["tokenizer"] != self.tokenizer.fingerprint:
            raise UserError(
                f"the checkpoint was trained with another tokenizer ({state_dict['tokenizer']}) than"
                f" {self.hparams['tokenizer']!r} gives here ({self.tokenizer.fingerprint}):"
                " set --data.tokenizer to the path of the checkpoint"
            )
