"""ICRTransformer: it learns, resumes to the bit, clips, says what it measures, answers from its checkpoint alone."""

import json
import re
from itertools import count

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from tests.commands import ROOT, complaint
from tests.resume import BATCH_END, assert_resume_is_bitwise, assert_same_weights, train
from zoo.__main__ import main
from zoo.callbacks import Checkpoint, MixedPrecision
from zoo.datamodules import LinearRegressionTasks, SyntheticConfigs
from zoo.icr import ICRTransformer, dmmse, load_model, predict_from_prompt, ridge
from zoo.optim import triangle

TASK = {"D": 2, "K": 4, "sigma2": 0.25, "M": 8}
SIZES = {"d_model": 16, "d_mlp": 32, "n_heads": 2, "n_layers": 2}
TINY = ROOT / "configs" / "tiny" / "icr.yaml"


def module(**options):
    return ICRTransformer(**{**TASK, **SIZES, "lr": 3e-3, **options})


def data(**options):
    defaults = {"batch_size": 16, "steps_per_batch": 4, "n_val": 64, "n_test": 64}
    return LinearRegressionTasks(**{**TASK, **defaults, **options})


def quiet(**options):
    defaults = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": -1, "limit_val_batches": 0,
    }  # fmt: skip
    return Trainer(**{**defaults, **options})


# ---- training


def test_it_learns():
    model = module(D=1, K=6, M="inf", d_model=32, d_mlp=64, lr=5e-3, warmup_steps=20)
    tasks = data(D=1, K=6, M="inf", batch_size=128, n_val=512)
    trainer = quiet(max_steps=400, limit_val_batches=None)
    trainer.validate(model, tasks, verbose=False)
    assert trainer.callback_metrics["val_true_to_ridge"] > 0.5  # it answers 0
    trainer.fit(model, tasks)
    assert trainer.global_step == 400
    assert trainer.callback_metrics["val_true_to_ridge"] < 0.3


@pytest.mark.parametrize("devices", [1, 2])
def test_resume_is_bitwise(devices, tmp_path):
    """In the middle of warm-up and after it, from checkpoints every 7 steps, with blocks of other lengths, too."""
    lengths = (length for i in count() for length in (7 if i == 0 else 3,))
    checkpoints = assert_resume_is_bitwise(
        lambda: module(warmup_steps=11, grad_clip=0.2),
        lambda: data(steps_per_batch=next(lengths), batch_size=16 // devices),
        tmp_path, max_steps=20, max_epochs=-1, devices=devices, limit_val_batches=0,
    )  # fmt: skip
    assert len(checkpoints) == 3
    steps = [torch.load(path, weights_only=True)["global_step"] for path in checkpoints]
    assert steps == [7, 14, 20]


def test_resume_after_a_validation(tmp_path):
    assert_resume_is_bitwise(
        lambda: module(warmup_steps=11), data, tmp_path, hooks=("on_validation_end",),
        max_steps=20, max_epochs=-1, val_check_interval=2, check_val_every_n_epoch=None,
    )  # fmt: skip


def test_neither_blocks_nor_evaluation_change_the_training(tmp_path):
    options = {"max_steps": 15, "max_epochs": -1, "check_val_every_n_epoch": None}
    expected = train(module(warmup_steps=5), data(steps_per_batch=1), tmp_path / "1", limit_val_batches=0, **options)
    for block in (4, 15, 40):
        got = train(
            module(warmup_steps=5), data(steps_per_batch=block), tmp_path / str(block), val_check_interval=1, **options
        )
        assert_same_weights(expected, got, f"blocks of {block}")


def test_two_processes_equal_one(tmp_path):
    options = {"max_steps": 8, "max_epochs": -1, "limit_val_batches": 0}
    one = train(module(grad_clip=0.2), data(batch_size=32), tmp_path / "one", **options)
    two = train(module(grad_clip=0.2), data(batch_size=16), tmp_path / "two", devices=2, **options)
    x, y, _ = data().task.draw(50, 0, "here")
    answers = []
    for weights in (one, two):
        model = module()
        model.load_state_dict(weights)
        answers.append(model(x, y).detach())
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-6)
    for name in one:
        if not name.endswith("qkv.bias"):  # a third of it, the keys', moves nothing: its gradients are rounding alone
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-6, msg=lambda m, name=name: name + m)


