"""LlamaClassifier: training by each method, bitwise resume, checkpoints of adapters, and the command line."""

import os

import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.commands import complaint
from tests.llama.reviews import (
    NAMES,
    QUIET,
    SIZES,
    classifier,
    data,
    probabilities,
    read_predictions,
    write_weights,
)
from tests.resume import VALIDATION_END, assert_resume_is_bitwise
from tests.trainers import quiet_trainer
from zoo.__main__ import main
from zoo.datamodules import Reviews
from zoo.errors import UserError
from zoo.layers.lora import merge_lora
from zoo.llama import Llama, LlamaClassifier, LlamaConfig, LlamaLM, load_checkpoint, save_checkpoint
from zoo.llama.export_classifier import export
from zoo.training.batches import TextBatch


def fit(out, reviews, *options, steps=6, sizes=SIZES):
    """Train by the command line; returns the best checkpoint."""
    argv = [
        "fit", "--model=LlamaClassifier", "--data=Reviews", *[f"--model.{k}={v}" for k, v in sizes.items()],
        f"--data_dir={reviews}", "--data.label_names=bad,good", "--data.batch_size=8", "--data.max_input_len=40",
        f"--output_dir={out}", f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}",
        "--checkpoint.monitor=val_accuracy", "--checkpoint.mode=max", "--model.lr=1e-2", *QUIET, *options,
    ]  # fmt: skip
    assert main([str(a) for a in argv]) == 0
    return out / "best.ckpt"


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_training_reaches_high_accuracy(reviews, pooling):
    torch.manual_seed(0)
    module, trainer = classifier(pooling=pooling, lm_weight=0.1), quiet_trainer(max_steps=40, limit_val_batches=0)
    trainer.fit(module, data(reviews))
    trainer.test(module, data(reviews), verbose=False)
    assert trainer.callback_metrics["test_accuracy"] > 0.8


@pytest.mark.parametrize(("method", "devices", "accumulate"), [("full", 1, 3), ("lora", 2, 1), ("head", 2, 1)])
def test_resume_is_bitwise(reviews, weights, tmp_path, method, devices, accumulate):
    """With accumulation from the middle of a window, whose batches have different numbers of tokens."""
    bow_features, lm_weight = ("naive_bayes" if method == "head" else None), (0.5 if accumulate > 1 else 0)
    every = 4 if accumulate == 1 else 8
    assert_resume_is_bitwise(
        lambda: classifier(method, weights, dropout=0.1, bow_features=bow_features, lm_weight=lm_weight),
        lambda: Reviews(reviews, "bad,good", batch_size=4, max_input_len=40),
        tmp_path / "runs", max_steps=6, max_epochs=-1, devices=devices, every=every, val_check_interval=every,
        accumulate_grad_batches=accumulate, check_val_every_n_epoch=None, limit_val_batches=1, hooks=(VALIDATION_END,),
    )  # fmt: skip


def test_metrics_equal_scikit_learn(reviews):
    module, film, trainer = classifier(), data(reviews), quiet_trainer()
    trainer.validate(module, film, verbose=False)
    rows = [row for batch in trainer.predict(module, data(f"{reviews}/film-dev.txt")) for row in batch]
    gold, predicted = ([int(row[name]) for row in rows] for name in ("gold", "label"))
    trainer.validate(module, film, verbose=False)
    assert trainer.callback_metrics["val_accuracy"].item() == pytest.approx(
        sum(g == p for g, p in zip(gold, predicted, strict=True)) / 13
    )
    macro_f1 = f1_score(gold, predicted, average="macro")
    assert trainer.callback_metrics["val_macro_f1"].item() == pytest.approx(macro_f1)
    assert module.confusion_matrix is not None
    assert module.confusion_matrix.tolist() == confusion_matrix(gold, predicted, labels=[0, 1]).tolist()
    assert module.figures()["confusion"].axes[0].get_title().startswith("accuracy 0.")


