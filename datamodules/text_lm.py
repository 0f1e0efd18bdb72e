"""Text for language models: any text, any tokenizer, windows of tokens; packed once and kept in a cache."""

import hashlib
import json
from functools import cached_property
from pathlib import Path

import numpy as np

from zoo.datamodules.packing import Windows, once, pack, parts, token_dtype
from zoo.datamodules.sources.corpus import Corpus, open_corpus
from zoo.datamodules.text_data import SPLITS, TextData
from zoo.errors import UserError
from zoo.tokenizers import Tokenizer, from_state, train_bpe


class TextLM(TextData):
    """Batches of (inputs (B, T), targets (B, T), index (B,)), the targets one token ahead of the inputs.

    Training windows stand side by side, and those that are not whole are left out. Evaluation predicts every
    token of a split but its first exactly once; targets that are not to be scored are -100. "predict" is the
    whole text where it was given without splits, else the test split, or the validation split where there is
    no other. Each split is packed when it is first needed.

    Args:
        data: "pydoc", the documentation that CPython carries (no download); a text file (one document), a
            CSV or JSON-lines file, a folder of such files; or a hub data set, "name" or "name:config". Splits
            go by the names of a folder's files (train, valid, test) or by the hub's.
        tokenizer: "bytes"; "bpe", learnt from the training split; or a path that `load_tokenizer` takes.
        seq_len: T, the tokens that a window predicts.
        batch_size: windows per step on each rank.
        bpe_vocab_size: the size of the vocabulary that "bpe" learns.
        val_fraction: where no validation split is given, this share of the text, from its end.
        test_fraction: the same for the test split, where neither split is given.
        eval_stride: tokens from one evaluation window to the next; seq_len by default. Smaller is slower, but
            predicts from a longer context.
        join_rows: the rows of a table are lines of one document, rather than documents.
        text_column: the column of a table that holds the text.
        num_workers: loader processes per rank.
        cache_dir: where packed tokens, learnt tokenizers and downloads are kept; by default the folder named
            by $ZOO_CACHE, else ~/.cache/zoo.
        seed: of the training order; by default the run's own.
    """

    def __init__(
        self,
        data: str = "pydoc",
        tokenizer: str = "bytes",
        seq_len: int = 256,
        batch_size: int = 16,
        bpe_vocab_size: int = 4096,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        eval_stride: int | None = None,
        join_rows: bool = False,
        text_column: str = "text",
        num_workers: int = 0,
        cache_dir: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.save_hyperparameters()
        if seq_len < 1:
            raise UserError(f"seq_len must be at least 1, not {seq_len}")
        if eval_stride is not None and not 1 <= eval_stride <= seq_len:
            raise UserError(f"eval_stride must lie between 1 and seq_len {seq_len}, not at {eval_stride}")
        if not (val_fraction > 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
            raise UserError(
                f"val_fraction {val_fraction} must be positive, test_fraction {test_fraction} not negative,"
                " and both together less than 1"
            )
        self.seq_len = seq_len

    def stats(self, split: str) -> dict[str, int]:
        """How many tokens, words and bytes a split has; words count as on WikiText, line ends included.

        Per-word perplexity is exp(total loss / words), comparable between tokenizers.
        """
        splits = self._corpus.splits
        if split not in splits:
            raise UserError(f"{self.hparams['data']} has no {split} split, only {', '.join(splits)}")
        return pack(splits[split], self.tokenizer, self._file(split))

    def tokens(self, split: str) -> np.ndarray:
        """All token ids of a split (N,), memory-mapped: what a counting model is given."""
        self.stats(split)  # packs it
        return np.memmap(self._file(split), dtype=token_dtype(self.vocab_size), mode="r")

    def prepare_data(self) -> None:
        """Pack, once per machine, what the trainer's verb needs; without a trainer, all splits but "predict"."""
        verb = self.trainer.state.fn if self.trainer else None
        for split in SPLITS[verb] if verb else [split for split in self._corpus.splits if split != "predict"]:
            self.stats(self._named(split))

    def dataset(self, split: str) -> Windows:
        split = self._named(split)
        name, stats = f"the {split} split of {self.hparams['data']}", self.stats(split)
        if not stats["bytes"]:
            raise UserError(f"{name} has no text in it")
        needed = self.seq_len + 1 if split == "train" else 2
        if stats["tokens"] < needed:
            remedy = "lower seq_len" if split == "train" else "give a longer text"
            raise UserError(f"{name} has {stats['tokens']} tokens, but one window needs {needed}: {remedy}")
        stride = None if split == "train" else self.hparams["eval_stride"] or self.seq_len
        return Windows(self._file(split), token_dtype(self.vocab_size), self.seq_len, stride, stats["words"])

    @cached_property
    def _corpus(self) -> Corpus:
        names = ("data", "text_column", "join_rows", "val_fraction", "test_fraction")
        return open_corpus(**{name: self.hparams[name] for name in names}, cache_dir=self.cache / "datasets")

    def _named(self, split: str) -> str:
        """The name that "predict" has in this corpus; every other split has its own."""
        return next(s for s in ("predict", "test", "val") if s in self._corpus.splits) if split == "predict" else split

    def _file(self, split: str) -> Path:
        key = f"{self._corpus.digest} {self.tokenizer.fingerprint}"
        return self.cache / "tokens" / hashlib.blake2b(key.encode(), digest_size=16).hexdigest() / f"{split}.bin"

    def train_tokenizer(self, kind: str) -> Tokenizer:
        vocab_size = self.hparams["bpe_vocab_size"]

        def write(half: Path) -> None:
            learnt = train_bpe((text for _, text in parts(self._corpus.splits["train"]())), vocab_size)
            half.write_text(json.dumps(learnt.state()))

        file = self.cache / "bpe" / f"{self._corpus.digest}-{vocab_size}.json"
        once(file, write)
        return from_state(json.loads(file.read_text()))
