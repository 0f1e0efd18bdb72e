"""LlamaClassifier: every method learns what it may, resumes to the bit, and answers from its checkpoint alone."""

import json
import os
from dataclasses import asdict

import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.metrics import confusion_matrix, f1_score

from tests.commands import complaint
from tests.llama.test_llama_checkpoint import llama2c_pt
from tests.resume import VALIDATION_END, assert_resume_is_bitwise
from zoo.__main__ import main
from zoo.datamodules import Reviews
from zoo.layers.lora import merge_lora
from zoo.llama import Llama, LlamaClassifier, LlamaConfig, load_checkpoint, save_checkpoint
from zoo.llama.classifier import export

SIZES = {"dim": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}
NAMES = ["bad", "good"]
QUIET = [
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--throughput.every_n_steps=1", "--trainer.log_every_n_steps=1",
]  # fmt: skip


@pytest.fixture
def reviews(tmp_path):
    """A folder of reviews whose one telling word is not their last."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    for split, n in (("train", 48), ("dev", 13), ("test", 7)):
        rows = [f"{i % 2} ||| {'a' * (i % 5)} {NAMES[i % 2]} film {i}\n" for i in range(n)]
        (folder / f"film-{split}.txt").write_text("".join(rows))
    return str(folder)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_checkpoint(Llama(LlamaConfig(vocab_size=257, **SIZES)), tmp_path / "base.bin", format="llama2c")
    return str(tmp_path / "base.bin")


def quiet(**options):
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(**{"accelerator": "cpu", "num_sanity_val_steps": 0, "max_epochs": -1, **off, **options})


def data(reviews, **options):
    return Reviews(reviews, "bad,good", batch_size=8, max_input_len=40, **options)


def classifier(method="full", weights=None, **options):
    sizes = SIZES if weights is None else {}
    return LlamaClassifier(NAMES, method, weights, vocab_size=257, lr=1e-2, warmup_steps=2, **sizes, **options)


def fit(out, reviews, *options, steps=6):
    argv = [
        "fit", "--model=LlamaClassifier", "--data=Reviews", *[f"--model.{k}={v}" for k, v in SIZES.items()],
        f"--data_dir={reviews}", "--data.label_names=bad,good", "--data.batch_size=8", "--data.max_input_len=40",
        f"--output_dir={out}", f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}",
        "--checkpoint.monitor=val_accuracy", "--checkpoint.mode=max", "--model.lr=1e-2", *QUIET, *options,
    ]  # fmt: skip
    assert main([str(a) for a in argv]) == 0
    return out / "best.ckpt"


def predictions(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def probabilities(folder):
    return torch.tensor([list(row["probabilities"].values()) for row in predictions(folder)])


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_it_learns(reviews, pooling):
    torch.manual_seed(0)
    module, trainer = classifier(pooling=pooling, lm_weight=0.1), quiet(max_steps=40, limit_val_batches=0)
    trainer.fit(module, data(reviews))
    trainer.test(module, data(reviews), verbose=False)
    assert trainer.callback_metrics["test_accuracy"] > 0.8


@pytest.mark.parametrize(("method", "devices"), [("full", 1), ("lora", 2), ("head", 2)])
def test_resume_is_bitwise(reviews, weights, tmp_path, method, devices):
    assert_resume_is_bitwise(
        lambda: classifier(method, weights, dropout=0.1, bag="naive_bayes" if method == "head" else None),
        lambda: Reviews(reviews, "bad,good", batch_size=4, max_input_len=40),
        tmp_path / "runs", max_steps=6, max_epochs=-1, devices=devices, every=4, val_check_interval=4,
        check_val_every_n_epoch=None, limit_val_batches=1, hooks=(VALIDATION_END,),
    )  # fmt: skip


def test_the_scores_are_scikit_learns(reviews):
    module, film, trainer = classifier(), data(reviews), quiet()
    trainer.validate(module, film, verbose=False)
    rows = [row for batch in trainer.predict(module, data(f"{reviews}/film-dev.txt")) for row in batch]
    truth, found = ([int(row[name]) for row in rows] for name in ("gold", "label"))
    trainer.validate(module, film, verbose=False)
    assert trainer.callback_metrics["val_accuracy"].item() == pytest.approx(
        sum(t == f for t, f in zip(truth, found, strict=True)) / 13
    )
    assert trainer.callback_metrics["val_macro_f1"].item() == pytest.approx(f1_score(truth, found, average="macro"))
    assert module.confused is not None
    assert module.confused.tolist() == confusion_matrix(truth, found, labels=[0, 1]).tolist()
    assert module.figures()["confusion"].axes[0].get_title().startswith("accuracy 0.")


@pytest.mark.parametrize("method", ["head", "lora"])
def test_only_what_it_adapts_trains(reviews, weights, method):
    module = classifier(method, weights, lora_targets="wqkv,wo")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    quiet(max_steps=3, limit_val_batches=0).fit(module, data(reviews))
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    adapted = {
        f"model.layers.{i}.attention.{m}.parametrizations.weight.0.{x}"
        for i in range(2) for m in ("wqkv", "wo") for x in "ab"
    }  # fmt: skip
    assert changed == {"head.linear.weight", "head.linear.bias"} | (adapted if method == "lora" else set())


def test_merged_equals_unmerged(reviews, weights):
    module, film = classifier("lora", weights), data(reviews)
    quiet(max_steps=10, limit_val_batches=0).fit(module, film)
    module.eval()
    batch = next(iter(film.val_dataloader()))
    with torch.no_grad():
        before = module(batch)
        assert not torch.allclose(before, classifier("head", weights).eval()(batch), atol=1e-2)
        merge_lora(module.model)
        assert torch.allclose(module(batch), before, atol=1e-5)
    assert module.model.state_dict().keys() == load_checkpoint(weights).state_dict().keys()


def test_layers_learn_at_rates_of_their_own(reviews, weights):
    module, trainer = classifier("full", weights, layer_decay=0.5), quiet(max_steps=1, limit_val_batches=0)
    trainer.fit(module, data(reviews))
    groups = trainer.optimizers[0].param_groups
    rates = {id(p): group["initial_lr"] / 1e-2 for group in groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in module.named_parameters()}
    assert found["head.linear.weight"] == found["model.norm.weight"] == found["model.layers.1.ffn_norm.weight"] == 1
    assert found["model.layers.0.attention.wo.weight"] == 0.5
    assert found["model.tok_embeddings.weight"] == 0.25


def test_batched_equals_alone(reviews, weights):
    module, film = classifier("full", weights).eval(), data(reviews)
    one = Reviews(reviews, "bad,good", batch_size=1, max_input_len=40)
    with torch.no_grad():
        together = torch.cat([module(batch) for batch in film.val_dataloader()])
        alone = torch.cat([module(batch) for batch in one.val_dataloader()])
    assert torch.allclose(together, alone, atol=1e-5)


# ---- zero-shot


@pytest.mark.parametrize("options", [{}, {"normalize": True, "calibrate": True}, {"compat": True}])
def test_zero_shot_needs_no_training(reviews, weights, options):
    end = " " if options.get("compat") else ""
    film = data(reviews, prompt="{text} It is" + end)
    module = classifier("zero_shot", weights, **options)
    trainer = quiet()
    rows = [row for batch in trainer.predict(module, film) for row in batch]
    assert len(rows) == 7
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    trainer.test(module, film, verbose=False)
    right = sum(row["gold"] == row["label"] for row in rows) / 7
    assert trainer.callback_metrics["test_accuracy"].item() == pytest.approx(right)


def test_calibration_takes_away_what_the_names_score_without_a_text(reviews, weights):
    logits = []
    for calibrate in (False, True):
        module = classifier("zero_shot", weights, calibrate=calibrate)
        rows = quiet().predict(module, data(reviews, prompt="{text} It is"))[0]
        logits.append(torch.tensor([list(row["probabilities"].values()) for row in rows]).logit())
    taken = (logits[0] - logits[1])[:, 0]  # of two classes, the difference of what the two names score
    assert taken.abs().min() > 1e-3
    assert torch.allclose(taken, taken[:1].expand_as(taken), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "film", "sentence"),
    [
        (lambda w: classifier("lora"), {}, "method lora trains beside weights that stay"),
        (lambda w: classifier("head", w, lora_targets="wqkv"), {"label_names": "a,b"}, "the data's classes are"),
        (lambda w: classifier("lora", w, lora_targets="w9"), {}, "lora_targets names no 'w9' of this model"),
        (lambda w: classifier("zero_shot", w), {"prompt": "{text} is"}, "method zero_shot trains nothing"),
        (lambda w: classifier("zero_shot", w, bag="tfidf"), {}, "so it has no bag of words"),
        (lambda w: classifier("zero_shot", w, compat=True, calibrate=True), {}, "knows no normalize and no calibrate"),
        (lambda w: classifier("full", w), {"max_input_len": 65}, "needs 65 positions, but the model has max_seq_len"),
        (lambda w: classifier("full", w, layer_decay=0.0), {}, "layer_decay must be a share"),
        (lambda w: LlamaClassifier(NAMES, weights=w, vocab_size=300), {}, "the tokenizer has 300 tokens, but"),
    ],
)
def test_settings_that_do_not_fit_are_refused(reviews, weights, make, film, sentence):
    options = {"label_names": "bad,good", "max_input_len": 40, "batch_size": 8} | film
    with pytest.raises(ValueError, match=sentence):
        quiet(max_steps=1).fit(make(weights), Reviews(reviews, **options))


def test_the_courses_file_scores_as_the_same_weights_elsewhere(reviews, weights, tmp_path):
    llama = load_checkpoint(weights)
    torch.save(llama2c_pt(llama, course=True, **asdict(llama.config)), tmp_path / "stories.pt")
    found = []
    for file in (weights, str(tmp_path / "stories.pt")):
        rows = quiet().predict(classifier("zero_shot", file), data(reviews, prompt="{text} It is"))[0]
        found.append(torch.tensor([list(row["probabilities"].values()) for row in rows]))
    assert torch.allclose(*found, atol=1e-6)


def test_zero_shot_must_be_given_a_question(reviews, weights):
    with pytest.raises(ValueError, match="whose prompt ends with a space"):
        quiet().test(classifier("zero_shot", weights, compat=True), data(reviews, prompt="{text} It is"))
    with pytest.raises(ValueError, match=r"give data\.prompt"):
        quiet().test(classifier("zero_shot", weights), data(reviews))


# ---- the command line


def test_the_best_checkpoint_is_enough(reviews, tmp_path, capsys):
    best = fit(tmp_path / "run", f"{reviews}/film", "--model.bag=tfidf", "--model.pooling=mean")
    assert main(["test", f"--ckpt_path={best}", *QUIET]) == 0
    assert "test_macro_f1" in capsys.readouterr().out
    assert (tmp_path / "run" / "test-confusion.png").exists()
    assert main(["predict", f"--ckpt_path={best}", "--predictions.text_path", str(tmp_path / "out.txt"), *QUIET]) == 0
    rows = predictions(tmp_path / "run")
    assert [row["index"] for row in rows] == list(range(7))
    assert (tmp_path / "out.txt").read_text() == "".join(f"{row['label']} ||| {row['input']}\n" for row in rows)
    assert torch.load(best, weights_only=True)["hyper_parameters"]["label_names"] == NAMES
    swapped = ["--data.label_names", '{"1": "good", "0": "bad"}']  # which would call each class by the other's name
    capsys.readouterr()
    other = complaint(capsys, 1, "test", f"--ckpt_path={best}", *swapped, *QUIET)
    assert "learnt the classes ['bad', 'good'], in this order, not ['good', 'bad']" in other
    llama = load_checkpoint(best)  # and the trained Llama can be gone on with
    assert llama.config.dim == 32


def test_a_lora_checkpoint_holds_what_was_trained_and_export_makes_it_whole(reviews, weights, tmp_path, capsys):
    sizes = ["--model.lora_rank=2", "--model.lora_targets=wqkv,wo"]
    start = ["--model.method=lora", f"--model.weights={weights}", *sizes]
    best = fit(tmp_path / "run", f"{reviews}/film", *start)
    saved = torch.load(best, weights_only=True)
    assert not any("original" in name or "embeddings" in name for name in saved["state_dict"])
    assert main(["predict", f"--ckpt_path={best}", *QUIET]) == 0
    export(best, tmp_path / "whole.ckpt")
    with pytest.raises(ValueError, match=r"holds only what was trained beside .*base\.bin: export it"):
        load_checkpoint(best)
    os.rename(weights, tmp_path / "moved.bin")
    capsys.readouterr()
    gone = complaint(capsys, 1, "test", f"--ckpt_path={best}", *QUIET)
    assert "base.bin: say where with --model.base" in gone
    assert main(["test", f"--ckpt_path={best}", f"--model.base={tmp_path / 'moved.bin'}", *QUIET]) == 0
    export(best, tmp_path / "again.ckpt", base=tmp_path / "moved.bin")
    whole, again = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("whole", "again"))
    assert all(torch.equal(tensor, again["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    assert main(["predict", f"--ckpt_path={tmp_path / 'whole.ckpt'}", "--output_dir", str(tmp_path / "o"), *QUIET]) == 0
    assert torch.allclose(probabilities(tmp_path / "run"), probabilities(tmp_path / "o"), atol=1e-5)
    assert load_checkpoint(tmp_path / "whole.ckpt").config.dim == 32
    torch.manual_seed(5)
    save_checkpoint(Llama(LlamaConfig(vocab_size=257, **SIZES)), tmp_path / "other.bin", format="llama2c")
    capsys.readouterr()
    other = complaint(capsys, 1, "test", f"--ckpt_path={best}", f"--model.base={tmp_path / 'other.bin'}", *QUIET)
    assert "are not those that this checkpoint was trained beside" in other


def test_a_lora_checkpoint_is_small(reviews, tmp_path):
    config = LlamaConfig(vocab_size=257, dim=256, n_layers=4, n_heads=4, max_seq_len=64)
    save_checkpoint(Llama(config), tmp_path / "base.bin", format="llama2c")
    options = ["--model.method=lora", f"--model.weights={tmp_path / 'base.bin'}", "--model.lora_rank=2"]
    best = fit(tmp_path / "run", reviews, *options, "--model.lora_targets=wqkv,wo", steps=1)
    assert best.stat().st_size < 0.02 * (tmp_path / "base.bin").stat().st_size


@pytest.mark.parametrize("names", ["bad,good", '["bad", "good"]', "[bad, good]", '{"0": "bad", "1": "good"}', "file"])
def test_names_of_labels_in_every_form(reviews, tmp_path, names):
    if names == "file":
        names = str(tmp_path / "names.json")
        (tmp_path / "names.json").write_text('["bad", "good"]')
    best = fit(tmp_path / "run", reviews, "--data.label_names", names, steps=1)
    kept = torch.load(best, weights_only=True)
    assert kept["hyper_parameters"]["label_names"] == NAMES
    assert kept["datamodule_hyper_parameters"]["label_names"] == '{"0": "bad", "1": "good"}'
    assert main(["test", f"--ckpt_path={best}", *QUIET]) == 0


def test_data_without_labels_is_refused(text_file, capsys):
    argv = ["fit", "--model=LlamaClassifier", "--data=TextLM", f"--data_dir={text_file}", *QUIET]
    assert "these data name no classes" in complaint(capsys, 1, *argv)


def test_a_language_model_is_refused_reviews(reviews, tmp_path, capsys):
    argv = ["fit", "--model=LlamaLM", "--data=Reviews", f"--data_dir={reviews}", f"--output_dir={tmp_path}"]
    argv += ["--trainer.max_steps=1", *QUIET]
    assert "Reviews has no running text for a language model" in complaint(capsys, 1, *argv)


def test_zero_shot_on_the_real_checkpoint(zoo_data, tmp_path, capsys):
    stories = zoo_data / "stories260K"
    (tmp_path / "film.txt").write_text("1 ||| I love it\n0 ||| I hate it\n" * 10)
    argv = [
        "test", "--model=LlamaClassifier", "--model.method=zero_shot", f"--model.weights={stories / 'stories260K.bin'}",
        "--data=Reviews", f"--data_dir={tmp_path / 'film.txt'}", f"--data.tokenizer={stories / 'tok512.bin'}",
        "--data.label_names=bad,good", "--data.prompt={text} This movie is", "--data.test_fraction=1",
        "--data.val_fraction=0", "--data.max_input_len=128", f"--output_dir={tmp_path / 'asked'}", *QUIET,
    ]  # fmt: skip
    assert main(argv) == 0
    assert "test_accuracy" in capsys.readouterr().out
    assert (tmp_path / "asked" / "test-confusion.png").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["full", "lora", "zero_shot"])
def test_half_precision_on_a_gpu(reviews, weights, method):
    from zoo.callbacks import MixedPrecision

    asks = method == "zero_shot"
    film = data(reviews, prompt="{text} It is" if asks else None)
    module = classifier(method, weights, calibrate=asks, bag=None if asks else "tfidf")
    trainer = quiet(max_steps=20, limit_val_batches=0, accelerator="gpu", devices=1, callbacks=[MixedPrecision("fp16")])
    if not asks:
        trainer.fit(module, film)
    trainer.test(module, film, verbose=False)
    assert 0 <= trainer.callback_metrics["test_accuracy"] <= 1
    assert len(trainer.predict(module, film)[0]) == 7
