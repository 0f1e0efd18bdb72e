"""Scores of simple models on a run's data, shown by loggers, tables and the demo next to those of the network."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.baselines.ngram import NGram
from zoo.console.argument_names import print_notice
from zoo.training.regression_metrics import target_labels

MOST_TOKENS = 2_000_000  # of a training text from which n-grams are counted
NOTICED_TOKENS = 500_000  # of a training text, above which counting is announced
MOST_TEXTS = 10_000  # training texts of the bag of words


def baselines_of(trainer: Any, model: Any, data: Any, split: str = "val") -> dict[str, float]:
    """Scores on the data that a run evaluates, `<metric>_<baseline>` -> score; empty for unknown models and data.

    Language models: `loss` and `ppl` of the unigram model and, up to 2M training tokens, of the Kneser-Ney trigram, on
    the tokens that a validation scores. Regression: `mae` of the training targets' median; with several targets also
    `relative_mae`, and `mae/<target>` and `relative_mae/<target>` of each. Classifiers: `accuracy` of
    the most frequent class, and of naive Bayes on words and pairs of words, fitted to at most 10,000 texts. ICR:
    `pretrain_mse` and `true_mse` of the exact estimators and of the prediction 0, and the distances of the latter from
    ridge and dMMSE. Except for language models they are of all rows of the split, and none are given where
    `limit_val_batches` or `limit_test_batches` lets the trainer score some of the rows only.

    Args:
        trainer: the Trainer.
        model: the LightningModule.
        data: its data module.
        split: "val" or "test", on which the baselines are scored. All are fitted to the training split of `data`.

    Raises:
        UserError: the data has no training split.
    """
    limit = getattr(trainer, f"limit_{split}_batches", 1.0)
    is_limited = isinstance(limit, int) or limit != 1.0  # 1 is one batch, and 1.0 all of them
    for cls in type(model).__mro__:
        function, needed = FUNCTIONS.get(cls.__name__, (None, ()))
        if is_limited and function is not _language_model:
            continue
        if function is not None and all(callable(getattr(data, name, None)) for name in needed):
            return {
                name: float(score) for name, score in function(trainer, data, split).items() if math.isfinite(score)
            }
    return {}


def _language_model(trainer: Any, data: Any, split: str) -> Mapping[str, float]:
    train, val = data.tokens("train"), data.tokens(split)
    n_batches = sum(trainer.num_val_batches if split == "val" else trainer.num_test_batches) * trainer.world_size
    # The targets of the first window, and those that each further window adds.
    n_scored = data.seq_len + (n_batches * data.batch_size - 1) * getattr(data, "eval_stride", data.seq_len)
    val = val[: n_scored + 1 if n_batches else 0]
    orders = {"unigram": 1, "trigram": 3} if len(train) <= MOST_TOKENS else {"unigram": 1}
    if len(orders) > 1 and len(train) > NOTICED_TOKENS and trainer.is_global_zero:
        print_notice(f"counts n-grams in {len(train):,} training tokens for the baselines, which can take minutes")
    scores: dict[str, float] = {}
    for name, order in orders.items():
        if len(val) > 1 and len(train) >= order and order * math.log2(data.vocab_size) <= 62:
            nll = NGram(train[:MOST_TOKENS], data.vocab_size, order).nll(val)
            scores |= {f"loss_{name}": nll, f"ppl_{name}": math.exp(nll)}
    return scores


def _training_targets(data: Any) -> NDArray[np.float64]:
    """(N, K) targets of the training rows as they are given: without copies, and without synthetic rows, which take
    minutes to make."""
    return data.reader.rows("train").targets if hasattr(data, "reader") else data.targets("train")


def _regression(trainer: Any, data: Any, split: str) -> Mapping[str, float]:
    train, val = _training_targets(data), data.targets(split)
    if not len(train) or not len(val):
        return {}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # such an error is not shown
        errors = np.abs(val - np.median(train, axis=0))  # (N, K)
        scores = {"mae_median": float(errors.mean())}
        if (n_targets := errors.shape[1]) > 1:
            of_own_median = np.abs(val - np.median(val, axis=0)).mean(0)
            relative = np.where(np.ptp(val, axis=0) > 0, errors.mean(0) / of_own_median, np.nan)  # (K,)
            varies = ~np.isnan(relative)
            scores["relative_mae_median"] = float(relative[varies].mean()) if varies.any() else math.nan
            for name, values in (("mae", errors.mean(0)), ("relative_mae", relative)):
                labels = target_labels(getattr(data, "target_names", None), n_targets)
                scores |= {f"{name}/{label}_median": float(v) for label, v in zip(labels, values, strict=True)}
        return scores


def _classification(trainer: Any, data: Any, split: str) -> Mapping[str, float]:
    texts = data.reader.rows("train").texts if hasattr(data, "reader") else data.texts("train")
    classes = _training_targets(data)[:, 0].astype(int)
    val_texts, val_classes = data.texts(split), data.targets(split)[:, 0].astype(int)
    if not texts or not val_texts:
        return {}
    most_frequent = float((val_classes == np.bincount(classes).argmax()).mean())
    chosen = np.linspace(0, len(texts) - 1, min(len(texts), MOST_TEXTS)).astype(int)
    bag = naive_bayes_accuracy([texts[i] for i in chosen], classes[chosen], val_texts, val_classes)
    return {"accuracy_most_frequent": most_frequent, "accuracy_bag_of_words": bag}


def naive_bayes_accuracy(
    texts: list[str], classes: NDArray[np.int_], val_texts: list[str], val_classes: NDArray[np.int_]
) -> float:
    """Accuracy of naive Bayes on the words and pairs of words that a text contains.

    Args:
        texts: N training texts.
        classes: their classes, (N,).
        val_texts: M texts to classify.
        val_classes: their classes, (M,).
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    # One-character tokens count too, so that no vocabulary of texts with a letter or digit is empty.
    words = CountVectorizer(binary=True, ngram_range=(1, 2), token_pattern=r"\S+")
    if not any(text.split() for text in texts):
        return math.nan
    model = MultinomialNB().fit(words.fit_transform(texts), classes)
    return float(model.score(words.transform(val_texts), val_classes))


def _in_context(trainer: Any, data: Any, split: str) -> Mapping[str, float]:
    scores: dict[str, float] = {}
    for kind, evaluation in data.evaluation(split)._asdict().items():
        errors = {name: error.mean() for name, error in evaluation.reference_errors().items()}
        errors["zero"] = evaluation.prompts.y.square().mean()
        # Least squares is unbounded where there are as many examples as dimensions.
        scores |= {f"{kind}_mse_{name}": error.item() for name, error in errors.items() if name != "least_squares"}
        for name in ("ridge", "dmmse"):
            scores[f"{kind}_to_{name}_zero"] = evaluation.answers[name].square().mean().item()
    return scores


FUNCTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {  # base class -> function, and the data's methods that it calls
    "LanguageModel": (_language_model, ("tokens",)),
    "Regressor": (_regression, ("targets",)),
    "TextClassifier": (_classification, ("texts", "targets")),
    "ICRTransformer": (_in_context, ("evaluation",)),
}
