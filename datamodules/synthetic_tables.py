"""SyntheticTables: rows of many random tables as texts, generated while they are read, to pretrain RegressLM.

Every table has its own names of columns and categories, so that a text shows which table its row is from. Row n of a
split is a function of n: the rows of all tables alternate, and tables with about as many columns follow each other, so
that the texts of a batch have similar lengths.
"""

from collections import OrderedDict
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from zoo.datamodules.row_text import RowLayout
from zoo.datamodules.table_functions import RandomTable
from zoo.datamodules.text_data import TextData
from zoo.errors import UserError, check_counts, check_number
from zoo.tokenizers import Tokenizer
from zoo.tokenizers.numerals import rounded
from zoo.tokenizers.word_pieces import make_word_pieces
from zoo.training.batches import Row, collate
from zoo.training.random_streams import derive

BLOCK = 64  # rows of a table that are drawn together
TURN = 8  # rows of each table that follow each other in random order
GROUP = 128  # rows of tables with about as many columns
ROWS = {"train": 100_000_000, "test": 16}  # rows of an epoch without end; test rows of each table
MAX_POWER = 30  # of ten, that the tokenizer has a word for
FIRST_BLOCK = {"train": 2, "val": 0, "test": 1, "predict": 1}  # of the blocks of rows of each table


class SyntheticTables(TextData):
    """Rows of random tables and their targets; no download.

    A table has 2 to `max_columns` columns of numbers of any scale and of categories. Its target is a sum of linear,
    curved, periodic and interaction terms and trees, with noise; some tables have missing cells. The rows become texts
    as those of a user's table do with round_digits and power_tokens. Every training row is new. Validation and test
    rows are new rows of the same tables.

    Args:
        tokenizer: "tables", with one token for each mantissa and power of a rounded number, each name and each
            category; or a path that `load_tokenizer` takes.
        n_tables: number of tables, at least 1.
        max_columns: largest number of columns of a table, from 2 to 64.
        tables_seed: seed of the tables, not of the order of their rows; runs with the same value share them.
        round_digits: significant digits of the numbers in texts, from 1 to 3.
        n_val: validation rows of each table, a multiple of 8 up to 64.
        batch_size: rows of a training batch on each process, at least 1.
        num_workers: loader processes, at least 0; each generates the rows of its batches.
        seed: seed of the training rows and their order; by default the run's.
    """

    collate = staticmethod(collate)
    changeable_arguments = (*TextData.changeable_arguments, "n_val")
    text_arguments = ("round_digits",)
    learnt = ("tables",)
    power_tokens = True
    n_objectives = 1
    max_input_len = 1024

    def __init__(
        self,
        tokenizer: str = "tables",
        n_tables: int = 64,
        max_columns: int = 12,
        tables_seed: int = 0,
        round_digits: int = 2,
        n_val: int = 32,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, shuffle=False)
        check_counts(**{"--data.n_tables": n_tables})
        check_number("--data.max_columns", max_columns, "from 2 to 64", lambda n: 2 <= n <= 64, whole=True)
        check_number("--data.round_digits", round_digits, "from 1 to 3", lambda n: 1 <= n <= 3, whole=True)
        allowed = f"a multiple of {TURN} up to {BLOCK}"
        check_number("--data.n_val", n_val, allowed, lambda n: n in range(TURN, BLOCK + 1, TURN), whole=True)
        self.save_hyperparameters(logger=False)
        self.round_digits = round_digits

    @cached_property
    def tables(self) -> list[RandomTable]:
        """The random tables."""
        h: Any = self.hparams
        return [RandomTable(f"t{i}", derive(h.tables_seed, "table", i), h.max_columns) for i in range(h.n_tables)]

    def train_tokenizer(self, kind: str) -> Tokenizer:
        """A tokenizer with the words of all tables; other words become bytes."""
        return make_word_pieces(
            [*number_words(self.round_digits), *(w for table in self.tables for w in table.words())]
        )

    def dataset(self, split: str) -> "TableRows":
        """The rows of a split."""
        if split == "predict":
            raise UserError("the rows of random tables are not predicted: use zoo test, or other data")
        n_rows = {**ROWS, "val": self.hparams["n_val"]}[split]
        if split != "train":
            n_rows *= len(self.tables)
        seed = derive(self.seed, "rows") if split == "train" else 0
        return TableRows(self.tables, self.tokenizer, self.round_digits, n_rows, FIRST_BLOCK[split], seed)


