"""What all data made of text shares: a tokenizer, loaded or learnt, that a checkpoint goes with."""

import os
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from zoo.datamodules.resumable import ZooDataModule
from zoo.errors import UserError
from zoo.tokenizers import Tokenizer, load_tokenizer

# What each of the trainer's verbs evaluates or trains on.
SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class TextData(ZooDataModule):
    """A subclass has `tokenizer` and `cache_dir` among its hyperparameters, and says how a tokenizer is learnt."""

    learnt: tuple[str, ...] = ("bpe",)  # the kinds of tokenizer that are learnt from the training split

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded, or learnt from the training split, when it is first asked for."""
        name = self.hparams["tokenizer"]
        return self.train_tokenizer(name) if name in self.learnt else load_tokenizer(name)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def cache(self) -> Path:
        """The folder for what can be made or downloaded again: `cache_dir`, else $ZOO_CACHE, else ~/.cache/zoo."""
        given = self.hparams["cache_dir"]
        return Path(os.environ.get("ZOO_CACHE", "~/.cache/zoo") if given is None else given).expanduser()

    @abstractmethod
    def train_tokenizer(self, kind: str) -> Tokenizer:
        """The tokenizer of that kind, made from the training split, the same whenever it is learnt."""

    def setup(self, stage: str) -> None:
        """Refuse what is wrong with the data before anything else begins, on every rank alike."""
        for split in SPLITS[stage]:
            self.dataset(split)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"tokenizer": self.tokenizer.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["tokenizer"] != self.tokenizer.fingerprint:
            raise UserError(
                f"the checkpoint was trained with another tokenizer ({state_dict['tokenizer']}) than"
                f" {self.hparams['tokenizer']!r} gives here ({self.tokenizer.fingerprint}):"
                " give the checkpoint's own path as the tokenizer"
            )
