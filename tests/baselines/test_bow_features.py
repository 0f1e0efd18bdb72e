"""BowFeatures against scikit-learn's classifiers, and its held-out logits."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline, make_union

from tests.commands import ROOT
from zoo.baselines import BowFeatures
from zoo.baselines.bag_of_words import WORD_PATTERN
from zoo.baselines.bow_features import FOLDS
from zoo.errors import UserError
from zoo.training.random_streams import derive

TEXTS = [f"a {'fine' if i % 2 else 'dull'} film number {i}" for i in range(40)]
CLASSES = np.array([i % 2 for i in range(40)])
KINDS = ["tfidf", "naive_bayes", "words_and_chars"]


@pytest.mark.parametrize("kind", KINDS)
def test_fitted_logits_and_held_out_logits_predict_the_class(kind):
    bag = BowFeatures(3, kind, C=10.0)
    held_out = bag.fit(TEXTS, CLASSES)
    assert (held_out.argmax(1).numpy() == CLASSES).all()
    logits = bag(["dull , dull", "FINE !", "unseen"])
    assert logits[:2].argmax(1).tolist() == [0, 1]
    assert (logits[:, 2] < logits[:, :2].min(1).values).all()  # the third class has no row
    again = BowFeatures(3, kind, 10.0)
    again.load_state_dict(bag.state_dict())
    assert torch.equal(again(TEXTS), bag(TEXTS))


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_logits_are_computed_without_their_text(kind):
    texts = [f"word{i}" for i in range(40)]
    bag = BowFeatures(2, kind, 1e4)
    held_out = bag.fit(texts, CLASSES)
    assert (bag(texts).argmax(1).numpy() == CLASSES).all()  # each text has a word that no other has
    assert (held_out.argmax(1).numpy() == CLASSES).mean() < 0.7  # unseen in the other folds


@pytest.mark.parametrize("kind", ["tfidf", "chars", "words_and_chars"])
def test_held_out_logits_equal_those_of_a_fit_to_the_other_folds(kind):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice([f"w{i}" for i in range(30)], 4)) for _ in TEXTS]  # many are in one fold only
    bag = BowFeatures(2, kind, C=10.0)
    features = bag.fit_features(texts)
    held_out = bag.cross_fit(features.copy(), CLASSES)
    fold = np.random.default_rng(derive(0, "folds")).permutation(40) % FOLDS
    rows, others = np.flatnonzero(fold == 2), np.flatnonzero(fold != 2)
    # A bag of words with the same weights of features, those of unseen features apart.
    part = BowFeatures(2, kind, C=10.0)
    part.fit_features([texts[i] for i in others])
    part.idf.copy_(torch.where(part.idf > 0, bag.idf, 0))
    weight, bias = part._fit_linear(part._features([texts[i] for i in others]), CLASSES[others])
    expected = part._features([texts[i] for i in rows]) @ weight + bias
    assert np.allclose(held_out[rows], expected, atol=1e-3)


def test_unseen_words_do_not_change_logits():
    bag = BowFeatures(2, "tfidf", 10.0)
    bag.fit(TEXTS, CLASSES)
    assert torch.equal(bag(["dull xyz"]), bag(["dull"]))
    assert torch.equal(bag(["xyz"]), bag.bias[None])
    # A checkpoint from before unseen words had weight 0 gives its logits as before.
    old = BowFeatures(2, "tfidf", 10.0)
    old.load_state_dict(bag.state_dict() | {"idf": torch.where(bag.idf > 0, bag.idf, np.log(41) + 1)})
    ratio = (old(["dull xyz"]) - old.bias) / (bag(["dull"]) - bag.bias)
    idf = bag.idf[bag._vectorizers[0].transform(["dull"]).indices].item()
    assert ratio.flatten().tolist() == pytest.approx(
        [idf / np.hypot(np.hypot(idf, np.log(41) + 1), np.log(41) + 1)] * 2
    )


@pytest.mark.parametrize("kind", KINDS)
def test_fold_without_the_rare_class_predicts_the_other_one(kind):
    bag = BowFeatures(2, kind)
    held_out = bag.fit(TEXTS[:7], np.array([1, 1, 1, 0, 1, 1, 1]))
    assert held_out[3].argmax() == 1  # the only text of class 0
    assert bag(TEXTS[:7]).isfinite().all()


def test_logistic_regression_of_three_classes_equals_scikit_learn():
    classes = np.array([i % 3 for i in range(40)])
    bag = BowFeatures(3, "tfidf", 10.0)
    bag.fit(TEXTS, classes)
    peer = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=WORD_PATTERN))
    model = LogisticRegression(C=10.0, max_iter=300).fit(peer.fit_transform(TEXTS), classes)
    texts = [*TEXTS, "a fine new film", "unseen"]
    expected = model.predict_log_proba(peer.transform(texts))
    assert np.allclose(bag(texts).log_softmax(1), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["chars", "words_and_chars"])
def test_logistic_regression_on_characters_equals_scikit_learn(kind):
    classes = np.array([i % 3 for i in range(40)])
    bag = BowFeatures(3, kind, 10.0)
    bag.fit(TEXTS, classes)

    def weighted(**options):
        counts = HashingVectorizer(n_features=2**18, alternate_sign=False, norm=None, **options)
        return make_pipeline(counts, TfidfTransformer(sublinear_tf=True))

    chars = weighted(analyzer="char_wb", ngram_range=(2, 5))
    words = weighted(ngram_range=(1, 2), token_pattern=WORD_PATTERN)
    peer = make_union(words, chars) if kind == "words_and_chars" else chars
    model = LogisticRegression(C=10.0, max_iter=300).fit(peer.fit_transform(TEXTS), classes)
    expected = model.predict_log_proba(peer.transform(TEXTS))
    assert np.allclose(bag(TEXTS).log_softmax(1), expected, atol=2e-3)


def test_naive_bayes_equals_scikit_learn_at_the_temperature_that_fits_held_out_logits():
    classes = np.where(np.arange(40) % 7 == 0, 1 - CLASSES, CLASSES)  # some labels are noise
    bag = BowFeatures(2, "naive_bayes")
    held_out = bag.fit(TEXTS, classes)
    peer = make_pipeline(CountVectorizer(binary=True, ngram_range=(1, 2), token_pattern=WORD_PATTERN), MultinomialNB())
    expected = torch.from_numpy(peer.fit(TEXTS, classes).predict_log_proba(TEXTS)).diff(dim=1).float()
    scale = bag(TEXTS).diff(dim=1) / expected
    assert 0 < scale[0] < 0.9
    assert torch.allclose(scale, scale[:1].expand_as(scale), rtol=1e-3)
    losses = [F.cross_entropy(factor * held_out, torch.from_numpy(classes)).item() for factor in (0.9, 1, 1.1)]
    assert losses[1] == min(losses)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_logits_of_a_fitted_classifier_equal_those_of_its_fit(kind):
    bag = BowFeatures(2, kind)
    held_out = bag.fit(TEXTS, CLASSES)
    state = {name: buffer.clone() for name, buffer in bag.state_dict().items()}
    assert torch.equal(bag.held_out_logits(TEXTS, CLASSES), held_out)
    assert all(torch.equal(buffer, state[name]) for name, buffer in bag.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_texts_without_words_get_the_frequencies_of_the_classes(kind):
    bag = BowFeatures(2, kind)
    bag.fit([""] * 40, np.arange(40) % 4 // 3)
    # Naive Bayes is calibrated on held-out logits, which have frequencies of other folds.
    tolerance = 0.1 if kind == "naive_bayes" else 1e-6
    assert bag(["", "new"]).softmax(1).tolist() == [pytest.approx([0.75, 0.25], abs=tolerance)] * 2


def test_logits_are_zero_before_the_fit():
    assert torch.equal(BowFeatures(2)(["a film"]), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("tfidf", 0.0), "bow_C must be above 0"), (("counts", 1.0), "bow_features must be one of tfidf, naive_bayes")],
)
def test_arguments_out_of_range_are_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        BowFeatures(2, *arguments)


def test_import_of_the_package_loads_neither_scikit_learn_nor_torch():
    script = "import sys, zoo.baselines; assert not {'sklearn', 'torch', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
