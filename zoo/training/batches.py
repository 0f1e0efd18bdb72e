"""Batches: documented NamedTuples that data modules produce and modules consume, and how rows become batches."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import IterableDataset

from zoo.errors import UserError, check_counts
from zoo.layers.linear_nll import IGNORED
from zoo.tokenizers import Tokenizer
from zoo.training.random_streams import stream


class TokenBatch(NamedTuple):
    """Windows of running text for a language model. A plain (tokens, targets) pair is accepted in its place."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, the token after each one; IGNORED where it is not scored
    index: Tensor | None = None  # type: ignore[assignment]  # (B,) int64, the windows' places in their split
    words: Tensor | None = None  # (B,) float32, words per row: its share of the split's words by its scored tokens


def as_token_batch(batch: Any) -> TokenBatch:
    """A `TokenBatch` from one, or from a (tokens, targets) pair.

    Raises:
        TypeError: the batch is something else.
    """
    if isinstance(batch, TokenBatch):
        return batch
    if isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return TokenBatch(*batch)
    raise TypeError(f"a language model accepts a TokenBatch or (tokens, targets), both (B, T), not {_shape(batch)}")


def _shape(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    return f"a {type(batch).__name__}" + (f" of {len(batch)} items" if hasattr(batch, "__len__") else "")


class Row(NamedTuple):
    """One text for a regressor or classifier. `collate` joins rows into a `TextBatch`."""

    tokens: list[int]  # the text's token ids, at least one
    targets: tuple[float, ...]  # K numbers, or the number of a class; NaN where unknown
    index: int  # type: ignore[assignment]  # the row's place in its split; hides tuple.index
    text: str
    features: tuple[float, ...] | None = None  # the F numbers in the text, for models that read numbers


class TextBatch(NamedTuple):
    """A batch of texts with their targets. `padding_mask` marks padding, which is not a token id."""

    tokens: Tensor  # (B, T) int64, each row's ids, then zeros
    padding_mask: Tensor | None  # (B, T) bool, True at tokens; None if no row is padded
    targets: Tensor  # (B, K) float64, numbers or the number of a class, NaN where unknown
    index: Tensor  # type: ignore[assignment]  # (B,) int64, the rows' places in their split
    texts: list[str]
    features: Tensor | None  # (B, F) float32
    # What a model adds in `on_before_batch_transfer`, so that it is computed on the CPU and moved with the batch.
    numbers: Tensor | None = None  # (B, L) int64, RegressLM: the targets as number tokens
    lengths: list[int] | None = None  # MiniRLM with an LSTM: the rows' numbers of tokens; stays on the CPU
    bow_logits: Tensor | None = None  # (B, C) float32, LlamaClassifier: class logits of its bag of words

    def select(self, rows: list[int]) -> "TextBatch":
        """The batch of the given rows."""
        fields = [None if f is None else [f[i] for i in rows] if isinstance(f, list) else f[rows] for f in self]
        return TextBatch(*fields)  # type: ignore[arg-type]


def check_text_batch(batch: Any, model: str) -> None:
    """Raises TypeError if the batch for the class `model` is no `TextBatch`."""
    if not isinstance(batch, TextBatch):
        raise TypeError(
            f"{model} takes a TextBatch, not a {type(batch).__name__}: make Rows with "
            "zoo.training.batches.text_rows and give the DataLoader collate_fn=zoo.training.batches.collate"
        )


def check_targets(
    targets: Tensor, index: Sequence[int] | Tensor, n_classes: int = 0, classes: str = "n_classes"
) -> None:
    """Check the targets of rows that a model is trained or evaluated on.

    Args:
        targets: (N, K) numbers, or the number of a class.
        index: (N,) the rows' places in the data, for the message.
        n_classes: number of classes; 0 for regression.
        classes: the argument that sets the number of classes, for the message.

    Raises:
        UserError: a target is not finite or, with classes, is not the number of a class; the message names the row.
    """
    is_valid = targets.isfinite()  # (N, K)
    needed = "training and evaluation need a finite number"
    if n_classes:
        is_valid &= (targets >= 0) & (targets < n_classes) & (targets == targets.floor())
        needed = f"{classes} {n_classes} means one of 0 ... {n_classes - 1}"
    if not is_valid.all():
        row, column = (~is_valid).nonzero()[0].tolist()
        raise UserError(f"row {int(index[row])}: a target is {targets[row, column]:g}, but {needed}")


def check_token_ids(tokens: Tensor, vocab_size: int, targets: Tensor | None = None) -> None:
    """Check the ids of a batch; their range only on a CPU (a GPU would have to be waited for) and not in torch.compile.

    Args:
        tokens: (B, T) ids.
        vocab_size: number of ids.
        targets: (B, T) ids too, or IGNORED; None if there are none.

    Raises:
        UserError: a tensor is not (B, T) integers, or an id is outside the vocabulary.
    """
    for name, ids, ignored in (("tokens", tokens, None), ("targets", targets, IGNORED)):
        if ids is None:
            continue
        if ids.dim() != 2 or ids.shape != tokens.shape:
            shape = "(batch, length)" if tokens.dim() != 2 else str(tuple(tokens.shape))
            raise UserError(f"{name} must have shape {shape}, not {tuple(ids.shape)}: a single row is {name}[None]")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise UserError(f"{name} must be token ids, integers, not of {ids.dtype}")
        if ids.device.type == "cpu" and not torch.compiler.is_compiling():
            is_wrong = (ids < 0) | (ids >= vocab_size)
            if ignored is not None:
                is_wrong &= ids != ignored
            if is_wrong.any():
                raise UserError(
                    f"{name} hold the id {ids[is_wrong][0]}, which is outside the model's vocabulary of {vocab_size}: "
                    "use the tokenizer that the model was trained with"
                )


def _as_columns(name: str, values: ArrayLike, n_texts: int) -> np.ndarray:
    """Numbers (N,) or (N, K) as float64 (N, K), None as NaN. Raises UserError for other values, or another N."""
    try:
        given = np.asarray(values)
        if given.ndim == 0 or given.dtype.kind not in "biufO":
            raise ValueError
        if given.dtype == object and any(isinstance(value, str | bytes) for value in given.flat):
            raise ValueError
        numbers = given.astype(np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be numbers, equally many for each text, not {values!r:.100}") from None
    if len(numbers) != n_texts:
        raise UserError(f"there are {n_texts} texts, but {len(numbers)} {name}: give one for each text")
    return numbers.reshape(n_texts, numbers.size // max(n_texts, 1))


def text_rows(
    texts: Sequence[str],
    targets: ArrayLike | None,
    tokenizer: Tokenizer,
    features: ArrayLike | None = None,
) -> list[Row]:
    """Rows for a plain DataLoader: `DataLoader(text_rows(...), batch_size=32, collate_fn=collate)`.

    Args:
        texts: N texts.
        targets: N numbers, or (N, K) for K objectives; NaN or None if unknown.
        tokenizer: turns the texts into ids.
        features: (N, F) numbers, for models that read numbers instead of text.

    Raises:
        UserError: `texts` is a single text, a text is empty, targets or features are not numbers, or their count
            differs from that of the texts.
    """
    if isinstance(texts, str):
        raise UserError("texts must be a list of texts, not a single one: put it in a list")
    # Unknown targets are NaN.
    columns = _as_columns("targets", [np.nan] * len(texts) if targets is None else targets, len(texts))  # (N, K)
    numbers = None if features is None else _as_columns("features", features, len(texts))  # (N, F)
    rows = []
    # A row needs at least one token, since models pool over tokens.
    for i, (text, ids) in enumerate(zip(texts, tokenizer.encode_batch(texts), strict=True)):
        if not ids:
            raise UserError(f"text {i} has no token: leave out empty texts")
        rows.append(
            Row(ids, tuple(columns[i].tolist()), i, text, None if numbers is None else tuple(numbers[i].tolist()))
        )
    return rows


def collate(rows: Sequence[Row]) -> TextBatch:
    """The rows as one batch, as wide as the longest of them: the `collate_fn` of a DataLoader over rows."""
    # Fill the ids of all rows into a matrix of zeros, as wide as the longest row.
    lengths = np.array([len(row.tokens) for row in rows])
    padding_mask = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
    tokens = np.zeros(padding_mask.shape, dtype=np.int64)
    tokens[padding_mask] = np.concatenate([row.tokens for row in rows])
    features = None if rows[0].features is None else torch.tensor([row.features for row in rows], dtype=torch.float32)
    return TextBatch(
        tokens=torch.from_numpy(tokens),
        padding_mask=None if padding_mask.all() else torch.from_numpy(padding_mask),
        targets=torch.tensor([row.targets for row in rows], dtype=torch.float64),
        index=torch.tensor([row.index for row in rows]),
        texts=[row.text for row in rows],
        features=features,
    )


def targets_and_features(loader: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Targets (N, K) and features (N, F), if there are any, of all rows behind a training DataLoader.

    A dataset's own arrays `targets` and `features` are used where it has them; otherwise all its `Row`s are read.

    Raises:
        TypeError: the loader's dataset is not a map-style dataset of rows.
    """
    # Arrays of the dataset are faster than reading it row by row.
    dataset: Any = getattr(loader, "dataset", None)
    if hasattr(dataset, "targets"):
        return np.asarray(dataset.targets, dtype=np.float64), getattr(dataset, "features", None)
    is_map_style = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
    rows = [dataset[i] for i in range(len(dataset))] if is_map_style else []
    if not rows or not all(isinstance(row, Row) for row in rows):
        raise TypeError(
            "training needs a DataLoader over a map-style dataset of zoo.training.batches.Row, for instance the list "
            "that text_rows returns"
        )
    features = None if rows[0].features is None else np.array([row.features for row in rows], dtype=np.float32)
    return np.array([row.targets for row in rows], dtype=np.float64), features


def n_given_rows(loader: Any) -> int:
    """Number of rows behind a training DataLoader that come from the user's data: the first ones of its dataset.

    The others are changed copies or synthetic rows.
    """
    n_given = getattr(loader.dataset, "n_given", None)
    return len(loader.dataset) if n_given is None else int(n_given)


def bucketed(order: Tensor, lengths: Tensor, step: int, generator: torch.Generator, window: int = 50) -> Tensor:
    """Rearrange `order` so that rows of similar length share a step.

    Within every window of `window` steps the rows are sorted by length and the steps are shuffled. A row stays in its
    window, so the order remains mostly random. Rows at the end that fill no step stay at the end.

    Args:
        order: (N,) row numbers in random order.
        lengths: (N,) length of each row in tokens, by row number.
        step: rows per step.
        generator: source of the shuffle of the steps.
        window: steps per window.

    Returns:
        (N,) row numbers.
    """
    full = len(order) - len(order) % step  # rows that fill whole steps
    parts = []
    for rows in order[:full].split(window * step):
        # Sort the window's rows by length, cut them into steps, and shuffle the steps.
        steps = rows[lengths[rows].argsort(stable=True)].view(-1, step)  # (steps, step)
        parts.append(steps[torch.randperm(len(steps), device="cpu", generator=generator)].flatten())
    return torch.cat([*parts, order[full:]])


class BucketBatchSampler:
    """Batch sampler for a plain DataLoader: rows of similar length together, reshuffled every epoch.

    Each pass over it is one epoch; its order depends on the seed and the number of passes before it. Unlike the loaders
    of `zoo.datamodules` it keeps a last batch that is not full, so that it also serves a handful of rows, and it does
    not resume in the middle of an epoch.

    Args:
        lengths: length of each row in tokens.
        batch_size: rows per batch.
        seed: seed of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0) -> None:
        check_counts(batch_size=batch_size)
        self.lengths, self.batch_size, self.seed, self.epoch = torch.tensor(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # The order of each epoch depends on the seed and the epoch only.
        generator = stream(self.seed, "order", self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.lengths), device="cpu", generator=generator)
        order = bucketed(order, self.lengths, self.batch_size, generator)
        yield from (rows.tolist() for rows in order.split(self.batch_size))
