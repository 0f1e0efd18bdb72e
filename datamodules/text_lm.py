"""Data module of text for language models: tokenized once into a cache, read as windows of tokens."""

import hashlib
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from zoo.datamodules.packing import chunk_rows, pack, read_counts, token_dtype, write_once
from zoo.datamodules.sources.corpus import Corpus, open_corpus
from zoo.datamodules.text_data import SPLITS, TextData
from zoo.datamodules.windows import PackedTokens, Windows
from zoo.errors import UserError, check_counts, check_number
from zoo.text_formats.json_text import dump_json, parse_json
from zoo.tokenizers import Tokenizer, from_state, train_bpe

QUICK_BYTES = 1 << 24  # of text that is packed in seconds
BPE_PARTS = 8  # parts of the training text from which "bpe" learns; 1 GiB


class TextLM(TextData):
    """Text for language models: windows of tokens from any text with any tokenizer.

    Batches are `TokenBatch`es: tokens (B, T), targets (B, T) one token ahead, index (B,), words (B,). Training windows
    do not overlap, and incomplete ones are left out. Evaluation scores every token of a split except the first exactly
    once. The split "predict" is the complete text if that was given without splits, else the test split, else the
    validation split. Each split is packed into the cache at its first use.

    Args:
        data: "pydoc", the documentation that CPython contains (no download); a text file (one document), a table (CSV,
            TSV, JSON, JSON lines, Parquet), a folder of such files, or the URL of one of these (https://, s3://, and
            others that fsspec knows); or a Hugging Face data set, "name" or "name:config". Splits are recognised by the
            names of a folder's files (train, valid, test), or are those of the hub.
        tokenizer: "bytes"; "bpe", trained on the training split (on 1 GiB of a larger one); or a path or name that
            `load_tokenizer` accepts.
        seq_len: T, tokens per window; at least 1, and at most the model's max_seq_len.
        batch_size: windows per step on each rank; at least 1.
        bpe_vocab_size: vocabulary size of the tokenizer "bpe"; at least 257.
        val_fraction: share of the text, from its end, used for validation if no validation split is given; above 0.
            With 1.0 `zoo validate` scores the complete text, and test_fraction does not count. A split consists of
            complete rows (lines, or rows of a table); only if one would be empty, the text is cut within rows.
        test_fraction: share of the text, at least 0 and below 1, used for testing if neither a validation nor a test
            split is given; 0 for none.
        eval_stride: tokens from one evaluation window to the next, from 1 to seq_len; null means seq_len. Smaller
            values are slower, and score each token with a longer context.
        join_rows: treat the rows of a table as lines of one document; false treats each row as a document.
        text_column: name of the table column that contains the text.
        num_workers: loader processes per rank, at least 0; 0 loads in the main process.
        packing_processes: processes that pack a text of more than 128 MiB, at least 1; null starts one for every
            CPU core.
        cache_dir: folder of packed tokens, trained tokenizers and downloads; null means $ZOO_CACHE, or ~/.cache/zoo if
            that is not set.
        seed: seed of the training order; null uses `seed_everything`.
    """

    changeable_arguments = (*TextData.changeable_arguments, "eval_stride", "packing_processes")
    token_arguments = ("join_rows",)

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
        packing_processes: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.save_hyperparameters()
        check_counts(seq_len=seq_len)
        if eval_stride is not None:
            allowed = f"between 1 and seq_len {seq_len}"
            check_number("eval_stride", eval_stride, allowed, lambda stride: 1 <= stride <= seq_len, whole=True)
        if packing_processes is not None:
            check_counts(**{"--data.packing_processes": packing_processes})
        for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            check_number(name, fraction, "a fraction", lambda _: True)
        if not (val_fraction > 0 and test_fraction >= 0 and (val_fraction + test_fraction < 1 or val_fraction == 1)):
            raise UserError(
                f"val_fraction {val_fraction} must be positive, test_fraction {test_fraction} not negative,"
                " and both together less than 1 (val_fraction 1.0 alone validates on the complete text)"
            )
        self.seq_len, self.eval_stride = seq_len, eval_stride or seq_len

    def stats(self, split: str) -> dict[str, int]:
        """Counts of "tokens", "words" and "bytes" of a split. Words are counted as on WikiText, line ends included.

        Raises:
            UserError: the split does not exist.
        """
        splits = self._corpus.splits
        if split not in splits:
            raise UserError(f"{self.hparams['data']} has no {split} split, only {', '.join(splits)}: add a file for it")
        workers = self.hparams["packing_processes"]
        return pack(lambda: self._corpus.parts(split), self.tokenizer, self._file(split), workers)

    def tokens(self, split: str) -> np.ndarray:
        """All token ids of a split (N,): memory-mapped, or in memory if the split has several shards."""
        self.stats(split)  # packs the split if needed
        packed = PackedTokens(self._file(split), token_dtype(self.vocab_size))
        return packed.read(0, len(packed))

    def is_quickly_read(self, split: str) -> bool:
        """Whether the tokens of a split are in the cache, or its text is packed in seconds (at most 16 MiB)."""
        if split not in self._corpus.splits:
            return False
        return bool(read_counts(self._file(split))) or sum(p.size for p in self._corpus.parts(split)) <= QUICK_BYTES

    def has_split(self, split: str) -> bool:
        """Whether the data has a split, "train", "val" or "test"."""
        return split in self._corpus.splits

    def prepare_data(self) -> None:
        """Pack, once per machine, the splits that the trainer reads; without a trainer, all except "predict"."""
        stage = self.trainer.state.fn if self.trainer else None
        for split in SPLITS[stage] if stage else [split for split in self._corpus.splits if split != "predict"]:
            self.stats(self._split_name(split))

    def dataset(self, split: str) -> Windows:
        """The windows of a split.

        Raises:
            UserError: the split is missing, or too short for one window.
        """
        split = self._split_name(split)
        name, stats = f"the {split} split of {self.hparams['data']}", self.stats(split)
        if not stats["bytes"]:
            remedy = "lower --data.val_fraction" if self.hparams["val_fraction"] == 1 else "give another file"
            raise UserError(f"{name} contains no text: {remedy}")
        needed = self.seq_len + 1 if split == "train" else 2
        if stats["tokens"] < needed:
            remedy = "lower --data.seq_len" if split == "train" else "give a longer text"
            raise UserError(f"{name} has {stats['tokens']} tokens, but one window needs {needed}: {remedy}")
        stride = None if split == "train" else self.eval_stride
        return Windows(self._file(split), token_dtype(self.vocab_size), self.seq_len, stride, stats["words"])

    def fingerprint(self, split: str) -> dict[str, Any]:
        return super().fingerprint(split) | {"digest": self._corpus.digest}

    @cached_property
    def _corpus(self) -> Corpus:
        names = ("data", "text_column", "join_rows", "val_fraction", "test_fraction")
        options = {name: self.hparams[name] for name in names}
        if options["val_fraction"] == 1:
            options["test_fraction"] = 0.0
        return open_corpus(**options, cache_dir=self.cache / "datasets")

    @property
    def predicted_split(self) -> str:
        """The split that `predict` reads; "train" where it is the complete text."""
        split = self._split_name("predict")
        return "train" if split == "predict" else split

    def _split_name(self, split: str) -> str:
        """The name of a split in the corpus, which differs only for "predict"."""
        return next(s for s in ("predict", "test", "val") if s in self._corpus.splits) if split == "predict" else split

    def _file(self, split: str) -> Path:
        """The packed file of a split, in a folder that is named by the contents of the text and the tokenizer."""
        key = f"{self._corpus.digest} {self.tokenizer.fingerprint}"
        return self.cache / "tokens" / hashlib.blake2b(key.encode(), digest_size=16).hexdigest() / f"{split}.bin"

    def train_tokenizer(self, kind: str) -> Tokenizer:
        """A byte-level BPE of the training split, trained once and kept in the cache."""
        vocab_size = self.hparams["bpe_vocab_size"]

        def write(temporary: Path) -> None:
            parts = self._corpus.parts("train")
            parts = parts[:: -(-len(parts) // BPE_PARTS)]  # of a large text, parts at equal distances
            rows = chain.from_iterable(part.rows() for part in parts)
            tokenizer = train_bpe((text for _, text in chunk_rows(rows)), vocab_size)
            state = dump_json(tokenizer.state())
            temporary.write_text(dump_json({"digest": _digest(state), "state": state}), encoding="utf-8")

        file = self.cache / "bpe" / f"{self._corpus.digest}-{vocab_size}.json"
        write_once(file, write, lambda: None if _read_state(file) else "its digest is wrong")
        state = _read_state(file)
        assert state is not None
        return from_state(parse_json(state))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read_state(file: Path) -> str | None:
    """The state of a tokenizer in the cache as JSON; None if the file is damaged."""
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except ValueError:  # not JSON, or not UTF-8
        return None
    state = content.get("state") if isinstance(content, dict) else None
    return state if isinstance(state, str) and _digest(state) == content.get("digest") else None