class TableRows(Dataset):
    """Rows of all tables alternately, generated when they are read.

    Args:
        tables: random tables.
        tokenizer: tokenizer of the texts.
        round_digits: significant digits of the numbers in texts.
        n_rows: number of rows.
        first_block: number of the first block of each table's rows; the rows go on to the blocks after it.
        seed: seed of the order of the tables and, if it is not 0, of their rows.
    """

    def __init__(
        self,
        tables: list[RandomTable],
        tokenizer: Tokenizer,
        round_digits: int,
        n_rows: int,
        first_block: int,
        seed: int,
    ) -> None:
        self.tables, self.tokenizer, self.round_digits = tables, tokenizer, round_digits
        self._n_rows, self._first_block, self._seed = n_rows, first_block, seed
        self._layouts = [RowLayout([c.name for c in table.columns], [], "key_value") for table in tables]
        self._blocks: OrderedDict[tuple[int, int], tuple[list[str], list[list[int]], list[float]]] = OrderedDict()
        self._orders: OrderedDict[int, list[int]] = OrderedDict()

    def __len__(self) -> int:
        return self._n_rows

    @property
    def targets(self) -> np.ndarray:
        """(N, 1) targets of the first rows, those from which models read statistics."""
        n_rows = min(self._n_rows, BLOCK * len(self.tables))
        return np.array([self[i].targets for i in range(n_rows)])

    def __getitem__(self, index: int) -> Row:
        turn, place = divmod(index, TURN * len(self.tables))
        table, row = divmod(self._order(turn)[place], TURN)
        block, row = divmod(turn * TURN + row, BLOCK)
        texts, ids, targets = self._block(table, self._first_block + block)
        return Row(ids[row], (targets[row],), index, texts[row])

    def _block(self, table: int, block: int) -> tuple[list[str], list[list[int]], list[float]]:
        """Texts, tokens and targets of a block of rows; the last blocks of all tables stay in memory."""
        key = table, block
        if key not in self._blocks:
            number = derive(self._seed, "block", block) if self._seed else block
            cells, targets = self.tables[table].rows(number, BLOCK)
            texts = [self._layouts[table].text(row) for row in cells]
            ids = self.tokenizer.encode_batch([rounded(text, self.round_digits, powers=True) for text in texts])
            self._blocks[key] = texts, ids, targets.tolist()
            if len(self._blocks) > 2 * len(self.tables):
                self._blocks.popitem(last=False)
        return self._blocks[key]

    def _order(self, turn: int) -> list[int]:
        """The rows of a turn in their order, TURN x table + row: groups of about as many columns, in random order."""
        if turn not in self._orders:
            random = np.random.default_rng(derive(self._seed, "order", turn))
            n_columns = np.array([len(table.columns) for table in self.tables])
            lengths = np.repeat(n_columns, TURN) + random.uniform(0, 2, TURN * len(n_columns))
            groups = np.array_split(np.argsort(lengths), max(1, len(lengths) // GROUP))
            order = np.concatenate([groups[i] for i in random.permutation(len(groups))])
            self._orders[turn] = order.tolist()
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[turn]


def number_words(digits: int) -> list[str]:
    """The words of numbers of few digits: mantissas, and powers of ten with and without a comma."""
    unit = 10 ** (digits - 1)
    mantissas = [f"{sign}{i / unit:.{digits - 1}f}" for sign in ("", "-") for i in [0, *range(unit, 10 * unit)]]
    powers = [f"e{power or ''}{end}" for power in range(-MAX_POWER, MAX_POWER + 1) for end in (",", "")]
    return [*mantissas, *powers]