@pytest.mark.parametrize("method", ["head", "lora"])
def test_only_the_head_and_the_adapted_matrices_change(reviews, weights, method):
    module = classifier(method, weights, lora_targets="wqkv,wo")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    quiet_trainer(max_steps=3, limit_val_batches=0).fit(module, data(reviews))
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    adapted = {
        f"model.layers.{i}.attention.{m}.parametrizations.weight.0.{x}"
        for i in range(2) for m in ("wqkv", "wo") for x in "ab"
    }  # fmt: skip
    assert changed == {"head.linear.weight", "head.linear.bias"} | (adapted if method == "lora" else set())


def test_merged_lora_equals_unmerged(reviews, weights):
    module, film = classifier("lora", weights), data(reviews)
    quiet_trainer(max_steps=10, limit_val_batches=0).fit(module, film)
    module.eval()
    batch = next(iter(film.val_dataloader()))
    with torch.no_grad():
        before = module(batch)
        assert not torch.allclose(before, classifier("head", weights).eval()(batch), atol=1e-2)
        merge_lora(module.model)
        assert torch.allclose(module(batch), before, atol=1e-5)
    assert module.model.state_dict().keys() == load_checkpoint(weights).state_dict().keys()


def test_layer_decay_sets_learning_rates(reviews, weights):
    module, trainer = classifier("full", weights, layer_decay=0.5), quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(module, data(reviews))
    groups = trainer.optimizers[0].param_groups
    scale_by_id = {id(p): group["initial_lr"] / 1e-2 for group in groups for p in group["params"]}
    scales = {name: scale_by_id[id(p)] for name, p in module.named_parameters()}
    assert scales["head.linear.weight"] == scales["model.norm.weight"] == scales["model.layers.1.ffn_norm.weight"] == 1
    assert scales["model.layers.0.attention.wo.weight"] == 0.5
    assert scales["model.tok_embeddings.weight"] == 0.25


def test_batched_logits_equal_single_rows(reviews, weights):
    module, film = classifier("full", weights).eval(), data(reviews)
    single = Reviews(reviews, "bad,good", batch_size=1, max_input_len=40)
    with torch.no_grad():
        batched = torch.cat([module(batch) for batch in film.val_dataloader()])
        one_by_one = torch.cat([module(batch) for batch in single.val_dataloader()])
    assert torch.allclose(batched, one_by_one, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda w: classifier("lora"), "method=lora needs pretrained weights"),
        (lambda w: classifier("lora", w, lora_targets="w9"), "lora_targets names no 'w9' of this model"),
        (lambda w: classifier("zero_shot", w), "set --model LlamaZeroShot"),
        (lambda w: classifier("all", w), "method must be one of full, head, lora, not 'all'"),
        (lambda w: classifier("full", w, layer_decay=0.0), "layer_decay must be above 0"),
        (lambda w: classifier("full", w, layer_decay=0.5, optimizer="muon"), "under optimizer=muon"),
        (lambda w: classifier("full", w, bow_features="counts"), "bow_features must be one of tfidf, naive_bayes"),
        (lambda w: LlamaClassifier(NAMES, weights=w, vocab_size=300), "the tokenizer has 300 tokens, but"),
        (lambda w: LlamaClassifier([], vocab_size=300), "label_names is empty"),
        (lambda w: LlamaClassifier(NAMES), "needs vocab_size"),
        (
            lambda w: LlamaClassifier(NAMES, vocab_size=300, label_spellings=["0"]),
            "label_spellings has 1 entries for 2",
        ),
    ],
)
def test_contradictory_arguments_are_refused(weights, make, sentence):
    with pytest.raises(UserError, match=sentence):
        make(weights)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label_names": "a,b"}, "the data's classes are"),
        ({"max_input_len": 65}, r"exceeds the model's context of 64 tokens: set --data\.max_input_len to at most 64"),
    ],
)
def test_data_that_does_not_fit_is_refused(reviews, options, sentence):
    settings = {"label_names": "bad,good", "max_input_len": 40, "batch_size": 8} | options
    with pytest.raises(UserError, match=sentence):
        classifier().check_data(Reviews(reviews, **settings))


# ---- the command line


