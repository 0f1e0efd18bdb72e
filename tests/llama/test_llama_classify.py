"""The classifier's head and the zero-shot scores against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from zoo.errors import UserError
from zoo.llama import Llama, LlamaConfig
from zoo.llama.class_scores import continuation_scores, continuations, course_scores, move_padding_left
from zoo.llama.classifier_head import ClassifierHead
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import Row, collate

NAMES = [[3], [5, 9, 2], [7, 7]]  # token ids of three class names


@pytest.fixture
def llama():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=32)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def ragged(*lengths):
    """Random rows of these lengths, one by one and as a padded batch with its mask."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 50, (n,), generator=generator).tolist() for n in lengths]
    batch = collate([Row(row, (0.0,), i, "") for i, row in enumerate(rows)])
    return [torch.tensor([row]) for row in rows], batch.tokens, batch.padding_mask


def score_by_definition(llama, prompt, name):
    """log p(name | prompt), one token at a time, without a cache."""
    tokens, score = prompt, 0.0
    for token in name:
        score += llama(tokens)[0][0, -1].log_softmax(-1)[token].item()
        tokens = torch.cat([tokens, torch.tensor([[token]])], 1)
    return score


@pytest.mark.parametrize("normalize", [False, True])
def test_continuation_scores_equal_their_definition_in_padded_batches(llama, normalize):
    rows, tokens, padding_mask = ragged(5, 12, 1, 9)
    scores = continuation_scores(llama, tokens, padding_mask, NAMES, normalize)
    for row, score in zip(rows, scores, strict=True):
        expected = [score_by_definition(llama, row, name) / (len(name) if normalize else 1) for name in NAMES]
        assert torch.allclose(score, torch.tensor(expected), atol=1e-5)
        assert torch.allclose(continuation_scores(llama, row, None, NAMES, normalize)[0], score, atol=1e-5)


def test_padding_moves_to_the_left():
    _, tokens, padding_mask = ragged(2, 4)
    left, left_padding = move_padding_left(tokens, padding_mask)
    assert left_padding is not None
    assert left_padding.tolist() == [2, 0]
    assert left.tolist() == [[0, 0, *tokens[0, :2].tolist()], tokens[1].tolist()]


def test_course_scores_read_the_last_column_and_sum_all_tokens_of_a_name(llama):
    rows, tokens, _ = ragged(3, 6)
    scores = course_scores(llama, tokens, NAMES)
    padded = F.pad(rows[0], (0, 3))  # the short row, whose padding counts as text
    for prompt, score in ((padded, scores[0]), (rows[1], scores[1])):
        log_probs = llama(prompt)[0][0, -1].log_softmax(-1)
        assert torch.allclose(score, torch.stack([log_probs[name].sum() for name in NAMES]), atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_pooling_ignores_padding(llama, pooling):
    head = ClassifierHead(32, 3, pooling, dropout=0.5).eval()
    if pooling == "attention":
        torch.nn.init.normal_(head.query)
    rows, tokens, padding_mask = ragged(5, 12, 1)
    for row, logits in zip(rows, head(llama.hidden(tokens), padding_mask), strict=True):
        assert torch.allclose(head(llama.hidden(row))[0], logits, atol=1e-5)
    hidden = llama.hidden(rows[0])
    if pooling == "attention":
        expected = (hidden[0] @ head.query).softmax(0) @ hidden[0]
    else:
        expected = hidden[0, -1] if pooling == "last" else hidden[0].mean(0)
    assert torch.allclose(head.pool(hidden, None)[0], expected, atol=1e-6)


def test_continuations_follow_the_prompt(zoo_data):
    for name in ("bytes", str(zoo_data / "stories260K" / "tok512.bin")):
        tokenizer = load_tokenizer(name)
        for label, ids in zip(("good", "awful"), continuations(tokenizer, " It is", ["good", "awful"]), strict=True):
            assert tokenizer.decode(tokenizer.encode("A film. It is") + ids) == f"A film. It is {label}"
    with pytest.raises(UserError, match="ends with ' It is ', but it must end with a whole word and without a space"):
        continuations(load_tokenizer("bytes"), " It is ", ["good"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pooling": "first"}, "pooling must be one of last, mean, attention, not 'first'"),
        ({"dropout": 1.0}, r"head_dropout must be in \[0, 1\), not 1.0"),
    ],
)
def test_head_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        ClassifierHead(4, 2, **settings)
