"""The demo's result of a run: the model's metric, its baselines on the same data, and why it is below, if it is.

`RESULT_ROWS` maps the name of a base class to a function of the data module, the logged metrics, the baselines (those
of `zoo.baselines.of_data`) and the number of optimizer steps.
"""

from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, str]
Numbers = Mapping[str, float]


def language_model_row(data: Any, metrics: Numbers, baselines: Numbers, steps: int) -> Row:
    """Validation loss, and those of two n-gram models on the same tokens."""
    loss = metrics["val_loss"]
    scores = {name: baselines[f"loss_{name}"] for name in ("unigram", "trigram") if f"loss_{name}" in baselines}
    titles = {"unigram": "unigram", "trigram": "Kneser-Ney trigram"}
    row = {
        "metric": f"val nats/token {loss:.3f}",
        "baseline": ", ".join(f"{titles[name]} {score:.3f}" for name, score in scores.items()),
    }
    if better := [name for name, score in scores.items() if score < loss]:
        seen, size = steps * data.batch_size * data.seq_len, len(data.tokens("train"))
        row["note"] = (
            f"worse than the {better[-1]}, which counts all {size:,} tokens of the training text; the model has read "
            f"{seen:,} tokens in its {steps:,} steps"
        )
    return row


def regression_row(data: Any, metrics: Numbers, baselines: Numbers, steps: int) -> Row:
    """Validation error, and that of predicting the training targets' median."""
    mae, error = metrics["val_mae"], baselines.get("mae_median")
    row = {"metric": f"val MAE {mae:.4g}, Spearman {metrics['val_spearman']:.3f}", "baseline": ""}
    if error is None:
        return row
    row["baseline"] = f"median's MAE {error:.4g}"
    return row if mae < error else row | {"note": too_few_steps("no better than predicting the median", steps)}


def in_context_row(data: Any, metrics: Numbers, baselines: Numbers, steps: int) -> Row:
    """Squared distances per dimension to the optimal estimators: ridge on new tasks, dMMSE on pretraining tasks."""
    distances, of_zero, worse = [], [], []
    for metric, name in (("true_to_ridge", "ridge on new tasks"), ("pretrain_to_dmmse", "dMMSE on its pool")):
        if f"val_{metric}" in metrics and f"{metric}_zero" in baselines:
            distance, zero = metrics[f"val_{metric}"] / data.D, baselines[f"{metric}_zero"] / data.D
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


def classifier_row(data: Any, metrics: Numbers, baselines: Numbers, steps: int) -> Row:
    """Validation accuracy, and those of the most frequent class and of naive Bayes on words and pairs of words."""
    accuracy = metrics["val_accuracy"]
    titles = {"most_frequent": "most frequent class", "bag_of_words": "naive Bayes on words and pairs of words"}
    scores = {title: baselines[f"accuracy_{name}"] for name, title in titles.items() if f"accuracy_{name}" in baselines}
    row = {
        "metric": f"val accuracy {accuracy:.3f}",
        "baseline": ", ".join(f"{title} {score:.3f}" for title, score in scores.items()),
    }
    worse = [title for title, score in scores.items() if accuracy < score]
    return row | {"note": too_few_steps(f"worse than {worse[0]}", steps)} if worse else row


def too_few_steps(result: str, steps: int) -> str:
    """The note on a result that longer training may improve."""
    return f"{result}: it was trained for {steps:,} steps only; raise --trainer.max_steps to train longer"


RESULT_ROWS: dict[str, Callable[[Any, Numbers, Numbers, int], Row]] = {
    "LanguageModel": language_model_row,
    "TextClassifier": classifier_row,
    "Regressor": regression_row,
    "ICRTransformer": in_context_row,
}


def result_row(model: Any, data: Any, metrics: Mapping[str, Any], baselines: Numbers, steps: int) -> Row:
    """The row of the first class among the module's class and its bases that `RESULT_ROWS` names.

    A model without one shows its validation loss. The row has a "note" where the result is below a baseline.

    Args:
        model: the LightningModule.
        data: its data module.
        metrics: what a validation has logged, numbers or tensors ().
        baselines: scores of `zoo.baselines.of_data.baselines_of` on the same data.
        steps: number of optimizer steps.
    """
    numbers = {name: float(value) for name, value in metrics.items()}
    for cls in type(model).__mro__:
        if cls.__name__ in RESULT_ROWS:
            return RESULT_ROWS[cls.__name__](data, numbers, baselines, steps)
    return {"metric": f"val_loss {numbers['val_loss']:.4g}" if "val_loss" in numbers else "", "baseline": ""}
