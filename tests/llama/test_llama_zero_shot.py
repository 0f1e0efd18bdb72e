"""LlamaZeroShot: predictions without training, calibration, refused settings, and the command line."""

from dataclasses import asdict

import pytest
import torch
from torch.utils.data import DataLoader

from tests.commands import complaint
from tests.llama.reviews import (
    NAMES,
    QUIET,
    data,
    predict,
    probabilities,
    read_predictions,
    zero_shot,
)
from tests.llama.test_llama_checkpoint import llama2c_pt
from tests.trainers import quiet_trainer
from zoo.__main__ import main
from zoo.errors import UserError
from zoo.llama import LlamaZeroShot, load_checkpoint
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import Row, collate

PROMPT = "{text} It is"


@pytest.mark.parametrize("options", [{}, {"normalize": True, "calibrate": True}, {"course_scoring": True}])
def test_predictions_and_metrics_agree_without_training(reviews, weights, options):
    prompt = PROMPT + (" " if options.get("course_scoring") else "")
    film = data(reviews, prompt=prompt)
    module, trainer = zero_shot(weights, prompt, **options), quiet_trainer()
    rows = [row for batch in trainer.predict(module, film) for row in batch]
    assert len(rows) == 7
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    trainer.test(module, film, verbose=False)
    accuracy = sum(row["gold"] == row["label"] for row in rows) / 7
    assert trainer.callback_metrics["test_accuracy"].item() == pytest.approx(accuracy)


def test_calibration_subtracts_the_same_scores_from_all_texts(reviews, weights):
    film = data(reviews, prompt=PROMPT)
    logits = [probabilities(predict(zero_shot(weights, calibrate=c), film)).logit() for c in (False, True)]
    difference = (logits[0] - logits[1])[:, 0]  # for two classes: the difference of the two names' scores
    assert difference.abs().min() > 1e-3
    assert torch.allclose(difference, difference[:1].expand_as(difference), atol=1e-3)


def test_course_file_and_llama2c_file_of_the_same_weights_give_equal_probabilities(reviews, weights, tmp_path):
    llama = load_checkpoint(weights)
    torch.save(llama2c_pt(llama, course=True, **asdict(llama.config)), tmp_path / "stories.pt")
    results = [
        probabilities(predict(zero_shot(file), data(reviews, prompt=PROMPT)))
        for file in (weights, str(tmp_path / "stories.pt"))
    ]
    assert torch.allclose(*results, atol=1e-6)


# ---- a plain DataLoader


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_plain_loader_predicts_tests_and_calls_forward(reviews, weights, tmp_path):
    film, tokenizer = data(reviews, prompt=PROMPT), load_tokenizer("bytes")
    texts = film.texts("predict")
    rows = [Row(tokenizer.encode(f"{text} It is"), (i % 2,), i, text) for i, text in enumerate(texts)]
    loader = DataLoader(rows, batch_size=3, collate_fn=collate)
    module, trainer = zero_shot(weights, calibrate=True), quiet_trainer()
    predictions = [row for batch in trainer.predict(module, loader) for row in batch]
    assert torch.allclose(probabilities(predictions), probabilities(predict(module, film)), atol=1e-5)
    trainer.test(module, loader, verbose=False)
    accuracy = sum(row["gold"] == row["label"] for row in predictions) / 7
    assert trainer.callback_metrics["test_accuracy"].item() == pytest.approx(accuracy)
    assert torch.allclose(module(next(iter(loader))).softmax(1), probabilities(predictions[:3]), atol=1e-5)
    # A checkpoint holds the weights, the prompt and the tokenizer.
    trainer.save_checkpoint(tmp_path / "asked.ckpt")
    again = LlamaZeroShot.load_from_checkpoint(tmp_path / "asked.ckpt")
    assert torch.equal(again(next(iter(loader))), module(next(iter(loader))))


def test_forward_of_tokens_equals_forward_of_a_batch(weights):
    module, tokenizer = zero_shot(weights), load_tokenizer("bytes")
    ids = tokenizer.encode("a film. It is")
    assert torch.equal(module(torch.tensor([ids])), module(collate([Row(ids, (0.0,), 0, "a film.")])))


# ---- refused settings


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda w: zero_shot(w, course_scoring=True, calibrate=True), "cannot be combined with normalize or calibrate"),
        (lambda w: LlamaZeroShot([], w), "label_names is empty"),
        (lambda w: LlamaZeroShot(NAMES), "needs vocab_size"),
        (lambda w: LlamaZeroShot(NAMES, w, vocab_size=300), "the tokenizer has 300 tokens, but"),
    ],
)
def test_contradictory_arguments_are_refused(weights, make, sentence):
    with pytest.raises(UserError, match=sentence):
        make(weights)


