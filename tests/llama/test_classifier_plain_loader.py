"""LlamaClassifier without the command line and the zoo's data: DataLoader over Rows, torch.export, the card."""

import pytest
import torch
from torch.utils.data import DataLoader

from tests.cards import run_example
from tests.commands import ROOT
from tests.llama.reviews import classifier, probabilities
from tests.trainers import quiet_trainer
from zoo.baselines import BowFeatures
from zoo.errors import UserError
from zoo.llama import LlamaClassifier
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import Row, collate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
METHODS = [("full", False, None), ("full", False, "tfidf"), ("head", True, None), ("lora", True, "naive_bayes")]


def make_rows(n, indices=None):
    """n rows; the word that decides the class is not the last one."""
    tokenizer = load_tokenizer("bytes")
    texts = [f"{'a' * (i % 5)} {'good' if i % 2 else 'bad'} film {i}" for i in range(n)]
    return [Row(tokenizer.encode(text), (i % 2,), (indices or range(n))[i], text) for i, text in enumerate(texts)]


def make_loader(rows, **options):
    return DataLoader(rows, batch_size=8, collate_fn=collate, **options)


def make(method, weights, bow_features, **options):
    return classifier(
        method, weights, vocab_size=None, tokenizer=load_tokenizer("bytes"), bow_features=bow_features, **options
    )


@pytest.mark.parametrize(("method", "is_pretrained", "bow_features"), METHODS)
def test_fit_predict_forward_and_load_from_checkpoint(weights, tmp_path, method, is_pretrained, bow_features):
    module = make(method, weights if is_pretrained else None, bow_features, pooling="mean")
    trainer, held_out = quiet_trainer(max_steps=40), make_loader(make_rows(20))
    trainer.fit(module, make_loader(make_rows(48), shuffle=True), held_out)
    assert trainer.callback_metrics["val_accuracy"] > 0.5 or method == "head"  # random features: no promise
    predictions = [row for batch in trainer.predict(module, held_out) for row in batch]
    assert [row["index"] for row in predictions] == list(range(20))
    batch = next(iter(held_out))
    with torch.no_grad():
        assert torch.allclose(module.eval()(batch).softmax(1), probabilities(predictions[:8]), atol=1e-6)
    # The checkpoint restores weights, bag of words and tokenizer without further arguments.
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = LlamaClassifier.load_from_checkpoint(tmp_path / "run.ckpt").eval()
    assert again.tokenizer.decode(again.tokenizer.encode("film")) == "film"
    with torch.no_grad():
        assert torch.equal(again(batch), module(batch))


def test_bag_of_words_is_fitted_to_the_rows_of_the_training_loader():
    rows, module = make_rows(48, indices=[1000 - 7 * i for i in range(48)]), make("full", None, "tfidf")
    quiet_trainer(max_steps=1).fit(module, make_loader(rows, shuffle=True))
    expected = BowFeatures(2, "tfidf")
    logits = expected.fit([row.text for row in rows], torch.tensor([i % 2 for i in range(48)]).numpy())
    assert torch.equal(module.bow_features.weight, expected.weight)
    # In training each row gets its held-out logits, found by its index.
    batch = collate([rows[5], rows[3]])
    assert torch.equal(module.training_bow_logits(batch), logits[[5, 3]])


def test_resumed_run_keeps_the_fitted_bag_of_words(tmp_path):
    trainer, module = quiet_trainer(max_steps=6), make("full", None, "naive_bayes")  # one epoch
    trainer.fit(module, make_loader(make_rows(48)))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    resumed = make("full", None, "naive_bayes")
    resumed_rows = [row._replace(text=row.text + " more words") for row in make_rows(48)]
    quiet_trainer(max_steps=12).fit(resumed, make_loader(resumed_rows), ckpt_path=tmp_path / "run.ckpt")
    assert torch.equal(resumed.bow_features.weight, module.bow_features.weight)


def test_bag_of_words_refuses_rows_it_cannot_tell_apart():
    with pytest.raises(UserError, match="training rows with different indices"):
        quiet_trainer(max_steps=1).fit(make("full", None, "tfidf"), make_loader(make_rows(16, indices=[0] * 16)))


def test_export_of_tokens_to_logits(weights):
    module, tokens = make("full", weights, None).eval(), torch.tensor([load_tokenizer("bytes").encode("a good film")])
    exported = torch.export.export(module, (tokens,)).module()
    assert torch.allclose(exported(tokens), module(tokens), atol=1e-6)


@pytest.mark.slow
def test_compiled_forward_equals_eager(weights):
    module, batch = make("full", weights, None).eval(), next(iter(make_loader(make_rows(8))))
    with torch.no_grad():
        assert torch.allclose(torch.compile(module)(batch), module(batch), atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the example logs to the working directory, with one loader process
def test_example_of_the_card_runs(tmp_path):
    names = run_example(ROOT / "zoo" / "llama" / "README.md", tmp_path, "### Example of the classifier")
    rows = [row for batch in names["predictions"] for row in batch]
    assert {row["label"] for row in rows} == {"good", "bad"}
    assert all(row["label"] == row["gold"] for row in rows)
