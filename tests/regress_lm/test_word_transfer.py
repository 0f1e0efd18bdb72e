"""Weights of a checkpoint for a model with another vocabulary of words."""

import pytest
import torch

from zoo.errors import UserError
from zoo.regress_lm import RegressLM
from zoo.regress_lm.initial_weights import settings_of_weights
from zoo.regress_lm.word_transfer import kind_of, transfer_embedding
from zoo.tokenizers import train_words

SIZES = {"dim": 16, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}


@pytest.mark.parametrize(
    ("word", "kind"),
    [("3.2", "mantissa"), ("-1.0", "mantissa"), ("e-3,", "power"), ("e", "part"), ("e,", "power"), ("e2", "power"),
     ("width:", "name"), ("red,", "value"), ("red", "value"), ("##a", "part"), ("<unk>", "part"), ("1931", "mantissa")],
)  # fmt: skip
def test_kinds_of_words(word, kind):
    assert kind_of(word) == kind


def test_common_words_keep_their_rows_and_new_ones_start_near_those_of_their_kind():
    old = {"<unk>": 0, "3.2": 1, "e2,": 2, "a:": 3, "b:": 4, "red,": 5}
    new = {"<unk>": 0, "e2,": 1, "width:": 2, "height:": 3, "blue": 4, "9.9": 5, "3.2": 6}
    embedding = torch.arange(6.0)[:, None].expand(6, 1000)
    rows, n_common = transfer_embedding(embedding, old, new)
    assert n_common == 3
    assert rows[[0, 1, 6], 0].tolist() == [0, 2, 1]
    assert rows[4:6, 0].tolist() == [5, 1]  # there is one word of the kind
    assert rows[2:4].mean().item() == pytest.approx(3.5, abs=0.02)  # names have 3 and 4
    assert rows[2:4].std().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(rows, transfer_embedding(embedding, old, new)[0])


def test_weights_of_another_vocabulary_are_transferred_by_word(tmp_path):
    first = RegressLM.from_scratch(tokenizer=train_words(["a: 3.2 e2, b: red"]), **SIZES)
    first.save(tmp_path / "first.ckpt")
    same = RegressLM.from_scratch(tokenizer=first.tokenizer, weights=str(tmp_path / "first.ckpt"), seed=1, **SIZES)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    # The words sort differently, so that their ids differ; both vocabularies have seven entries less one.
    other = RegressLM.from_scratch(
        tokenizer=train_words(["b: red, c: 3.2 e2"]), weights=str(tmp_path / "first.ckpt"), **SIZES
    )
    old, new = first.model.encoder.embedding.weight, other.model.encoder.embedding.weight
    for word in ("3.2", "b:", "<unk>"):
        assert torch.equal(old[first.tokenizer.tokens[word]], new[other.tokenizer.tokens[word]])
    assert torch.equal(first.model.decoder.layers[0].linear1.weight, other.model.decoder.layers[0].linear1.weight)


def test_weights_with_a_tokenizer_of_another_kind_are_refused(tmp_path):
    RegressLM.from_scratch(tokenizer=train_words(["a: 3.2 e2"]), **SIZES).save(tmp_path / "first.ckpt")
    with pytest.raises(UserError, match=r"this model one of the kind 'bytes': set --data\.tokenizer to words"):
        RegressLM.from_scratch(weights=str(tmp_path / "first.ckpt"), **SIZES)


def test_automatic_settings_follow_the_weights():
    choices = {choice.option: choice.value for choice in settings_of_weights({"model.weights": "zoo:regress-lm"})}
    assert (choices["model.dim"], choices["model.n_decoder_layers"], choices["model.number_format"]) == (64, 1, "ieee")
    assert (choices["data.tokenizer"], choices["data.power_tokens"]) == ("words", True)
    given = {"model.weights": "zoo:regress-lm", "data.tokenizer": "bpe"}
    assert "data.tokenizer" not in {choice.option for choice in settings_of_weights(given)}
    assert settings_of_weights({}) == []


def test_weights_of_another_model_are_refused_before_anything_is_chosen(tmp_path):
    path = tmp_path / "classifier.ckpt"
    torch.save({"zoo": {"model": "LlamaClassifier"}, "state_dict": {}, "hyper_parameters": {"dim": 8}}, path)
    with pytest.raises(UserError, match="holds a LlamaClassifier, not a RegressLM"):
        settings_of_weights({"model.weights": str(path)})
    with pytest.raises(UserError, match="no weights zoo:regress-ml; did you mean zoo:regress-lm"):
        settings_of_weights({"model.weights": "zoo:regress-ml"})