class Norms(ICRTransformer):
    """Notes the gradients' norm as the optimizer meets them, and the rate at which it moves."""

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        self.norms = [*getattr(self, "norms", []), nn.utils.get_total_norm([p.grad for p in self.parameters()]).item()]
        self.rates = [*getattr(self, "rates", []), optimizer.param_groups[0]["lr"]]


def test_gradients_are_clipped_and_the_rate_is_a_triangle():
    runs = {}
    for clip in (None, 0.1):
        runs[clip] = Norms(**TASK, **SIZES, lr=0.01, warmup_steps=5, grad_clip=clip)
        quiet(max_steps=12).fit(runs[clip], data())
    assert runs[0.1].norms == pytest.approx([min(norm, 0.1) for norm in runs[0.1].norms], rel=1e-4)
    assert runs[0.1].norms[0] == pytest.approx(0.1, rel=1e-4)
    assert max(runs[None].norms) > 0.3
    assert not torch.equal(runs[None].model.readout.weight, runs[0.1].model.readout.weight)
    assert runs[0.1].rates == pytest.approx([0.01 * triangle(step, 5, 12) for step in range(12)])
    constant = Norms(**TASK, **SIZES, lr=0.01)
    quiet(max_steps=6).fit(constant, data())
    assert constant.rates == [0.01] * 6


def test_a_loss_that_is_no_number_stops_the_run():
    with pytest.raises(ValueError, match=r"^the loss is nan after \d+ steps: lower lr, or set grad_clip$"):
        quiet(max_steps=40).fit(module(lr=1e30, grad_clip=None, use_prenorm=False), data())


def test_half_precision(tmp_path):
    callbacks = [MixedPrecision("fp16", devices=("cpu",)), Checkpoint(str(tmp_path))]
    trainer = quiet(max_steps=60, callbacks=callbacks, enable_checkpointing=True)
    model = Norms(**TASK, **SIZES, lr=1e-2, grad_clip=0.1)
    start = {name: p.clone() for name, p in model.named_parameters()}
    trainer.fit(model, data())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert not torch.equal(start["model.readout.weight"], model.model.readout.weight)
    assert max(model.norms[-40:]) <= 0.1001  # of the gradients themselves, the scale divided out
    assert "MixedPrecision" in torch.load(tmp_path / "last.ckpt", weights_only=True)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"compile": True}])
def test_on_a_gpu(options):
    model, tasks = module(D=1, K=6, M=8, lr=1e-2, **options), data(D=1, K=6, M=8, batch_size=64, n_val=512)
    trainer = quiet(max_steps=300, limit_val_batches=None, accelerator="gpu", devices=1)
    trainer.fit(model, tasks)
    assert trainer.callback_metrics["val_pretrain_to_dmmse"] < 0.2


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tmp_path):
    options = {"max_steps": 8, "max_epochs": -1, "limit_val_batches": 0}
    plain, compiled = (
        train(module(compile=c), data(), tmp_path / str(c), **options)["model.readout.weight"] for c in (False, True)
    )
    torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-4)


# ---- what it says of itself


def test_metrics_are_means_over_prompts_and_places():
    model, tasks = module(), data(n_val=50)
    trainer = quiet(limit_val_batches=None)
    trainer.validate(model, tasks, verbose=False)
    for kind, (prompts, _) in tasks.evaluation("val").items():
        x, y, w = prompts
        answer = model(x, y).detach()
        expected = {
            "mse": y, "noise_free": torch.einsum("bd,bkd->bk", w, x), "to_ridge": ridge(x, y, 0.25),
            "to_dmmse": dmmse(x, y, tasks.task.pool(), 0.25),
        }  # fmt: skip
        for name, target in expected.items():
            got = trainer.callback_metrics[f"val_{kind}_{name}"].item()
            assert got == pytest.approx((answer - target).square().mean().item(), rel=1e-5), name
    assert trainer.callback_metrics["val_loss"] == trainer.callback_metrics["val_pretrain_mse"]
    trainer.validate(module(M="inf"), data(M="inf"), verbose=False)
    assert trainer.callback_metrics.keys() >= {"val_true_to_ridge", "val_pretrain_to_ridge"}
    assert not any("dmmse" in name for name in trainer.callback_metrics)


