"""The demo's result of a run: the model's metric, and that of a baseline on the same data.

`RESULT_ROWS` maps the name of a base class to a function of the module, the data module and the logged metrics.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoo.baselines import NGram, bag_of_words

Row = dict[str, str]


def language_model_row(model: Any, data: Any, metrics: Mapping[str, Any]) -> Row:
    """Validation loss, and those of two n-gram models on the same tokens."""
    train, val = data.tokens("train"), data.tokens("val")
    unigram, trigram = (NGram(train, data.vocab_size, order).nll(val) for order in (1, 3))
    return {
        "metric": f"val nats/token {metrics['val_loss'].item():.3f}",
        "baseline": f"unigram {unigram:.3f}, Kneser-Ney trigram {trigram:.3f}",
    }


def regression_row(model: Any, data: Any, metrics: Mapping[str, Any]) -> Row:
    """Validation error, and that of predicting the training targets' median."""
    error = np.abs(data.targets("val") - np.median(data.targets("train"), axis=0)).mean()
    return {
        "metric": f"val MAE {metrics['val_mae'].item():.4g}, Spearman {metrics['val_spearman'].item():.3f}",
        "baseline": f"median's MAE {error:.4g}",
    }


def in_context_row(model: Any, data: Any, metrics: Mapping[str, Any]) -> Row:
    """Squared distances per dimension to the optimal estimators: ridge on new tasks, dMMSE on pretraining tasks."""
    distances, of_zero, evaluation = [], [], data.evaluation("val")
    for tasks, estimator, name in (("true", "ridge", "ridge on new tasks"), ("pretrain", "dmmse", "dMMSE on its pool")):
        if (metric := f"val_{tasks}_to_{estimator}") in metrics:
            distances.append(f"{metrics[metric].item() / data.D:.3f} from {name}")
            of_zero.append(f"{getattr(evaluation, tasks).answers[estimator].square().mean() / data.D:.3f}")
    return {"metric": f"M = {data.M}: {', '.join(distances)}", "baseline": f"predicting 0: {', '.join(of_zero)}"}


def classifier_row(model: Any, data: Any, metrics: Mapping[str, Any]) -> Row:
    """Validation accuracy, and those of the most frequent class and of logistic regression on a bag of words."""
    train, val = ((data.texts(split), data.targets(split)[:, 0].astype(int)) for split in ("train", "val"))
    bag, _ = bag_of_words("logistic regression", *train, val)
    most_frequent = np.mean(val[1] == np.bincount(train[1]).argmax())
    return {
        "metric": f"val accuracy {metrics['val_accuracy'].item():.3f}",
        "baseline": f"most frequent class {most_frequent:.3f}, words and pairs of words {bag.score(*val):.3f}",
    }


RESULT_ROWS: dict[str, Callable[[Any, Any, Mapping[str, Any]], Row]] = {
    "LanguageModel": language_model_row,
    "LlamaClassifier": classifier_row,
    "Regressor": regression_row,
    "ICRTransformer": in_context_row,
}


def result_row(model: Any, data: Any, metrics: Mapping[str, Any]) -> Row:
    """The row of the first class among the module's class and its bases that `RESULT_ROWS` names.

    A model without one shows its validation loss.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in RESULT_ROWS:
            return RESULT_ROWS[cls.__name__](model, data, metrics)
    return {"metric": f"val_loss {metrics['val_loss'].item():.4g}" if "val_loss" in metrics else "", "baseline": ""}
