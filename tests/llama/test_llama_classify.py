"""The mathematics of choosing among classes: pooling, words after prompts, the course's way, the bag of words."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from zoo.baselines.baselines import WORDS
from zoo.baselines.bow_features import BagOfWords
from zoo.llama import Llama, LlamaConfig
from zoo.llama.class_scores import Head, continuations, course_scores, left_padded, word_scores
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import Row, collate

NAMES = [[3], [5, 9, 2], [7, 7]]


@pytest.fixture
def llama():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=32)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def ragged(*lengths):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 50, (n,), generator=generator).tolist() for n in lengths]
    batch = collate([Row(row, (0.0,), i, "") for i, row in enumerate(rows)])
    return [torch.tensor([row]) for row in rows], batch.tokens, batch.padding_mask


def by_definition(llama, prompt, word):
    """log p(word | prompt), one token at a time, without a cache."""
    tokens, score = prompt, 0.0
    for token in word:
        score += llama(tokens)[0][0, -1].log_softmax(-1)[token].item()
        tokens = torch.cat([tokens, torch.tensor([[token]])], 1)
    return score


@pytest.mark.parametrize("normalize", [False, True])
def test_words_score_as_by_definition_in_ragged_batches(llama, normalize):
    rows, tokens, padding_mask = ragged(5, 12, 1, 9)
    scores = word_scores(llama, tokens, padding_mask, NAMES, normalize)
    for row, found in zip(rows, scores, strict=True):
        wanted = torch.tensor([by_definition(llama, row, w) / (len(w) if normalize else 1) for w in NAMES])
        assert torch.allclose(found, wanted, atol=1e-5)
        assert torch.allclose(word_scores(llama, row, None, NAMES, normalize)[0], found, atol=1e-5)


def test_padding_moves_to_the_left():
    _, tokens, padding_mask = ragged(2, 4)
    left, left_padding = left_padded(tokens, padding_mask)
    assert left_padding is not None
    assert left_padding.tolist() == [2, 0]
    assert left.tolist() == [[0, 0, *tokens[0, :2].tolist()], tokens[1].tolist()]


def test_the_course_reads_the_last_column_and_sums_as_if_each_token_were_the_next(llama):
    rows, tokens, _ = ragged(3, 6)
    found = course_scores(llama, tokens, NAMES)
    padded = F.pad(rows[0], (0, 3))  # what it takes for the prompt of the short row
    for prompt, scores in ((padded, found[0]), (rows[1], found[1])):
        log_probs = llama(prompt)[0][0, -1].log_softmax(-1)
        assert torch.allclose(scores, torch.stack([log_probs[word].sum() for word in NAMES]), atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_a_row_is_pooled_as_if_it_were_alone(llama, pooling):
    head = Head(32, 3, pooling, dropout=0.5).eval()
    if pooling == "attention":
        torch.nn.init.normal_(head.query)
    rows, tokens, padding_mask = ragged(5, 12, 1)
    found = head(llama.hidden(tokens), padding_mask)
    for row, logits in zip(rows, found, strict=True):
        assert torch.allclose(head(llama.hidden(row))[0], logits, atol=1e-5)
    hidden = llama.hidden(rows[0])
    if pooling == "attention":
        wanted = (hidden[0] @ head.query).softmax(0) @ hidden[0]
    else:
        wanted = hidden[0, -1] if pooling == "last" else hidden[0].mean(0)
    assert torch.allclose(head.pooled(hidden, None)[0], wanted, atol=1e-6)


def test_continuations_are_what_follows_the_prompt(zoo_data):
    for name in ("bytes", str(zoo_data / "stories260K" / "tok512.bin")):
        tokenizer = load_tokenizer(name)
        for word, ids in zip(("good", "awful"), continuations(tokenizer, " It is", ["good", "awful"]), strict=True):
            assert tokenizer.decode(tokenizer.encode("A film. It is") + ids) == f"A film. It is {word}"
    with pytest.raises(ValueError, match="ends with ' It is ', but must with a whole word and no space"):
        continuations(load_tokenizer("bytes"), " It is ", ["good"])


@pytest.mark.parametrize("settings", [{"pooling": "first"}, {"dropout": 1.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"pooling is last, mean or attention|head_dropout must lie"):
        Head(4, 2, **settings)


TEXTS = [f"a {'fine' if i % 2 else 'dull'} film number {i}" for i in range(40)]
CLASSES = np.array([i % 2 for i in range(40)])


@pytest.mark.parametrize("weigh", ["tfidf", "naive_bayes"])
def test_the_bag_learns_words_and_tells_held_out_texts(weigh):
    bag = BagOfWords(3, weigh, inverse_penalty=10.0)
    held_out = bag.fit(TEXTS, CLASSES)
    assert (held_out.argmax(1).numpy() == CLASSES).all()
    logits = bag(["dull , dull", "FINE !", "unseen"])
    assert logits[:2].argmax(1).tolist() == [0, 1]
    assert (logits[:, 2] < logits[:, :2].min(1).values).all()  # of a class without a row
    again = BagOfWords(3, weigh, 10.0)
    again.load_state_dict(bag.state_dict())
    assert torch.equal(again(TEXTS), bag(TEXTS))


@pytest.mark.parametrize("weigh", ["tfidf", "naive_bayes"])
def test_the_bags_held_out_logits_do_not_know_their_text(weigh):
    texts = [f"word{i}" for i in range(40)]
    bag = BagOfWords(2, weigh, 1e4)
    held_out = bag.fit(texts, CLASSES)
    assert (bag(texts).argmax(1).numpy() == CLASSES).all()  # learnt by heart
    assert (held_out.argmax(1).numpy() == CLASSES).mean() < 0.7  # but a word that stands nowhere else says nothing


@pytest.mark.parametrize("weigh", ["tfidf", "naive_bayes"])
def test_a_fold_without_the_rare_class_chooses_the_other(weigh):
    bag = BagOfWords(2, weigh)
    held_out = bag.fit(TEXTS[:7], np.array([1, 1, 1, 0, 1, 1, 1]))
    assert held_out[3].argmax() == 1  # of the one text of its class, by a fit that never saw that class
    assert bag(TEXTS[:7]).isfinite().all()


def test_the_bag_of_three_classes_is_scikit_learns_own_regression():
    classes = np.array([i % 3 for i in range(40)])
    bag = BagOfWords(3, "tfidf", 10.0)
    bag.fit(TEXTS, classes)
    theirs = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=WORDS))
    model = LogisticRegression(C=10.0, max_iter=300).fit(theirs.fit_transform(TEXTS), classes)
    wanted = model.predict_log_proba(theirs.transform(TEXTS))
    assert np.allclose(bag(TEXTS).log_softmax(1), wanted, atol=1e-3)


def test_naive_bayes_is_scikit_learns_own_at_the_temperature_that_fits_held_out_texts():
    classes = np.where(np.arange(40) % 7 == 0, 1 - CLASSES, CLASSES)  # some that no word tells
    bag = BagOfWords(2, "naive_bayes")
    held_out = bag.fit(TEXTS, classes)
    theirs = make_pipeline(CountVectorizer(binary=True, ngram_range=(1, 2), token_pattern=WORDS), MultinomialNB())
    wanted = torch.from_numpy(theirs.fit(TEXTS, classes).predict_log_proba(TEXTS)).diff(dim=1).float()
    certainty = bag(TEXTS).diff(dim=1) / wanted
    assert 0 < certainty[0] < 0.9
    assert torch.allclose(certainty, certainty[:1].expand_as(certainty), rtol=1e-3)
    losses = [F.cross_entropy(share * held_out, torch.from_numpy(classes)).item() for share in (0.9, 1, 1.1)]
    assert losses[1] == min(losses)


def test_bags_out_of_range_are_refused():
    with pytest.raises(ValueError, match="bag is tfidf or naive_bayes, and bag_c positive"):
        BagOfWords(2, "tfidf", 0.0)
