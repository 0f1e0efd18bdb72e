"""The demo's result of a run: the model's metric, that of a baseline on the same data, and why it is below, if it is.

`RESULT_ROWS` maps the name of a base class to a function of the module, the data module, the logged metrics and the
number of optimizer steps.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoo.baselines import NGram, bag_of_words

Row = dict[str, str]


def language_model_row(model: Any, data: Any, metrics: Mapping[str, Any], steps: int) -> Row:
    """Validation loss, and those of two n-gram models on the same tokens."""
    train, val = data.tokens("train"), data.tokens("val")
    unigram, trigram = (NGram(train, data.vocab_size, order).nll(val) for order in (1, 3))
    loss = metrics["val_loss"].item()
    row = {
        "metric": f"val nats/token {loss:.3f}",
        "baseline": f"unigram {unigram:.3f}, Kneser-Ney trigram {trigram:.3f}",
    }
    better = [name for name, value in (("unigram", unigram), ("trigram", trigram)) if value < loss]
    if better:
        seen, size = steps * data.batch_size * data.seq_len, len(train)
        row["note"] = (
            f"worse than the {better[-1]}, which counts all {size:,} tokens of the training text; the model has read "
            f"{seen:,} tokens in its {steps:,} steps"
        )
    return row


def regression_row(model: Any, data: Any, metrics: Mapping[str, Any], steps: int) -> Row:
    """Validation error, and that of predicting the training targets' median."""
    error = np.abs(data.targets("val") - np.median(data.targets("train"), axis=0)).mean()
    mae = metrics["val_mae"].item()
    row = {
        "metric": f"val MAE {mae:.4g}, Spearman {metrics['val_spearman'].item():.3f}",
        "baseline": f"median's MAE {error:.4g}",
    }
    return row if mae < error else row | {"note": too_few_steps("no better than predicting the median", steps)}


def in_context_row(model: Any, data: Any, metrics: Mapping[str, Any], steps: int) -> Row:
    """Squared distances per dimension to the optimal estimators: ridge on new tasks, dMMSE on pretraining tasks."""
    distances, of_zero, worse, evaluation = [], [], [], data.evaluation("val")
    for tasks, estimator, name in (("true", "ridge", "ridge on new tasks"), ("pretrain", "dmmse", "dMMSE on its pool")):
        if (metric := f"val_{tasks}_to_{estimator}") in metrics:
            distance = metrics[metric].item() / data.D
            zero = (getattr(evaluation, tasks).answers[estimator].square().mean() / data.D).item()
            distances.append(f"{distance:.3f} from {name}")
            of_zero.append(f"{zero:.3f}")
            worse += [name] if distance >= zero else []
    row = {"metric": f"M = {data.M}: {', '.join(distances)}", "baseline": f"predicting 0: {', '.join(of_zero)}"}
    if worse == ["ridge on new tasks"] and str(data.M) != "inf":
        row["note"] = (
            f"worse than predicting 0 on new tasks, as expected: it was trained on {data.M} tasks only and answers as "
            "if a new task were one of them; with M = inf every training task is new"
        )
    elif worse:
        row["note"] = too_few_steps("no better than predicting 0", steps)
    return row


def classifier_row(model: Any, data: Any, metrics: Mapping[str, Any], steps: int) -> Row:
    """Validation accuracy, and those of the most frequent class and of logistic regression on a bag of words."""
    train, val = ((data.texts(split), data.targets(split)[:, 0].astype(int)) for split in ("train", "val"))
    bag, _ = bag_of_words("logistic regression", *train, val)
    most_frequent, words = np.mean(val[1] == np.bincount(train[1]).argmax()), bag.score(*val)
    accuracy = metrics["val_accuracy"].item()
    row = {
        "metric": f"val accuracy {accuracy:.3f}",
        "baseline": f"most frequent class {most_frequent:.3f}, words and pairs of words {words:.3f}",
    }
    worse = [name for name, score in (("the most frequent class", most_frequent), ("words", words)) if accuracy < score]
    return row | {"note": too_few_steps(f"worse than {worse[0]}", steps)} if worse else row


def too_few_steps(result: str, steps: int) -> str:
    """The note on a result that longer training may improve."""
    return f"{result}: it was trained for {steps:,} steps only; raise --trainer.max_steps to train longer"


RESULT_ROWS: dict[str, Callable[[Any, Any, Mapping[str, Any], int], Row]] = {
    "LanguageModel": language_model_row,
    "LlamaClassifier": classifier_row,
    "Regressor": regression_row,
    "ICRTransformer": in_context_row,
}


def result_row(model: Any, data: Any, metrics: Mapping[str, Any], steps: int) -> Row:
    """The row of the first class among the module's class and its bases that `RESULT_ROWS` names.

    A model without one shows its validation loss. The row has a "note" where the result is below a baseline.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in RESULT_ROWS:
            return RESULT_ROWS[cls.__name__](model, data, metrics, steps)
    return {"metric": f"val_loss {metrics['val_loss'].item():.4g}" if "val_loss" in metrics else "", "baseline": ""}
