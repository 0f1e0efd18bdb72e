"""Settings of a RegressLM that follow from the checkpoint with its initial weights."""

from collections.abc import Mapping
from typing import Any

from zoo.errors import UserError
from zoo.files.checkpoints import read_checkpoint
from zoo.registry import MODELS
from zoo.training.choices import Choice
from zoo.weights import find_weights

SIZES = ("dim", "n_heads", "n_encoder_heads", "n_encoder_layers", "n_decoder_layers", "hidden_dim", "number_format")


def check_kind(path: str, checkpoint: Mapping[str, Any]) -> None:
    """Raises UserError if a checkpoint of the zoo holds another of its models than a RegressLM."""
    kind = str(checkpoint.get("zoo", {}).get("model", "")).rpartition(".")[2]
    if kind in MODELS and kind != "RegressLM":
        raise UserError(f"--model.weights {path} holds a {kind}, not a RegressLM: give the weights of a RegressLM")


def settings_of_weights(given: Mapping[str, Any]) -> list[Choice]:
    """Sizes, format of numbers and tokens of texts of the checkpoint that `model.weights` names; none without one.

    Args:
        given: the settings that are already decided, by option.

    Raises:
        UserError: the weights cannot be read, or belong to another model.
    """
    if not (path := given.get("model.weights")):
        return []
    checkpoint = read_checkpoint(find_weights(path))
    check_kind(path, checkpoint)
    stored, reason = checkpoint.get("hyper_parameters", {}), f"as in {path}"
    choices = [Choice(f"model.{name}", stored[name], reason) for name in SIZES if name in stored]
    if stored.get("round_digits") and stored.get("power_tokens"):
        # How many digits the columns need, as years do, is a question of the data.
        choices += [Choice("data.tokenizer", "words", reason), Choice("data.power_tokens", True, reason)]
    return [choice for choice in choices if choice.option not in given]