def test_missing_prompts_and_tokenizers_are_refused_before_the_run(reviews, weights):
    film = data(reviews)
    with pytest.raises(UserError, match="needs a prompt that ends with a space"):
        quiet_trainer().test(zero_shot(weights, course_scoring=True), film)
    with pytest.raises(UserError, match=r"needs a prompt: set --data\.prompt"):
        quiet_trainer().test(zero_shot(weights, prompt=None), film)
    with pytest.raises(UserError, match="needs the tokenizer of its data"):
        quiet_trainer().test(LlamaZeroShot(NAMES, weights, ("", " It is")), film)


def test_training_is_refused(reviews, weights):
    with pytest.raises(UserError, match="LlamaZeroShot is not trained"):
        quiet_trainer(max_steps=1).fit(zero_shot(weights), data(reviews, prompt=PROMPT))


def test_texts_that_leave_no_context_for_class_names_are_refused(reviews, weights):
    module, film = zero_shot(weights), data(reviews, prompt=PROMPT)
    film.max_input_len = 60  # of the 64 positions, " good" needs 4: its last token is never an input
    module.check_data(film)
    film.max_input_len = 61
    with pytest.raises(UserError, match=r"set --data\.max_input_len to at most 60"):
        module.check_data(film)


# ---- the command line


def test_overlay_predicts_quietly_with_the_real_checkpoint(zoo_data, tmp_path, capsys):
    stories = zoo_data / "stories260K"
    (tmp_path / "film.txt").write_text("4 ||| I love it\n0 ||| I hate it\n")
    argv = [
        "predict", "--config=configs/sst/llama.yaml", "--config=configs/zero_shot.yaml",
        f"--model.weights={stories / 'stories260K.bin'}", f"--data.tokenizer={stories / 'tok512.bin'}",
        f"--data_dir={tmp_path / 'film.txt'}", f"--output_dir={tmp_path / 'out'}", *QUIET,
    ]  # fmt: skip
    assert main(argv) == 0
    assert capsys.readouterr().err.split() == [str(tmp_path / "out" / "predictions.jsonl")]
    rows = read_predictions(tmp_path / "out")
    assert [(row["gold"], set(row["probabilities"])) for row in rows] == [
        (gold, {"awful", "bad", "average", "good", "excellent"}) for gold in ("4", "0")
    ]


def test_metrics_and_figure_with_the_real_checkpoint(zoo_data, tmp_path, capsys):
    stories = zoo_data / "stories260K"
    (tmp_path / "film.txt").write_text("1 ||| I love it\n0 ||| I hate it\n" * 10)
    argv = [
        "test", "--model=LlamaZeroShot", f"--model.weights={stories / 'stories260K.bin'}",
        "--data=Reviews", f"--data_dir={tmp_path / 'film.txt'}", f"--data.tokenizer={stories / 'tok512.bin'}",
        "--data.label_names=bad,good", "--data.prompt={text} This movie is", "--data.test_fraction=1",
        "--data.val_fraction=0", "--data.max_input_len=128", f"--output_dir={tmp_path / 'out'}", *QUIET,
    ]  # fmt: skip
    assert main(argv) == 0
    assert "test_accuracy" in capsys.readouterr().out
    assert (tmp_path / "out" / "test-confusion.png").exists()


def test_old_method_names_the_new_class(reviews, weights, tmp_path, capsys):
    argv = ["test", "--model=LlamaClassifier", "--model.method=zero_shot", f"--model.weights={weights}"]
    argv += ["--data=Reviews", f"--data_dir={reviews}", f"--output_dir={tmp_path / 'out'}", *QUIET]
    assert "set --model LlamaZeroShot" in complaint(capsys, 1, *argv)


@pytest.mark.gpu
def test_half_precision_on_a_gpu(reviews, weights):
    from zoo.callbacks import MixedPrecision

    film, module = data(reviews, prompt=PROMPT), zero_shot(weights, calibrate=True)
    trainer = quiet_trainer(accelerator="gpu", devices=1, callbacks=[MixedPrecision("fp16")])
    trainer.test(module, film, verbose=False)
    assert 0 <= trainer.callback_metrics["test_accuracy"] <= 1
    assert len(trainer.predict(module, film)[0]) == 7


def test_calibration_needs_a_prompt_with_tokens():
    tokenizer = load_tokenizer("characters")  # which puts no BOS before a text
    sizes = {"vocab_size": tokenizer.vocab_size, "dim": 16, "n_layers": 1, "n_heads": 1, "max_seq_len": 64}
    module = LlamaZeroShot(["good", "bad"], prompt_parts=("", ""), calibrate=True, tokenizer=tokenizer, **sizes)
    with pytest.raises(UserError, match="calibrate needs a prompt with words in addition to the text"):
        module(torch.tensor([tokenizer.encode("abc")]))