def test_evaluation_in_two_processes_is_of_all_prompts(tmp_path):
    class Keep(ICRTransformer):
        def on_train_end(self):
            metrics = {name: value.item() for name, value in self.trainer.callback_metrics.items() if "val_" in name}
            (tmp_path / f"{self.trainer.world_size}-{self.global_rank}.json").write_text(json.dumps(metrics))

    for devices in (1, 2):
        model = Keep(**TASK, **SIZES, lr=0.0)
        tasks = data(n_val=51, batch_size=16 // devices)
        train(model, tasks, tmp_path / str(devices), devices=devices, max_steps=4, max_epochs=-1)
    metrics = [json.loads((tmp_path / name).read_text()) for name in ("1-0.json", "2-0.json", "2-1.json")]
    assert len(metrics[0]) > 6
    for other in metrics[1:]:
        assert other == pytest.approx(metrics[0], rel=1e-5)


# ---- the command line

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
MICRO = [
    "--model.d_model=16", "--model.d_mlp=16", "--model.n_layers=1", "--data.D=3", "--data.K=5", "--data.batch_size=8",
    "--data.n_val=40", "--data.n_test=40", "--trainer.max_steps=20", "--trainer.val_check_interval=1",
    "--trainer.enable_model_summary=false", *QUIET,
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("icr") / "run"
    assert main(["fit", f"--config={TINY}", *MICRO, "--data.M=6", f"--output_dir={out}"]) == 0
    return out


def test_fit_fills_the_folder(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert {"best.ckpt", "last.ckpt", "config.yaml"} <= {path.name for path in trained.iterdir()}
    events = EventAccumulator(str(trained)).Reload()
    tags = events.Tags()
    places = {tag for tag in tags["scalars"] if re.search(r"pretrain_mse.*/", tag)}
    assert len(places) == 5  # one for each place
    assert any("true" in tag and "noise_free" in tag for tag in tags["scalars"])
    names = {f"val_{kind}_{m}" for kind in ("pretrain", "true") for m in ("mse", "noise_free", "to_ridge", "to_dmmse")}
    assert names | {"train_loss", "val_loss"} <= set(tags["scalars"])
    assert len(tags["images"]) >= 1
    assert [event.step for event in events.Scalars("val_loss")] == [10, 20]  # steps, not blocks
    assert [event.step for event in events.Scalars(min(places))] == [10, 20]


def test_the_checkpoint_alone_is_enough(trained, tmp_path, capfd):
    alone = [f"--ckpt_path={trained / 'best.ckpt'}", *QUIET]
    assert main(["validate", *alone]) == 0
    out = capfd.readouterr().out
    assert "val_true_to_ridge" in out
    assert main(["test", *alone]) == 0
    assert "test_pretrain_to_dmmse" in capfd.readouterr().out
    assert (trained / "test-errors.png").stat().st_size > 5000
    model = load_model(trained / "best.ckpt")
    assert (model.config.M, model.config.D, model.config.K, model.config.sigma2) == (6, 3, 5, 0.25)
    prompts = [{"x_context": [[1, 0, 0], [0, 1, 0]], "y_context": [0.5, -1], "x_query": [[1, 1, 0], [0, 0, 2.5]]},
               {"x_context": [], "y_context": [], "x_query": [[1, 1, 1]]}]  # fmt: skip
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(map(json.dumps, prompts)))
    answers = tmp_path / "answers.jsonl"
    assert main(["predict", *alone, f"--data_dir={path}", f"--predictions.path={answers}"]) == 0, capfd.readouterr().err
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(row["index"], len(row["prediction"]), len(row["ridge"])) for row in rows] == [(0, 2, 2), (1, 1, 1)]
    for row, prompt in zip(rows, prompts, strict=True):
        x, y, query = (torch.tensor(value, dtype=torch.float32) for value in prompt.values())
        expected = predict_from_prompt(model, x.reshape(-1, 3), y, query)
        assert row["prediction"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert rows[1]["ridge"] == [0]
    w = torch.tensor([0.5, -1, 0]) / 1.25
    assert rows[0]["ridge"] == pytest.approx([w[0].item() + w[1].item(), 0], abs=1e-6)


def test_a_run_goes_on_where_it_stopped(trained, tmp_path):
    """20 steps as two times 10, through the command line."""
    out = tmp_path / "run"
    start = ["fit", f"--config={TINY}", *MICRO, "--data.M=6", "--model.warmup_steps=null", f"--output_dir={out}"]
    assert main([*start, "--trainer.max_steps=10"]) == 0
    assert main([*start, "--ckpt_path=last"]) == 0
    whole = tmp_path / "whole"
    assert main([*start, f"--output_dir={whole}"]) == 0
    weights = [torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (whole, out)]
    assert_same_weights(*weights, "the command line")


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--data.M=0"], 1, 'M must be a number of tasks, at least 1, or "inf", not 0'),
        (["--data.M=-3"], 1, "not -3"),
        (["--data.M=1.5"], 2, "M must be int or 'inf', not '1.5'"),
        (["--data.M=many"], 2, "M must be int or 'inf', not 'many'"),
        (["--data.M=65536"], 1, "M 65536 is more tasks than the pool holds: raise max_M, which is 32768"),
        (["--data.K=1"], 1, "K must be at least 2"),
        (["--data.D=0"], 1, "D must be at least 1"),
        (["--data.sigma2=0"], 1, "sigma2, the variance of the noise, must be positive"),
        (["--data.steps_per_batch=0"], 1, "steps_per_batch must be at least 1, not 0"),
        (["--data.batch_size=0"], 1, "batch_size must be at least 1, not 0"),
        (["--data_dir=prompts.jsonl"], 1, "drop --data_dir, which is for predict"),
        (["--model.n_heads=3"], 1, "d_model 16 does not divide into n_heads 3"),
        (["--model.lr=1e30", "--model.grad_clip=null", "--model.use_prenorm=false"], 1, "the loss is nan after"),
    ],
    ids=str,
)
def test_bad_settings_get_one_sentence(options, code, sentence, tmp_path, capsys):
    argv = ["fit", f"--config={TINY}", *MICRO, f"--output_dir={tmp_path / 'run'}", *options]
    assert sentence in complaint(capsys, code, *argv)