def test_best_checkpoint_is_enough_for_test_and_predict(reviews, tmp_path, capsys):
    best = fit(tmp_path / "run", f"{reviews}/film", "--model.bow_features=tfidf", "--model.pooling=mean")
    assert main(["test", f"--ckpt_path={best}", *QUIET]) == 0
    assert "test_macro_f1" in capsys.readouterr().out
    assert (tmp_path / "run" / "test-confusion.png").exists()
    assert main(["predict", f"--ckpt_path={best}", "--predictions.text_path", str(tmp_path / "out.txt"), *QUIET]) == 0
    rows = read_predictions(tmp_path / "run")
    assert [row["index"] for row in rows] == list(range(7))
    assert (tmp_path / "out.txt").read_text() == "".join(f"{row['label']} ||| {row['input']}\n" for row in rows)
    assert torch.load(best, weights_only=True)["hyper_parameters"]["label_names"] == NAMES
    # Names in another order would exchange the classes.
    swapped = ["--data.label_names", '{"1": "good", "0": "bad"}']
    capsys.readouterr()
    refusal = complaint(capsys, 1, "test", f"--ckpt_path={best}", *swapped, *QUIET)
    assert "trained with the classes ['bad', 'good'], in this order, not ['good', 'bad']" in refusal
    llama = load_checkpoint(best)  # the trained Llama can be used for further training
    assert llama.config.dim == 32


def test_lora_checkpoint_stores_the_adapter_only_and_export_adds_the_weights(reviews, weights, tmp_path, capsys):
    sizes = ["--model.lora_rank=2", "--model.lora_targets=wqkv,wo"]
    best = fit(tmp_path / "run", f"{reviews}/film", "--model.method=lora", f"--model.weights={weights}", *sizes)
    saved = torch.load(best, weights_only=True)
    assert not any("original" in name or "embeddings" in name for name in saved["state_dict"])
    assert main(["predict", f"--ckpt_path={best}", *QUIET]) == 0
    export(best, tmp_path / "full.ckpt")
    with pytest.raises(UserError, match=r"best\.ckpt holds only .*base\.bin: "):
        load_checkpoint(best)
    # The file of pretrained weights moves: its new path must be given.
    os.rename(weights, tmp_path / "moved.bin")
    capsys.readouterr()
    missing = complaint(capsys, 1, "test", f"--ckpt_path={best}", *QUIET)
    assert "base.bin: give their path with --model.base" in missing
    assert main(["test", f"--ckpt_path={best}", f"--model.base={tmp_path / 'moved.bin'}", *QUIET]) == 0
    export(best, tmp_path / "again.ckpt", base=tmp_path / "moved.bin")
    full, again = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("full", "again"))
    assert all(torch.equal(tensor, again["state_dict"][name]) for name, tensor in full["state_dict"].items())
    # The exported checkpoint needs no other file and predicts the same.
    assert main(["predict", f"--ckpt_path={tmp_path / 'full.ckpt'}", "--output_dir", str(tmp_path / "o"), *QUIET]) == 0
    before, after = (probabilities(read_predictions(tmp_path / folder)) for folder in ("run", "o"))
    assert torch.allclose(before, after, atol=1e-5)
    assert load_checkpoint(tmp_path / "full.ckpt").config.dim == 32
    # Other weights than those of training are refused.
    other = write_weights(tmp_path / "other.bin", seed=5)
    capsys.readouterr()
    refusal = complaint(capsys, 1, "test", f"--ckpt_path={best}", f"--model.base={other}", *QUIET)
    assert "differ from the pretrained weights of this checkpoint" in refusal


def test_lora_checkpoint_is_small(reviews, tmp_path):
    config = LlamaConfig(vocab_size=257, dim=256, n_layers=4, n_heads=4, max_seq_len=64)
    save_checkpoint(Llama(config), tmp_path / "base.bin", format="llama2c")
    options = ["--model.method=lora", f"--model.weights={tmp_path / 'base.bin'}", "--model.lora_rank=2"]
    best = fit(tmp_path / "run", reviews, *options, "--model.lora_targets=wqkv,wo", steps=1, sizes={})
    assert best.stat().st_size < 0.02 * (tmp_path / "base.bin").stat().st_size


