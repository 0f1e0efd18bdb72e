"""RowModule: base data module of rows of texts with targets."""

from abc import abstractmethod
from functools import cached_property

import numpy as np
import torch

from zoo.datamodules.row_data import RowReader
from zoo.datamodules.rows import TextRows
from zoo.datamodules.text_data import TextData
from zoo.datamodules.train_loader import TrainLoader
from zoo.tokenizers import Tokenizer, train_bpe, train_words
from zoo.training.batches import collate


class RowModule(TextData):
    """Base data module of rows. The training split includes its changed copies and synthetic rows.

    A subclass sets `reader`, implements `encode` and `tokenizer_texts`, and has `bpe_vocab_size` among its
    hyperparameters.
    """

    collate = staticmethod(collate)
    learnt = ("bpe", "words")
    reader: RowReader

    @abstractmethod
    def encode(self, split: str) -> TextRows:
        """The tokenized rows of a split.

        Raises:
            UserError: the split does not exist, or a row in it cannot be used.
        """

    @abstractmethod
    def tokenizer_texts(self) -> list[str]:
        """The texts on which a tokenizer is trained, as it reads them."""

    @cached_property
    def _datasets(self) -> dict[str, TextRows]:
        return {}

    def dataset(self, split: str) -> TextRows:
        """The tokenized rows of a split, made when first requested; raises as `encode` does."""
        if split not in self._datasets:
            self._datasets[split] = self.encode(split)
        return self._datasets[split]

    def train_tokenizer(self, kind: str) -> Tokenizer:
        """A tokenizer "bpe" or "words", trained on `tokenizer_texts`."""
        texts = self.tokenizer_texts()
        return train_bpe(texts, self.hparams["bpe_vocab_size"]) if kind == "bpe" else train_words(texts)

    def setup(self, stage: str) -> None:
        """Read and check the splits of a stage, and print how many rows were cut off for it or left out."""
        super().setup(stage)
        if stage in ("validate", "test"):
            self.reader.print_cut("val" if stage == "validate" else "test")
        self.reader.bad_rows.print_left_out()

    def train_dataloader(self) -> TrainLoader:
        """The loader of the training rows; in a run, the sizes of the splits are printed before."""
        if self.trainer is not None:
            self.reader.print_sizes()
        return super().train_dataloader()

    def has_split(self, split: str) -> bool:
        """Whether there are rows for the split "train", "val" or "test"."""
        return self.reader.has_split(split)

    @property
    def predicted_split(self) -> str:
        """The split that `predict` reads; "train" where it is all rows of data without splits."""
        return self.reader.predicted_split

    def texts(self, split: str) -> list[str]:
        """(N,) the texts."""
        return self.dataset(split).texts

    def targets(self, split: str) -> np.ndarray:
        """(N, K) float64, NaN where unknown."""
        return self.dataset(split).targets

    def lengths(self, split: str) -> np.ndarray:
        """(N,) number of tokens of each text."""
        return self.dataset(split).lengths

    def train_lengths(self) -> torch.Tensor:
        """(N,) lengths of the training texts, by which batches are formed."""
        return torch.from_numpy(self.lengths("train"))