def test_there_must_be_something_to_predict(trained, tmp_path, capsys):
    alone = [f"--ckpt_path={trained / 'best.ckpt'}", *QUIET, f"--predictions.path={tmp_path / 'answers.jsonl'}"]
    assert "there are no prompts to predict: give a file" in complaint(capsys, 1, "predict", *alone)
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"x_context": [], "y_context": [], "x_query": [[1, 2]]}')
    said = complaint(capsys, 1, "predict", *alone, f"--data_dir={path}")
    assert "prompts.jsonl line 1: x_query has shape (1, 2), and must be rows of D = 3 numbers" in said
    assert "no/such.jsonl" in complaint(capsys, 1, "predict", *alone, "--data_dir=no/such.jsonl")
    assert "drop --data_dir" in complaint(capsys, 1, "test", *alone[:-1], f"--data_dir={path}")


def test_other_data_is_refused_in_a_sentence(tmp_path):
    options = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "max_epochs": 1}
    trainer = Trainer(default_root_dir=tmp_path, **options)
    with pytest.raises(ValueError, match="learns from LinearRegressionTasks, not from SyntheticConfigs"):
        trainer.fit(ICRTransformer(D=2, K=3, d_model=8, d_mlp=8), SyntheticConfigs())
    with pytest.raises(ValueError, match="the data has D 3, but the model 2: make them equal"):
        trainer.fit(ICRTransformer(D=2, K=3, d_model=8, d_mlp=8), LinearRegressionTasks(D=3, K=3))


def test_what_it_is_trained_on_is_what_its_checkpoint_says(tmp_path):
    model = ICRTransformer(D=2, K=3, d_model=8, d_mlp=8)
    train(model, LinearRegressionTasks(D=2, K=3, M=5, sigma2=0.5), tmp_path, hooks=(BATCH_END,), max_steps=2)
    (path,) = tmp_path.glob("*.ckpt")
    assert (load_model(path).config.M, load_model(path).config.sigma2) == (5, 0.5)