@pytest.mark.parametrize("options", [
    {}, {"lm_weight": 0.5}, {"tie_embeddings": False}, {"tie_embeddings": False, "lm_weight": 0.5}, {"method": "head"},
    {"method": "lora", "lora_rank": 4}, {"method": "lora", "lora_targets": "w2"},
    {"method": "lora", "lora_targets": "wo", "lm_weight": 0.5},
])  # fmt: skip
def test_flops_are_those_of_the_products_that_are_computed(weights, options, monkeypatch):
    monkeypatch.setattr("zoo.layers.linear.ONEDNN", False)  # torch does not count oneDNN's products
    if "method" not in options:  # torch does not count a product that is added in place, here to a matrix's gradient
        monkeypatch.setattr("zoo.layers.linear_nll._add_product", lambda total, a, b: total.add_(a @ b))
    module = classifier(weights=weights if "method" in options else None, **options)
    tokens = torch.randint(257, (4, 24))
    targets = torch.zeros(4, 1)
    batch = TextBatch(tokens, None, targets, index=torch.arange(4), texts=["a"] * 4, features=None)
    monkeypatch.setattr(module, "step_loss", lambda batch, *losses: sum(loss.mean for loss in losses))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module.training_step(batch, 0).backward()
    assert 4 * module.flops_per_item(batch) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("names", ["bad,good", '["bad", "good"]', "[bad, good]", '{"0": "bad", "1": "good"}', "file"])
def test_label_names_are_accepted_in_every_form(reviews, tmp_path, names):
    if names == "file":
        names = str(tmp_path / "names.json")
        (tmp_path / "names.json").write_text('["bad", "good"]')
    best = fit(tmp_path / "run", reviews, "--data.label_names", names, steps=1)
    stored = torch.load(best, weights_only=True)
    assert stored["hyper_parameters"]["label_names"] == NAMES
    assert stored["datamodule_hyper_parameters"]["label_names"] == '{"0": "bad", "1": "good"}'
    assert main(["test", f"--ckpt_path={best}", *QUIET]) == 0


def test_data_without_labels_is_refused(text_file, capsys):
    argv = ["fit", "--model=LlamaClassifier", "--data=TextLM", f"--data_dir={text_file}", *QUIET]
    assert "TextLM has no label_names, which LlamaClassifier needs" in complaint(capsys, 1, *argv)


def test_language_model_refuses_reviews(reviews, tmp_path, capsys):
    argv = ["fit", "--model=LlamaLM", "--data=Reviews", f"--data_dir={reviews}", f"--output_dir={tmp_path}"]
    argv += ["--trainer.max_steps=1", *QUIET]
    assert "Reviews has no running text for a language model" in complaint(capsys, 1, *argv)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["full", "lora"])
def test_half_precision_on_a_gpu(reviews, weights, method):
    from zoo.callbacks import MixedPrecision

    film, module = data(reviews), classifier(method, weights, bow_features="tfidf")
    options = {"accelerator": "gpu", "devices": 1, "callbacks": [MixedPrecision("fp16")]}
    trainer = quiet_trainer(max_steps=20, limit_val_batches=0, **options)
    trainer.fit(module, film)
    trainer.test(module, film, verbose=False)
    assert 0 <= trainer.callback_metrics["test_accuracy"] <= 1
    assert len(trainer.predict(module, film)[0]) == 7


def test_weights_of_a_language_model_in_a_classifier_are_refused_in_one_sentence():
    sizes = {"vocab_size": 300, "dim": 16, "n_layers": 1, "n_heads": 2}
    checkpoint = {"state_dict": LlamaLM(**sizes).state_dict()}
    classifier = LlamaClassifier(NAMES, **sizes)
    classifier.on_load_checkpoint(checkpoint)  # it has no names of classes to compare
    with pytest.raises(UserError, match=r"does not fit this LlamaClassifier: head\.linear\.weight is missing"):
        classifier.load_state_dict(checkpoint["state_dict"])
