"""RevDEQLM with the Trainer and the command line: training, resuming, two processes, precision, logging, text."""

import json

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.commands import ROOT, TEXT, complaint
from tests.resume import VALIDATION_END, assert_resume_is_bitwise, train
from tests.trainers import quiet_trainer
from zoo.__main__ import main
from zoo.callbacks import Checkpoint, MixedPrecision
from zoo.datamodules import TextLM
from zoo.revdeq import RevDEQLM

TINY = ROOT / "configs" / "tiny" / "revdeq.yaml"
SIZES = {
    "vocab_size": 257, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "mlp_layers": 1,
    "max_position_embeddings": 64,
}  # fmt: skip
MICRO = [
    "--model.hidden_size=16", "--model.num_heads=2", "--model.intermediate_size=32",
    "--model.max_position_embeddings=32", "--data.seq_len=16", "--data.batch_size=4", "--trainer.max_steps=4",
    "--trainer.val_check_interval=2", "--trainer.limit_val_batches=2", "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu", "--samples.max_new_tokens=8", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]  # fmt: skip


def data(text, folder, **options):
    return TextLM(str(text), seq_len=16, cache_dir=str(folder / "cache"), **{"batch_size": 4, **options})


def module(**options):
    return RevDEQLM(**{**SIZES, "lr": 1e-2, "warmup_steps": 2, **options})


@pytest.mark.parametrize("block", ["paper", "post_norm"])
def test_overfits_its_text(text_file, tmp_path, block):
    trainer = quiet_trainer(max_steps=120, val_check_interval=120, check_val_every_n_epoch=None)
    model = module(block=block)
    trainer.fit(model, data(text_file, tmp_path))
    val_loss = trainer.callback_metrics["val_loss"]
    assert val_loss < 1  # a unigram model of it has 3.0
    trainer.validate(model, data(text_file, tmp_path, eval_stride=4), verbose=False)
    assert trainer.callback_metrics["val_loss"] < val_loss  # at least 12 tokens of context for each


@pytest.mark.parametrize("devices", [1, 2])
def test_resume_is_bitwise(text_file, tmp_path, devices):
    assert_resume_is_bitwise(
        lambda: module(dropout=0.1), lambda: data(text_file, tmp_path), tmp_path, max_steps=6, max_epochs=-1,
        devices=devices, accumulate_grad_batches=2, every=4, val_check_interval=4, check_val_every_n_epoch=None,
        limit_val_batches=1, hooks=(VALIDATION_END,),
    )  # fmt: skip


