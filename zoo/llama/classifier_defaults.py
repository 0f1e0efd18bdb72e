"""Default settings of LlamaClassifier from the texts and their classes: rules that need no tuning, with reasons."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.console.argument_names import print_notice
from zoo.training.choices import PREPARATION_SHARE, Choice, choose_width, rounded_down, settings_of
from zoo.training.text_statistics import TextStatistics

if TYPE_CHECKING:
    from zoo.baselines.bow_choice import BowTrial

SECONDS = 150  # that the default number of steps takes on one core of OPERATIONS per second
OPERATIONS = 2e10
N_VALIDATIONS = 10
EPOCHS = 6
STEPS = range(200, 6000)  # of a run, where there is time
LEAST_ROWS = 10  # for a bag of words
SHORT, LONG = 64, 512  # bounds of the number of tokens that are read


def bow_trials(texts: Sequence[str], targets: np.ndarray, n_classes: int, given: Mapping[str, Any]) -> "list[BowTrial]":
    """Cross-validated bags of words for `choose_settings`, of the kind that is given.

    Args:
        texts: N training texts.
        targets: their classes, (N,).
        n_classes: number of classes C.
        given: the settings that are already decided, by option; "budget" is the time that is left in seconds, of which
            about a quarter is for the bag of words: an eighth for the choice, and as much for the fit.
    """
    kind = given.get("model.bow_features")
    if ("model.bow_features" in given and kind is None) or len(texts) < LEAST_ROWS:
        return []
    from zoo.baselines.bow_choice import MOST_ROWS, compare_bow  # imports scikit-learn, which takes a second

    n_rows = min(len(texts), MOST_ROWS)
    print_notice(f"comparing bags of words on {n_rows:,} training rows")
    seconds = given.get("budget", math.inf) * PREPARATION_SHARE / 2
    return compare_bow(texts, targets, n_classes, [kind] if kind else None, seconds=seconds)


def choose_settings(statistics: TextStatistics, trials: "Sequence[BowTrial]", given: Mapping[str, Any]) -> list[Choice]:
    """Settings of model, data and trainer for texts with these statistics.

    Args:
        statistics: those of the training rows.
        trials: cross-validated bags of words, the best one first; empty where the command decides.
        given: the settings that are already decided, by option ("data.batch_size"); other choices follow from them.

    Returns:
        Choices for options that are not in `given`.
    """
    choices = [*_bag(trials), *_tokens(statistics, given)]
    if not (given.get("model.weights") or given.get("model.base")):
        choices += _sizes(statistics, settings_of(choices) | dict(given))
    choices += _regularisation(statistics)
    settings = settings_of(choices) | dict(given)
    choices += _schedule(statistics, settings)
    return [choice for choice in choices if choice.option not in given]


# ---- rules


def _bag(trials: "Sequence[BowTrial]") -> Iterator[Choice]:
    """The bag of words with the smallest held-out loss."""
    if not trials:
        return
    best = trials[0]
    others = [trial for trial in trials if trial.kind != best.kind]
    reason = f"held-out accuracy {best.accuracy:.3f}, loss {best.loss:.3f}"
    if others:
        reason += f"; {others[0].kind} {others[0].accuracy:.3f}, {others[0].loss:.3f}"
    yield Choice("model.bow_features", best.kind, reason)
    if best.kind != "naive_bayes":
        tried = ", ".join(f"{trial.C:g}" for trial in sorted(trials, key=lambda t: t.C) if trial.kind == best.kind)
        yield Choice("model.bow_C", best.C, f"the smallest held-out loss of {tried}")
    yield Choice("model.bow_rows", "all", "the rows for validation have held-out logits, as those for training")
    yield Choice("model.fit_scales", True, "the network fits its training rows more closely than others")


def _tokens(statistics: TextStatistics, given: Mapping[str, Any]) -> Iterator[Choice]:
    """The tokenizer, and the longest text that is read."""
    s = statistics
    tokenizer = given.get("data.tokenizer", "bpe")
    if not given.get("model.weights"):
        size = 1000 if s.n_rows < 1000 else 2000 if s.n_rows < 20_000 else 8000
        yield Choice("data.tokenizer", "bpe", f"{s.rare_share:.0%} of the words that distinguish texts are rare")
        if tokenizer == "bpe":
            yield Choice("data.bpe_vocab_size", size, f"{s.n_rows:,} training rows")
    # Three times the mean length: the network reads this many tokens of a longer text, the bag of words reads all.
    length = min(LONG, max(SHORT, 32 * math.ceil(3 * _mean_tokens(s, tokenizer) / 32)))
    if context := given.get("model.max_seq_len"):
        length = min(length, context)
    yield Choice("data.max_input_len", length, f"texts of {s.characters:.0f} characters on average")
    yield Choice("data.long_rows", "truncate", "the end of a longer text is left out")


def _sizes(statistics: TextStatistics, settings: Mapping[str, Any]) -> Iterator[Choice]:
    yield from choose_width(statistics.n_rows, settings)
    yield Choice("model.n_layers", 2, f"{statistics.n_rows:,} training rows")
    yield Choice("model.max_seq_len", settings["data.max_input_len"], "the longest text")


def _regularisation(statistics: TextStatistics) -> Iterator[Choice]:
    few = f"{statistics.n_rows:,} training rows"
    yield Choice("model.dropout", 0.3 if statistics.n_rows < 20_000 else 0.1, few)
    yield Choice("model.head_dropout", 0.5 if statistics.n_rows < 20_000 else 0.2, few)
    yield Choice("model.pooling", "mean", "every token of a text counts")


def _schedule(statistics: TextStatistics, settings: Mapping[str, Any]) -> Iterator[Choice]:
    """Batch, steps, warm-up and validations; the number of steps fits into a few minutes of one core."""
    s = statistics
    batch = min(16 if s.n_rows < 1000 else 32 if s.n_rows < 20_000 else 64, s.n_rows)
    yield Choice("data.batch_size", batch, f"{s.n_rows:,} training rows")
    batch = max(settings.get("data.batch_size", batch), 1)
    yield Choice("model.lr", 2e-3, "few steps")
    yield Choice("model.min_lr_ratio", 0.02, "the schedule ends with the run")
    if (epochs := settings.get("trainer.max_epochs")) and epochs > 0:
        steps = epochs * max(1, s.n_rows // batch)
        yield Choice("model.warmup_steps", max(1, steps // 20), f"5 % of {steps:,} steps")
        return
    steps, reason = _steps(s, settings, batch)
    yield Choice("trainer.max_steps", steps, reason)
    steps = settings.get("trainer.max_steps", steps)
    if steps > 0:
        yield Choice("model.warmup_steps", max(1, steps // 20), f"5 % of {steps:,} steps")
    # The interval counts steps of the run, unless the command says how it counts.
    if steps > 0 and not settings.keys() & {"trainer.val_check_interval", "trainer.check_val_every_n_epoch"}:
        yield Choice("trainer.val_check_interval", max(1, math.ceil(steps / N_VALIDATIONS)), f"{N_VALIDATIONS} in all")
        yield Choice("trainer.check_val_every_n_epoch", None, "the interval counts steps of the run")


def _steps(statistics: TextStatistics, settings: Mapping[str, Any], batch: int) -> tuple[int, str]:
    s = statistics
    needed = min(max(EPOCHS * s.n_rows / batch, STEPS.start), STEPS.stop)
    # Operations of a step: 6 for each weight and token. The model refuses sizes below 1.
    tokens = min(_mean_tokens(s, settings.get("data.tokenizer", "bpe")), settings["data.max_input_len"])
    weights = settings.get("model.n_layers", 2) * 12 * settings.get("model.dim", 64) ** 2
    affordable = SECONDS * OPERATIONS / max(6 * weights * tokens * batch, 1)
    if needed <= affordable:
        return rounded_down(needed), f"{needed * batch / s.n_rows:.0f} epochs of {s.n_rows:,} training rows"
    return rounded_down(max(affordable, 100)), f"a few minutes on two cores, texts of about {tokens:.0f} tokens"


def _mean_tokens(statistics: TextStatistics, tokenizer: Any) -> float:
    s = statistics
    return {"words": s.words, "bytes": s.characters, "characters": s.characters}.get(str(tokenizer), s.characters / 3.5)
