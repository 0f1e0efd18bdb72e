"""Default settings of RegressLM with a pretrained encoder: few passes over the rows, no synthetic rows or copies."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zoo.regress_lm.encoders import count_weights
from zoo.training.choices import Choice
from zoo.training.text_statistics import TextStatistics

EPOCHS = {"frozen": 8, "lora": 4, "full": 3}  # by encoder_mode, those of benchmarks/encoder_regression.py
ENCODER_LR = {"lora": 5e-4, "full": 1e-4}
PASSES = {"frozen": 1, "lora": 2, "full": 3}  # forward passes that take as long as the encoder's part of a step
LEAST_STEPS = {"frozen": 400, "lora": 100, "full": 100}  # of small data
MOST_STEPS = 4000
SECONDS = 300  # that the encoder's operations may take on one core of OPERATIONS per second
OPERATIONS = 5e10
CHARACTERS = 4  # of a token


def encoder_mode(given: Mapping[str, Any]) -> str:
    """How the encoder is trained; the model refuses other modes than frozen, lora and full."""
    mode = given.get("model.encoder_mode", "frozen")
    return mode if mode in EPOCHS else "frozen"


def encoder_choices(
    statistics: TextStatistics, given: Mapping[str, Any], changes: Sequence[str], is_rounded: bool
) -> Iterator[Choice]:
    """Settings of the data, the decoder and the optimizer of a model with a pretrained encoder.

    The sizes and the regularisation are those of benchmarks/encoder_regression.py.

    Args:
        statistics: those of the training rows.
        given: the settings that are already decided, by option.
        changes: options of the data that change copies of rows; one of them that is given needs a copy.
        is_rounded: whether the texts are rows of numbers, which are rounded.
    """
    cost = "the encoder would read each of them"
    yield Choice("data.synthetic_rows", 0, cost)
    yield Choice("data.augment_copies", int(any(given.get(name) for name in changes)), cost)
    if is_rounded and statistics.digits < 15:
        digits = max(statistics.digits, 3)
        yield Choice("data.round_digits", digits, "most numbers of a column stay distinct, in few tokens")
    few = "a small decoder reads the encoder's states"
    yield Choice("model.dim", 128, few)
    width = given.get("model.dim", 128)
    heads = next((n for n in range(width // 32, 1, -1) if width % (2 * n) == 0), 1)
    yield Choice("model.n_heads", heads, f"of {width // heads} dimensions each")
    yield Choice("model.n_decoder_layers", 1, few)
    yield Choice("model.dropout", 0.3, few)
    yield Choice("model.residual_dropout", 0.3, few)
    mode = encoder_mode(given)
    if mode == "lora":
        yield Choice("model.lora_rank", 8, "updates of the encoder's matrices")
    yield Choice("model.optimizer", "adamw", "a small decoder" if mode == "frozen" else "muon is for new matrices only")
    yield Choice("model.lr", 1e-3, "a small decoder")
    if mode in ENCODER_LR:
        yield Choice("model.encoder_lr", ENCODER_LR[mode], f"encoder_mode {mode}")
    yield Choice("model.weight_decay", 0.1, "a small decoder")


def encoder_steps(statistics: TextStatistics, settings: Mapping[str, Any]) -> tuple[int, str]:
    """Number of steps, and the reason: some epochs, as far as the encoder reads them in a few minutes.

    Args:
        statistics: those of the training rows.
        settings: all settings that are decided or chosen so far, by option, with the batch size.
    """
    mode, batch = encoder_mode(settings), max(settings["data.batch_size"], 1)
    n_copies, n_synthetic = (max(settings[f"data.{name}"], 0) for name in ("augment_copies", "synthetic_rows"))
    n_rows = statistics.n_rows * (1 + n_copies) + n_synthetic
    per_epoch = math.ceil(n_rows / batch)
    epochs = EPOCHS[mode]
    steps = min(max(epochs * per_epoch, LEAST_STEPS[mode]), MOST_STEPS)
    reason = f"{steps / per_epoch:.2g} epochs of {n_rows:,} rows, encoder_mode {mode}"
    # The states of a frozen encoder are stored, and computed in the first epoch only.
    read = min(steps, per_epoch) if mode == "frozen" else steps
    weights = count_weights(settings["model.encoder"])
    operations = PASSES[mode] * 2 * weights * statistics.characters / CHARACTERS * batch
    affordable = max(1, int(SECONDS * OPERATIONS / max(operations, 1)))
    if read > affordable:
        return affordable, f"a few minutes on two cores, an encoder of {weights / 1e6:.2g} million weights, {mode}"
    return steps, reason