@pytest.mark.parametrize("option", ["devices", "accumulate_grad_batches"])
def test_two_half_batches_equal_one_batch(text_file, tmp_path, option):
    weights = {}
    for parts in (1, 2):
        torch.manual_seed(0)
        model, text = module(lr=1e-3), data(text_file, tmp_path, batch_size=8 // parts)
        options = {"max_steps": 4, "max_epochs": -1, "limit_val_batches": 0, option: parts}
        weights[parts] = train(model, text, tmp_path / str(parts), **options)
    for name, one in weights[1].items():
        torch.testing.assert_close(one, weights[2][name], rtol=0, atol=2e-6, msg=lambda m, name=name: name + m)


def test_reversible_training_equals_unrolled_training(text_file, tmp_path):
    losses = {}
    for backward in ("reversible", "unroll"):
        torch.manual_seed(0)
        trainer = quiet_trainer(max_steps=20, val_check_interval=20, check_val_every_n_epoch=None, limit_val_batches=4)
        trainer.fit(module(backward=backward, dropout=0.1), data(text_file, tmp_path))
        losses[backward] = trainer.callback_metrics["val_loss"].item()
    assert losses["reversible"] == pytest.approx(losses["unroll"], rel=1e-3)


@pytest.mark.slow
def test_compiled_training_equals_eager_training(text_file, tmp_path):
    weights = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = module(compile=compile, dropout=0.1, lr=1e-3)
        quiet_trainer(max_steps=3, limit_val_batches=0).fit(model, data(text_file, tmp_path))
        weights.append(model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_training_keeps_exact_gradients(text_file, tmp_path, precision):
    logger = CSVLogger(tmp_path / "log", name="", version="")
    trainer = quiet_trainer(
        max_steps=12, limit_val_batches=0, gradient_clip_val=1.0, log_every_n_steps=1, logger=logger,
        callbacks=[MixedPrecision(precision, devices=("cpu",))],
    )  # fmt: skip
    trainer.fit(module(), data(text_file, tmp_path))
    assert trainer.callback_metrics["train_loss"] < 5
    assert trainer.callback_metrics["reconstruction_error"] < 1e-6


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler reads that of z
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_on_a_gpu(text_file, tmp_path, precision):
    trainer = quiet_trainer(
        max_steps=20, limit_val_batches=0, gradient_clip_val=1.0, accelerator="gpu", devices=1, log_every_n_steps=1,
        callbacks=[MixedPrecision(precision), Checkpoint(str(tmp_path / "run"))], enable_checkpointing=True,
        logger=CSVLogger(tmp_path),
    )  # fmt: skip
    trainer.fit(module(compile=True), data(text_file, tmp_path))
    assert trainer.callback_metrics["train_loss"] < 5
    assert trainer.callback_metrics["reconstruction_error"] < 1e-6


# ---- through the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a finished run of four steps."""
    folder = tmp_path_factory.mktemp("revdeq")
    (folder / "fox.txt").write_text(TEXT)
    argv = ["fit", f"--config={TINY}", *MICRO, f"--data_dir={folder / 'fox.txt'}", f"--output_dir={folder / 'run'}"]
    assert main(argv) == 0
    return folder / "run"


def test_tensorboard_has_residual_evaluations_and_reconstruction_error(run):
    events = EventAccumulator(str(run)).Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "val/loss", "val/ppl", "val/word_ppl"} <= set(scalars)
    assert [point.value for point in events.Scalars("train/evaluations")] == [8.0] * 4
    assert all(0 < point.value < 1 for point in events.Scalars("train/residual"))
    assert all(0 <= point.value < 1e-6 for point in events.Scalars("train/reconstruction_error"))
    assert any("sample" in tag for tag in events.Tags()["tensors"])


def test_checkpoint_alone_tests_predicts_and_generates(run, tmp_path, capsys):
    best = f"--ckpt_path={run / 'best.ckpt'}"
    assert main(["test", best, "--trainer.enable_progress_bar=false"]) == 0
    assert "test_word_ppl" in capsys.readouterr().out
    assert main(["predict", best, f"--predictions.path={tmp_path / 'p.jsonl'}"]) == 0
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert set(json.loads(lines[0])) == {"index", "text", "tokens", "loss", "ppl"}
    capsys.readouterr()
    options = ["--prompt=The ", "--max_new_tokens=60", "--temperature=0.8", "--top_k=20", "--top_p=0.9"]
    assert main(["generate", best, *options]) == 0  # beyond its 32 positions
    text = capsys.readouterr().out
    assert text.startswith("The ")
    assert len(text.encode()) > 40
    assert main(["generate", best, "--prompts=['The quick', 'f']", "--temperature=0", "--max_new_tokens=9"]) == 0


def test_warm_start_is_an_option_of_generate(run, tmp_path, capsys):
    argv = ["fit", f"--config={TINY}", *MICRO, f"--data_dir={run.parent / 'fox.txt'}", f"--output_dir={tmp_path}"]
    assert main([*argv, "--model.block=post_norm"]) == 0
    texts = []
    settings = ["--model.num_fixed_point_iterations=60", "--model.fixed_point_tol=1e-6", "--model.warm_start=true"]
    for options in (settings[:1], settings):
        capsys.readouterr()
        best = f"--ckpt_path={tmp_path / 'best.ckpt'}"
        assert main(["generate", best, "--prompt=The quick", "--temperature=0", "--max_new_tokens=15", *options]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_training_without_logging(text_file, tmp_path):
    quiet_trainer(max_steps=2, limit_val_batches=0, log_every_n_steps=0).fit(module(), data(text_file, tmp_path))


def test_prompt_that_is_not_utf8_is_refused(run, capsys):
    sentence = complaint(capsys, 1, "generate", f"--ckpt_path={run / 'best.ckpt'}", "--prompt=caf\udce9")
    assert "contains bytes that are not UTF-8" in sentence


def test_reconstruction_error_stops_training_with_one_sentence(run, tmp_path, capsys):
    argv = ["fit", f"--config={TINY}", *MICRO, f"--data_dir={run.parent / 'fox.txt'}", f"--output_dir={tmp_path}"]
    options = ["--model.beta=0.9", "--model.num_fixed_point_iterations=12"]
    with pytest.warns(UserWarning, match=r"12 steps of beta 0\.9 may lose .* about 6 steps are safe"):
        sentence = complaint(capsys, 1, *argv, *options)
    assert "inverting 12 steps of beta 0.9 missed their start by" in sentence


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--model.beta=1"], 1, "beta must be in (0, 2) and not be 1"),
        (["--model.num_fixed_point_iterations=0"], 1, "num_fixed_point_iterations must be at least 1"),
        (["--model.backward=unroll", "--model.fixed_point_tol=1e-3"], 1, "a tolerance excludes backward=unroll"),
        (["--data.seq_len=40"], 1, "set --data.seq_len to at most 32"),
        (["--model.hidden_sice=4"], 2, "did you mean"),
    ],
)
def test_wrong_settings_are_one_sentence(run, tmp_path, capsys, options, code, sentence):
    argv = ["fit", f"--config={TINY}", *MICRO, f"--data_dir={run.parent / 'fox.txt'}", f"--output_dir={tmp_path}"]
    assert sentence in complaint(capsys, code, *argv, *options)
    assert not (tmp_path / "last.ckpt").exists()


def test_text_shorter_than_a_window_is_one_sentence(tmp_path, capsys):
    (tmp_path / "short.txt").write_text("too short")
    argv = ["fit", f"--config={TINY}", *MICRO, f"--data_dir={tmp_path / 'short.txt'}", f"--output_dir={tmp_path}"]
    sentence = complaint(capsys, 1, *argv)
    assert "but one window needs 17: lower" in sentence
    assert sentence.endswith("seq_len")


def test_generate_refuses_compile(run, capsys):
    assert "drop --compile" in complaint(capsys, 1, "generate", f"--ckpt_path={run / 'best.ckpt'}", "--compile")
