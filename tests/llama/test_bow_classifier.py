"""The bag of words of a classifier fitted to all rows, held-out logits in validation, and factors of the logits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.llama.reviews import classifier, data, predict, probabilities
from tests.resume import VALIDATION_END, assert_resume_is_bitwise
from tests.trainers import quiet_trainer
from zoo.baselines import BowFeatures
from zoo.datamodules import Reviews
from zoo.errors import UserError
from zoo.llama import LlamaClassifier

ALL = {"bow_features": "tfidf", "bow_rows": "all", "fit_scales": True}


def noisy(folder):
    """Reviews of which every fifth has the wrong label: nothing is certain."""
    for split in ("train", "dev"):
        file = folder / f"film-{split}.txt"
        lines = file.read_text().splitlines()
        turned = [f"{1 - int(line[0])}{line[1:]}" if i % 5 == 0 else line for i, line in enumerate(lines)]
        file.write_text("\n".join(turned))
    return str(folder)


def test_validation_uses_logits_from_fits_without_the_row(reviews, tmp_path):
    film, module, trainer = data(noisy(tmp_path / "reviews")), classifier(**ALL), quiet_trainer(max_steps=6)
    trainer.fit(module, film)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
    # The bag of words is that of all rows.
    texts = film.texts("train") + film.texts("val")
    classes = np.concatenate([film.targets("train"), film.targets("val")])[:, 0].astype(int)
    bag = BowFeatures(2, "tfidf")
    held_out = bag.fit(texts, classes)[48:]
    assert torch.equal(module.bow_features.weight, bag.weight)
    # The loss that a fit logs is that of held-out logits, and of factors that were fitted to it.
    rows = list(film.val_dataloader())
    with torch.no_grad():
        head = torch.cat([module.eval().head(module.model.hidden(b.tokens), b.padding_mask) for b in rows])
    scales = module.logit_scales.tolist()
    assert scales != [1, 1]
    logits = scales[0] * head + scales[1] * module.bow_weight.detach() * held_out
    targets = torch.from_numpy(film.targets("val"))[:, 0].long()
    assert F.cross_entropy(logits, targets).item() == pytest.approx(logged["val_loss"], abs=1e-5)
    # A checkpoint alone gives the same figures; the confusion matrix counts every row once.
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = LlamaClassifier.load_from_checkpoint(tmp_path / "run.ckpt")
    second = quiet_trainer()
    second.validate(again, film, verbose=False)
    assert {name: second.callback_metrics[name].item() for name in logged} == pytest.approx(logged, abs=1e-6)
    assert again.confusion_matrix.sum() == module.confusion_matrix.sum() == 13
    # Prediction uses the fit to all rows, and the factors.
    new = data(f"{tmp_path}/reviews/film-test.txt", val_fraction=0.0, test_fraction=0.0)
    [batch] = list(new.predict_dataloader())
    with torch.no_grad():
        head = again.eval().head(again.model.hidden(batch.tokens), batch.padding_mask)
        logits = scales[0] * head + scales[1] * again.bow_weight * bag(batch.texts)
    assert torch.allclose(probabilities(predict(again, new)), logits.softmax(1), atol=1e-6)


def test_rows_for_training_alone_give_the_bag_of_before(reviews):
    film, module = data(reviews), classifier(bow_features="tfidf", fit_scales=True)
    quiet_trainer(max_steps=2).fit(module, film)
    bag = BowFeatures(2, "tfidf")
    bag.fit(film.texts("train"), film.targets("train")[:, 0].astype(int))
    assert torch.equal(module.bow_features.weight, bag.weight)
    assert not module._held_out_of_text
    # Without a validation there is nothing more to fit to.
    module = classifier(**ALL)
    quiet_trainer(max_steps=2, limit_val_batches=0).fit(module, film)
    assert torch.equal(module.bow_features.weight, bag.weight)
    assert module.logit_scales.tolist() == [1, 1]


def test_factors_do_not_change_training(reviews):
    film = data(reviews)
    weights = []
    for fit_scales in (False, True):
        torch.manual_seed(0)
        module = classifier(bow_features="tfidf", fit_scales=fit_scales, dropout=0.1)
        quiet_trainer(max_steps=4, val_check_interval=2).fit(module, film)
        weights.append(dict(module.named_parameters()))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("devices", [1, 2])
def test_resume_is_bitwise(reviews, tmp_path, devices):
    assert_resume_is_bitwise(
        lambda: classifier(dropout=0.1, **ALL),
        lambda: Reviews(reviews, "bad,good", batch_size=4, max_input_len=40),
        tmp_path / "runs", max_steps=6, max_epochs=-1, devices=devices, every=4, val_check_interval=4,
        check_val_every_n_epoch=None, hooks=(VALIDATION_END,),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["naive_bayes", "words_and_chars"])
def test_checkpoint_of_every_kind_has_the_logits_of_the_validation_rows(reviews, tmp_path, kind):
    module, trainer = classifier(**ALL | {"bow_features": kind}), quiet_trainer(max_steps=1)
    trainer.fit(module, data(reviews))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = LlamaClassifier.load_from_checkpoint(tmp_path / "run.ckpt")
    assert len(again._held_out_of_text) == 13
    assert all(torch.equal(again._held_out_of_text[key], value) for key, value in module._held_out_of_text.items())


def test_damaged_logits_in_a_checkpoint_are_refused(reviews, tmp_path):
    module, trainer = classifier(**ALL), quiet_trainer(max_steps=1)
    trainer.fit(module, data(reviews))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    stored = checkpoint["bow_validation"]
    for damaged in (
        [], {"digests": stored["digests"]}, stored | {"logits": stored["logits"][1:]},
        stored | {"digests": [1] * 13}, stored | {"logits": stored["logits"] * torch.nan},
        stored | {"logits": stored["logits"].long()},
    ):  # fmt: skip
        with pytest.raises(UserError, match="logits of the validation rows in this checkpoint are damaged"):
            classifier(**ALL).on_load_checkpoint(checkpoint | {"bow_validation": damaged})


def test_unknown_rows_are_refused():
    with pytest.raises(UserError, match="bow_rows must be one of train, all, not 'val'"):
        classifier(bow_rows="val")
