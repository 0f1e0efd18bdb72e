"""Constrained decoding: sampling, log-probability and enumeration agree on one distribution under the grammar."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zoo.regress_lm.decoding import enumerate_all, log_prob, sample
from zoo.regress_lm.model import EncoderDecoder, RegressLMConfig
from zoo.regress_lm.number_tokenizers import IEEEFloatTokenizer, NormalizedTokenizer, P10Tokenizer
from zoo.regress_lm.special_values import SpecialValues
from zoo.regress_lm.vocabulary import NumberVocabulary

DIGITS = NumberVocabulary(NormalizedTokenizer(length=2))
SMALL = NumberVocabulary(SpecialValues(P10Tokenizer(1, 1)), 2)  # (2 10 3 + 4)^2 spellings
IEEE = NumberVocabulary(IEEEFloatTokenizer())


def build(vocabulary):
    """A random model whose distributions are far from uniform."""
    torch.manual_seed(0)
    model = EncoderDecoder(RegressLMConfig(30, vocabulary.size, vocabulary.length, dim=32, max_input_len=40)).eval()
    torch.nn.init.normal_(model.generator.weight, std=0.5)
    return model


@pytest.fixture
def texts():
    """Tokens (3, 10) of rows with lengths 10, 4 and 7, and their padding mask."""
    padding_mask = torch.arange(10) < torch.tensor([10, 4, 7])[:, None]
    return torch.randint(30, (3, 10), generator=torch.Generator().manual_seed(2)) * padding_mask, padding_mask


def allowed_everywhere(vocabulary, ids):
    state = torch.zeros_like(ids[:, 0])
    for token in ids.unbind(1):
        if not vocabulary.automaton.allowed[state, token].all():
            return False
        state = vocabulary.automaton.next_state[state, token]
    return bool((state == 0).all())


def test_tables_first_used_in_inference_mode_have_gradients_later():
    with torch.inference_mode():
        vocabulary = NumberVocabulary(NormalizedTokenizer(length=2))
        tables = vocabulary.tables(torch.device("meta")), vocabulary.tables(torch.device("cpu"))
    for table in tables:
        assert not any(part.is_inference() for part in (*table.automaton, table.temperature))
    logits = torch.zeros(vocabulary.size, requires_grad=True)
    allowed = vocabulary.automaton.allowed[0]
    logits.masked_fill(~allowed, -1).sum().backward()
    assert torch.equal(logits.grad, allowed.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cached_decoding_equals_the_full_forward(texts, dtype):
    model, (tokens, padding_mask) = build(IEEE).to(dtype), texts
    ids = sample(model, IEEE, tokens, padding_mask, 5).ids[:, 3]
    with torch.no_grad():
        logits = model(tokens, ids, padding_mask)
        text, past, stepped = model.project_memory(model.encode(tokens, padding_mask)), None, []
        for token in F.pad(ids[:, :-1], (1, 0)).split(1, 1):
            step, past = model.decode(token, text, padding_mask, past)
            stepped.append(step)
    torch.testing.assert_close(torch.cat(stepped, 1), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocabulary", [DIGITS, SMALL, IEEE], ids=["digits", "two-special", "ieee"])
def test_samples_obey_the_grammar_and_have_correct_log_prob(texts, vocabulary):
    model, (tokens, padding_mask) = build(vocabulary), texts
    drawn = sample(model, vocabulary, tokens, padding_mask, 200)
    assert drawn.ids.shape == (3, 200, vocabulary.length)
    assert drawn.log_prob.shape == (3, 200)
    assert allowed_everywhere(vocabulary, drawn.ids.flatten(0, 1))
    for row in range(3):
        expected = log_prob(
            model, vocabulary, tokens[row].expand(200, -1), padding_mask[row].expand(200, -1), drawn.ids[row]
        )
        torch.testing.assert_close(drawn.log_prob[row], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocabulary", [DIGITS, SMALL], ids=["digits", "two-special"])
def test_enumeration_covers_the_whole_distribution(texts, vocabulary):
    model, (tokens, padding_mask) = build(vocabulary), texts
    ids, log_probs = enumerate_all(model, vocabulary, tokens, padding_mask, chunk=7)
    assert ids.shape == (vocabulary.count, vocabulary.length)
    assert len(set(map(tuple, ids.tolist()))) == vocabulary.count
    assert allowed_everywhere(vocabulary, ids)
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(3, dtype=torch.float64))
    some = torch.arange(0, vocabulary.count, 13)
    for row in range(3):
        texts_of_row = tokens[row].expand(len(some), -1), padding_mask[row].expand(len(some), -1)
        expected = log_prob(model, vocabulary, *texts_of_row, ids[some])
        torch.testing.assert_close(log_probs[row, some], expected, rtol=0, atol=1e-5)


def test_samples_follow_the_enumerated_distribution(texts):
    """1e5 samples of 100 numbers: total variation below .02; about .01 is expected by chance."""
    model, (tokens, padding_mask) = build(DIGITS), texts
    ids, log_probs = enumerate_all(model, DIGITS, tokens, padding_mask)
    places = {tuple(spelling): place for place, spelling in enumerate(ids.tolist())}
    drawn = sample(model, DIGITS, tokens, padding_mask, 100_000, seed=1).ids
    for row in range(3):
        counts = np.zeros(len(ids))
        spellings, times = drawn[row].unique(dim=0, return_counts=True)
        counts[[places[tuple(spelling)] for spelling in spellings.tolist()]] = times
        assert np.abs(counts / counts.sum() - log_probs[row].exp().numpy()).sum() / 2 < 0.02


def test_temperature_and_top_k_change_the_distribution(texts):
    model, (tokens, padding_mask) = build(NumberVocabulary(NormalizedTokenizer(length=1))), texts
    vocabulary = NumberVocabulary(NormalizedTokenizer(length=1))
    ids, log_probs = enumerate_all(model, vocabulary, tokens, padding_mask)
    for options, distribution in (
        ({"temperature": 0.5}, (log_probs / 0.5).softmax(1)),
        ({"temperature": 3.0}, (log_probs / 3.0).softmax(1)),
        ({"top_k": 3}, log_probs.where(log_probs >= log_probs.topk(3).values[:, 2:], -torch.inf).softmax(1)),
        ({"top_k": 1}, F.one_hot(log_probs.argmax(1), 10).double()),
        ({"temperature": 0.0}, F.one_hot(log_probs.argmax(1), 10).double()),
        ({"top_k": 50}, log_probs.exp()),
    ):
        drawn = sample(model, vocabulary, tokens, padding_mask, 20_000, seed=1, **options)
        share = (drawn.ids == ids[:, 0]).double().mean(1)  # (3, 10): each of the ten ids
        assert (share - distribution).abs().max() < 0.02
        # Temperature and top-k do not change the reported log-probability.
        expected = log_probs.gather(1, (drawn.ids[..., 0, None] == ids[:, 0]).int().argmax(-1))
        torch.testing.assert_close(drawn.log_prob, expected, rtol=0, atol=1e-5)


def test_greedy_takes_the_most_likely_token_at_each_position(texts):
    model, (tokens, padding_mask) = build(SMALL), texts
    ids = sample(model, SMALL, tokens, padding_mask, 3, temperature=0).ids
    assert (ids == ids[:, :1]).all()
    with torch.no_grad():
        logits = model(tokens, ids[:, 0], padding_mask)
    state = torch.zeros(3, dtype=torch.int64)
    for position, token in enumerate(ids[:, 0].unbind(1)):
        best = logits[:, position].masked_fill(~SMALL.automaton.allowed[state], -torch.inf).argmax(1)
        assert torch.equal(token, best)
        state = SMALL.automaton.next_state[state, token]


def test_draws_depend_on_seed_and_row_only(texts):
    model, (tokens, padding_mask) = build(IEEE), texts
    drawn = sample(model, IEEE, tokens, padding_mask, 60, seed=5).ids
    assert torch.equal(sample(model, IEEE, tokens, padding_mask, 60, seed=5).ids, drawn)
    assert torch.equal(sample(model, IEEE, tokens, padding_mask, 20, seed=5).ids, drawn[:, :20])
    wide = sample(model, IEEE, F.pad(tokens, (0, 9), value=3), F.pad(padding_mask, (0, 9)), 60, seed=5)
    assert torch.equal(wide.ids, drawn)
    alone = sample(model, IEEE, tokens[1:2, :4], None, 60, seed=5, rows=torch.tensor([1]))
    assert torch.equal(alone.ids[0], drawn[1])
    assert not torch.equal(sample(model, IEEE, tokens, padding_mask, 60, seed=6).ids, drawn)
    same = sample(model, IEEE, tokens[:1].expand(2, -1), None, 60, seed=5).ids
    assert not torch.equal(same[0], same[1])


def test_equal_prefixes_are_computed_once(texts, monkeypatch):
    model, (tokens, padding_mask) = build(DIGITS), texts
    widths = []
    spell = model.decode
    monkeypatch.setattr(model, "decode", lambda last, *rest: widths.append(len(last)) or spell(last, *rest))
    sample(model, DIGITS, tokens, padding_mask, 500)
    assert widths[0] == 3
    assert widths[1] <= 30


def test_log_prob_is_renormalised_over_the_grammar(texts):
    model, (tokens, padding_mask) = build(IEEE), texts
    ids = IEEE.encode([[0.57], [-123.0], [4e5]])
    ours = log_prob(model, IEEE, tokens, padding_mask, ids)
    logits = model(tokens, ids, padding_mask)
    theirs = -F.cross_entropy(logits.mT, ids, reduction="none").sum(1)  # upstream's: over all tokens
    assert (ours > theirs).all()
    lost = torch.stack(
        [logits[:, p].log_softmax(-1)[:, IEEE.automaton.allowed[p]].logsumexp(-1) for p in range(7)], 1
    ).sum(1)
    torch.testing.assert_close(ours.float(), theirs - lost, rtol=0, atol=1e-5)
    ours.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    ids[1, 0] = 5  # a digit in the position of a sign
    assert log_prob(model, IEEE, tokens, padding_mask, ids)[1] == -torch.inf


def test_sampling_disables_dropout_and_restores_training_mode(texts):
    tokens, padding_mask = texts
    model = build(IEEE)
    expected = sample(model, IEEE, tokens, padding_mask, 10).ids
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    model.train()
    assert torch.equal(sample(model, IEEE, tokens, padding_mask, 10).ids, expected)
    assert all(module.training for module in model.modules())


def test_bf16_samples_obey_the_grammar(texts):
    tokens, padding_mask = texts
    model = build(SMALL)
    for run in (model, model.bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            drawn = sample(run, SMALL, tokens, padding_mask, 50)
        assert allowed_everywhere(SMALL, drawn.ids.flatten(0, 1))
        assert drawn.log_prob.isfinite().all()


def test_options_out_of_range_are_refused(texts):
    tokens, padding_mask = texts
    model = build(IEEE)
    for options, word in (({"temperature": -1.0}, "temperature"), ({"top_k": 0}, "top_k"), ({"num_samples": 0}, "num")):
        with pytest.raises(ValueError, match=word):
            sample(model, IEEE, tokens, padding_mask, **({"num_samples": 2} | options))
    with pytest.raises(ValueError, match="400,000 token sequences are too many"):
        enumerate_all(model, IEEE, tokens, padding_mask, limit=1000)
