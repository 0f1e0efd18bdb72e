"""Default settings of RegressLM from statistics of the data: rules that need no tuning, each with its reason.

The rules distinguish three kinds of texts. "numbers": rows of tables and other texts that are mostly numbers and
categories, which are read as rounded numbers with noise. "digits": a single number or two of which every digit may
matter. "language": everything else.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from zoo.regress_lm.encoder_defaults import encoder_choices, encoder_steps
from zoo.regress_lm.number_formats import number_tokenizer
from zoo.training.choices import Choice, choose_width, rounded_down, settings_of
from zoo.training.distinct_targets import ENOUGH, QUANTILES
from zoo.training.number_range import evenly_spaced
from zoo.training.text_statistics import FEW_NUMBERS, TextStatistics

Kind = Literal["numbers", "digits", "language"]

SECONDS = 200  # that the default number of steps takes on one core of OPERATIONS per second
OPERATIONS = 2e10
WIDE = 128  # from this width on, products of matrices are faster
WIDE_OPERATIONS = 3e10
LEAST_STEPS = 200
N_VALIDATIONS = 6
TAUGHT_TABLES = range(10, 10_000)  # training rows of tables that are learned from synthetic rows as well
TAUGHT_TEXTS = range(50, 10_000)  # the same for training rows of texts
SYNTHETIC_ROWS = 20_000
CALIBRATED = 400  # training rows with which there are enough validation rows for conformal intervals
MANY_ROWS = 2000  # with more rows than these, copies of the rows themselves are learned in addition
MOSTLY_NEW = 0.25  # share of the numbers of new texts that no training text has, from which words cannot be read
END = "the schedule ends with the run"
AUGMENTATIONS = ("jitter", "target_jitter", "synonyms", "background", "number_formats")


def choose_settings(statistics: TextStatistics, given: Mapping[str, Any]) -> list[Choice]:
    """Settings of model, data and trainer for texts with these statistics.

    Args:
        statistics: those of the training rows.
        given: the settings that are already decided, by option ("data.batch_size"); other choices follow from them.

    Returns:
        Choices for options that are not in `given`.
    """
    kind = kind_of(statistics)
    if given.get("model.encoder"):
        return _with_encoder(statistics, kind, given)
    synthetic = list(_synthetic(statistics, kind, given))
    is_synthetic = bool(given.get("data.synthetic_rows", synthetic))
    synthetic = synthetic if is_synthetic else []
    choices = [
        *synthetic,
        *_number_format(statistics, given, is_synthetic),
        *_sizes(statistics, kind, given, is_synthetic),
        *_tokenizer(statistics, kind, given, is_synthetic),
        Choice("data.batch_size", _batch_size(statistics), f"texts of {statistics.characters:.0f} characters"),
    ]
    settings = settings_of(choices) | dict(given)
    schedule = list(_schedule(statistics, kind, settings))
    settings = settings_of(schedule) | settings
    choices += [*schedule, *_augmentation(statistics, kind, settings), *_optimizer(kind, is_synthetic)]
    # A step has at most all training rows; other choices follow from its size.
    settings = settings_of(choices) | dict(given)
    n_rows = statistics.n_rows + max(settings.get("data.synthetic_rows", 0), 0)
    n_copies = statistics.n_rows * max(settings.get("data.augment_copies", 0), 0)
    if "data.batch_size" not in given and n_rows + n_copies < settings["data.batch_size"]:
        batch = Choice("data.batch_size", max(n_rows, 1), f"{n_rows} training rows")
        return [*choose_settings(statistics, {**given, batch.option: batch.value}), batch]
    return [choice for choice in choices if choice.option not in given]


def kind_of(statistics: TextStatistics) -> Kind:
    """The kind of texts."""
    s = statistics
    if s.content_words == 0 and 0 < s.numbers <= 2 and s.n_rows >= 1000:
        return "digits"
    # Texts count as language if many words are rare and words outnumber numbers.
    is_language = s.rare_share > 0.02 and s.content_words > 2 * s.numbers
    return "language" if is_language else "numbers"


# ---- rules


def _with_encoder(statistics: TextStatistics, kind: Kind, given: Mapping[str, Any]) -> list[Choice]:
    """Settings of a model with a pretrained encoder, which has its own tokenizer."""
    batch_size = min(_batch_size(statistics), statistics.n_rows)
    changes = [f"data.{name}" for name in AUGMENTATIONS]
    choices = [
        *encoder_choices(statistics, given, changes, is_rounded=kind == "numbers" and statistics.numbers > 0),
        *_number_format(statistics, given, is_synthetic=False),
        Choice("data.batch_size", batch_size, f"texts of {statistics.characters:.0f} characters"),
    ]
    settings = settings_of(choices) | dict(given)
    choices += [*_schedule(statistics, kind, settings), Choice("model.min_lr_ratio", 0.02, END)]
    return [choice for choice in choices if choice.option not in given]


def _is_pretrained(kind: Kind, is_synthetic: bool, given: Mapping[str, Any]) -> bool:
    """Whether a model of a table starts from weights such as zoo:regress-lm, and learns from synthetic rows."""
    return kind == "numbers" and is_synthetic and bool(given.get("model.weights"))


def _synthetic(statistics: TextStatistics, kind: Kind, given: Mapping[str, Any]) -> Iterator[Choice]:
    """Synthetic rows that an ensemble labels, for small tables and for few texts."""
    rows = statistics.n_rows
    is_table = kind == "numbers" and statistics.columns and rows in TAUGHT_TABLES
    # Texts of a few frequent words have the kind "numbers", even without numbers.
    are_texts = kind == "language" or (not statistics.columns and statistics.content_words > statistics.numbers)
    if not is_table and not (are_texts and rows in TAUGHT_TEXTS):
        return
    yield Choice("data.synthetic_rows", SYNTHETIC_ROWS, f"{rows:,} training rows")
    if rows >= CALIBRATED or _is_pretrained(kind, True, given):
        by = "validation rows" if rows >= CALIBRATED else "the teacher's errors in cross-validation"
        yield Choice("data.synthetic_noise", 0.3, f"{by} calibrate the intervals")


def _sizes(statistics: TextStatistics, kind: Kind, given: Mapping[str, Any], is_synthetic: bool) -> Iterator[Choice]:
    rows = statistics.n_rows
    reason = f"{rows:,} training rows"
    # The labels of synthetic rows are a function that a wide model learns in fewer steps, and that one layer can read.
    is_taught = kind == "numbers" and is_synthetic
    yield from choose_width(rows, given, least=WIDE if is_taught else 64)
    yield Choice("model.n_encoder_layers", 1 if is_taught else 2, "synthetic rows" if is_taught else reason)
    yield Choice("model.n_decoder_layers", 1 if kind != "digits" else 2, reason)
    few = "synthetic rows" if is_synthetic else "few rows" if rows < 20_000 else reason
    residual = {"numbers": 0.1, "digits": 0.0, "language": 0.1 if is_synthetic else 0.2}[kind]
    residual, why = (0.0, "few steps from weights") if _is_pretrained(kind, is_synthetic, given) else (residual, few)
    yield Choice("model.residual_dropout", residual, why)
    yield Choice("model.dropout", 0.2 if kind == "language" and not is_synthetic else 0.0, few)


def _tokenizer(
    statistics: TextStatistics, kind: Kind, given: Mapping[str, Any], is_synthetic: bool
) -> Iterator[Choice]:
    s = statistics
    if kind == "digits":
        reason = f"{s.numbers:.2g} numbers per text, of which every digit may matter"
        yield Choice("data.tokenizer", "bytes", reason)
        return
    words = f"{s.rare_share:.0%} of the words that distinguish texts are rare"
    tokenizer = "bpe" if kind == "language" or (s.content_words > 0 and s.rare_share > 0.05) else "words"
    # Rounding to two digits would make a column constant, such as years; numbers of more digits are too rare as words.
    if kind == "numbers" and tokenizer == "words" and s.least_digits > 2 and s.distinct_numbers > FEW_NUMBERS:
        tokenizer, words = "bpe", f"a column needs {s.least_digits} digits, another has {s.distinct_numbers:,} numbers"
    # Synthetic rows have many more numbers than the training rows.
    if kind == "numbers" and tokenizer == "words" and not is_synthetic and s.single_numbers > MOSTLY_NEW:
        tokenizer, words = "bytes", f"{s.single_numbers:.0%} of the numbers are in a single text"
    yield Choice("data.tokenizer", tokenizer, words)
    if given.get("data.tokenizer", tokenizer) == "bpe":
        size = 1000 if kind == "numbers" else 2000 if s.n_rows < 20_000 and not is_synthetic else 8000
        yield Choice("data.bpe_vocab_size", size, f"{s.n_rows:,} training rows")
    if kind == "numbers" and s.numbers:
        # A word of three digits is too rare to learn, unless all columns have few values, as years. Pieces of words
        # are not limited in this way.
        is_word = given.get("data.tokenizer", tokenizer) == "words" and s.distinct_numbers > FEW_NUMBERS
        digits = s.least_digits if is_word else s.digits
        reason = "each a word to learn" if is_word else "most of which stay distinct"
        if digits > 4:
            reason = f"which need {digits} digits to stay distinct"
        yield Choice("data.round_digits", digits, f"up to {s.distinct_numbers:,} numbers in a column, {reason}")
        if given.get("data.round_digits", digits):
            yield Choice("data.power_tokens", True, "numbers of all magnitudes share the words of their digits")


def _number_format(statistics: TextStatistics, given: Mapping[str, Any], is_synthetic: bool) -> Iterator[Choice]:
    """Few digits that represent the targets exactly, else at least 3 that keep them distinct."""
    if given.keys() & {"model.number_format", "model.number_digits", "model.number_exponent"}:
        return
    targets = statistics.targets
    # Labels of synthetic rows are averages, which need not be represented exactly.
    digits, exponent, is_exact = shortest_format(targets, most_exact=0 if is_synthetic else 15)
    counts = " and ".join(f"{len(np.unique(column)):,}" for column in targets.T)
    yield Choice("model.number_digits", digits, f"{counts} distinct targets{', exactly' if is_exact else ''}")
    yield Choice("model.number_exponent", exponent, f"targets from {targets.min():.4g} to {targets.max():.4g}")


def shortest_format(targets: np.ndarray, most_exact: int = 15) -> tuple[int, int, bool]:
    """Digits and exponent digits of the format "ieee" for targets (N, K), and whether they are represented exactly.

    Args:
        targets: the targets of the training rows.
        most_exact: largest number of digits of an exact representation; 0 for none.
    """
    columns = []
    for values in map(np.unique, targets.T):
        columns.append(values[evenly_spaced(len(values), QUANTILES)])
    for exponent in (1, 2, 3):
        exact = next(
            (n for n in range(1, most_exact + 1) if all(_is_exact(column, n, exponent) for column in columns)), 16
        )
        distinct = next((n for n in range(3, 16) if all(_is_distinct(column, n, exponent) for column in columns)), 16)
        if exact <= min(distinct + 1, 15):
            return exact, exponent, True
        if distinct < 16:
            return distinct, exponent, False
    return 15, 3, False


def _is_exact(column: np.ndarray, digits: int, exponent: int) -> bool:
    decoded = number_tokenizer("ieee", digits, exponent).rounded(column)
    return np.allclose(decoded, column, rtol=1e-6, atol=0) and len(np.unique(decoded)) == len(column)


def _is_distinct(column: np.ndarray, digits: int, exponent: int) -> bool:
    decoded = number_tokenizer("ieee", digits, exponent).rounded(column)
    return np.allclose(decoded, column, rtol=0.1, atol=0) and len(np.unique(decoded)) >= ENOUGH * len(column)


def _schedule(statistics: TextStatistics, kind: Kind, settings: Mapping[str, Any]) -> Iterator[Choice]:
    """Steps, warm-up and validations; the number of steps fits into a few minutes of one core."""
    s, batch = statistics, max(settings["data.batch_size"], 1)
    if (epochs := settings.get("trainer.max_epochs")) and epochs > 0:
        rows = s.n_rows * (1 + (settings.get("data.augment_copies") or 0)) + (settings.get("data.synthetic_rows") or 0)
        steps = epochs * math.ceil(rows / batch)
        yield Choice("model.warmup_steps", max(1, steps // 20), f"5 % of {steps:,} steps")
        return
    has_encoder = bool(settings.get("model.encoder"))
    steps, reason = encoder_steps(s, settings) if has_encoder else _steps(s, kind, settings)
    yield Choice("trainer.max_steps", steps, reason)
    steps = settings.get("trainer.max_steps", steps)
    if steps > 0:
        yield Choice("model.warmup_steps", max(1, steps // 20), f"5 % of {steps:,} steps")
    # The interval counts steps of the run, unless the command says how it counts.
    interval, unit = "trainer.val_check_interval", "trainer.check_val_every_n_epoch"
    if isinstance(settings.get(interval), int) and settings[interval] > 1 and unit not in settings:
        yield Choice(unit, None, "the interval counts steps of the run")
    elif steps > 0 and not settings.keys() & {interval, unit}:
        # The weights after the last step follow the ensemble best; a few validation rows could not tell.
        n, reason = (1, "after the last step") if settings.get("data.synthetic_rows") else (N_VALIDATIONS, "")
        yield Choice(interval, max(1, math.ceil(steps / n)), reason or f"{n} in all")
        yield Choice(unit, None, "the interval counts steps of the run")


def _steps(statistics: TextStatistics, kind: Kind, settings: Mapping[str, Any]) -> tuple[int, str]:
    s = statistics
    needed = {"numbers": min(3000, 1000 + s.n_rows), "digits": 2000, "language": min(3000, 600 + s.n_rows // 5)}[kind]
    if settings.get("data.synthetic_rows"):
        needed = min(3000, (1000 if kind == "language" else 800) + 2 * s.n_rows)
        if _is_pretrained(kind, True, settings):
            needed = min(3000, 400 + s.n_rows // 2)
    # Tokens of a text, and operations of a step: 6 for each weight and token.
    tokens = {"words": s.words + s.numbers, "bpe": s.characters / 4 + s.numbers}.get(
        str(settings["data.tokenizer"]), s.characters
    )
    layers = settings["model.n_encoder_layers"] + settings["model.n_decoder_layers"]
    weights = layers * 12 * settings["model.dim"] ** 2
    # The model and the data refuse sizes below 1.
    operations = WIDE_OPERATIONS if settings["model.dim"] >= WIDE else OPERATIONS
    affordable = SECONDS * operations / max(6 * weights * tokens * settings["data.batch_size"], 1)
    if needed <= affordable:
        return rounded_down(needed), f"{s.n_rows:,} training rows"
    return rounded_down(max(affordable, LEAST_STEPS)), f"a few minutes on two cores, texts of about {tokens:.0f} tokens"


def _augmentation(statistics: TextStatistics, kind: Kind, settings: Mapping[str, Any]) -> Iterator[Choice]:
    """Changed copies of training rows, as many as the run can read."""
    s = statistics
    if kind == "digits" or settings.get("data.augment_copies") == 0:
        return
    synthetic = settings.get("data.synthetic_rows") or 0
    if synthetic and (kind == "language" or s.n_rows < MANY_ROWS):
        return
    changes = list(_changes(s, kind, settings))
    # A setting that is given replaces a change, also to turn it off.
    given = {option: settings[option] for name in AUGMENTATIONS if (option := f"data.{name}") in settings}
    if not any({**{change.option: change.value for change in changes}, **given}.values()):
        return
    # As many copies as a run reads, within bounds.
    reads = max(settings.get("trainer.max_steps", 0) * settings["data.batch_size"] / s.n_rows, 2)
    most = 4 if kind == "language" else min(100, max(1, (synthetic or 400_000) // s.n_rows))
    yield Choice("data.augment_copies", min(math.ceil(reads) - 1, most), f"{reads:.0f} epochs")
    yield from changes


def _changes(statistics: TextStatistics, kind: Kind, settings: Mapping[str, Any]) -> Iterator[Choice]:
    """The differences between the copies of a row."""
    s = statistics
    if kind == "language":
        yield Choice("data.synonyms", "english", f"{s.rare_share:.0%} of the words that distinguish texts are rare")
    elif s.numbers and s.spread and not settings.get("data.features"):
        jitter = float(f"{min(0.1, max(0.01, 0.3 * s.spread)):.1g}")
        yield Choice("data.jitter", jitter, f"numbers deviate by {100 * s.spread:.2g} % of their magnitude")
    # Targets of one or two digits are ratings, classes or counts.
    if (settings.get("model.number_digits") or 3) >= 3:
        yield Choice("data.target_jitter", 0.05 if kind == "language" else 0.02, "so that targets are not memorised")


def _optimizer(kind: Kind, is_synthetic: bool) -> Iterator[Choice]:
    if kind == "digits":
        reason = "exact functions of digits"
        yield Choice("model.optimizer", "adamw", reason)
        yield Choice("model.lr", 2e-3, reason)
        yield Choice("model.weight_decay", 0.3, reason)
    else:
        reason = "few steps"
        yield Choice("model.optimizer", "muon", reason)
        yield Choice("model.muon_lr", 0.01, reason)
        # Of the embeddings: a rare word is in few steps, and must move by about its initial length.
        yield Choice("model.lr", 1e-2 if is_synthetic else 2e-3, "rare words" if is_synthetic else reason)
    yield Choice("model.beta2", 0.98, "a step's gradient is noisy")
    yield Choice("model.min_lr_ratio", 0.02, END)


def _batch_size(statistics: TextStatistics) -> int:
    """Rows of a step: fewer of long texts, so that a few minutes have enough steps."""
    return next((size for size, longest in ((64, 400), (32, 1000), (16, 4000)) if statistics.characters < longest), 8)
