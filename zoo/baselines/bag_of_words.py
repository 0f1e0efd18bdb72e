"""Bags of words as a classifier: the best scikit-learn pipeline of a small grid."""

from collections.abc import Sequence
from typing import Any, Literal

from zoo.baselines.ngram import Ids

# Kinds of `BowFeatures`, here because bow_features.py imports scikit-learn.
BowKind = Literal["tfidf", "naive_bayes", "chars", "words_and_chars"]
WORD_PATTERN = r"(?u)\b\w+\b|[!?]"  # words of any length, exclamation marks and question marks


def bag_of_words(
    kind: Literal["naive Bayes", "logistic regression"],
    texts: Sequence[str],
    classes: Ids,
    held_out: tuple[Sequence[str], Ids],
) -> tuple[Any, str]:
    """Fit pipelines on words and pairs of words, and return the one with the best held-out accuracy.

    The grid: tokens are words, words with "!" and "?", or everything between spaces; features are presence, TF-IDF or
    sublinear TF-IDF; and several values of the classifier's smoothing (naive Bayes) or penalty (logistic regression).

    Args:
        kind: the classifier.
        texts: N training texts.
        classes: their classes, (N,).
        held_out: texts and classes that choose the pipeline; its accuracy on them is therefore optimistic.

    Returns:
        The fitted pipeline, and its settings in words.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    # The grid of features: what counts as a token, and the value of a token in a text.
    tokens: dict[str, Any] = {"words": {"ngram_range": (1, 2)}}
    tokens["words and !?"] = tokens["words"] | {"token_pattern": WORD_PATTERN}
    tokens["all between spaces"] = tokens["words"] | {"token_pattern": r"\S+"}
    # Every kind of token with every kind of feature, except presence for logistic regression.
    vectorizers = {
        f"{token}, {name}": vectorizer(**options, **tokens[token])
        for token in tokens
        for name, vectorizer, options in (
            ("presence", CountVectorizer, {"binary": True}),
            ("TF-IDF", TfidfVectorizer, {}),
            ("sublinear TF-IDF", TfidfVectorizer, {"sublinear_tf": True}),
        )
        if (kind, name) != ("logistic regression", "presence")
    }
    # Fit every combination to the training texts and keep the one with the best accuracy on the held-out texts.
    best = (-1.0, None, "")
    for name, vectorizer in vectorizers.items():
        features = vectorizer.fit_transform(texts)
        # Values of the smoothing or of the inverse penalty.
        if kind == "naive Bayes":
            models = {f"alpha {a}": MultinomialNB(alpha=a) for a in (0.03, 0.1, 0.3, 1.0)}
        else:
            models = {f"C {c}": LogisticRegression(C=c, max_iter=300) for c in (1, 3, 10, 100)}
        for setting, model in models.items():
            model.fit(features, classes)
            accuracy = model.score(vectorizer.transform(held_out[0]), held_out[1])
            if accuracy > best[0]:
                best = (accuracy, make_pipeline(vectorizer, model), f"{name}, {setting}")
    return best[1:]
