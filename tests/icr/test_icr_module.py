"""ICRTransformer: training, bitwise resume, clipping, metrics."""

import json
from functools import partial

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.resume import BATCH_END, assert_resume_is_bitwise, assert_same_weights, train
from tests.trainers import quiet_trainer
from zoo.callbacks import Checkpoint, MixedPrecision
from zoo.datamodules import LinearRegressionTasks, SyntheticConfigs
from zoo.errors import UserError
from zoo.icr import ICRTransformer, Prompts, dmmse, load_model, ridge
from zoo.icr.cuda_graph import GraphedNetwork
from zoo.optim import AdamW, triangle

# Lightning's advice: a val_dataloader, more workers.
pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")

TASK = {"D": 2, "K": 4, "sigma2": 0.25, "M": 8}
SIZES = {"d_model": 16, "d_mlp": 32, "n_heads": 2, "n_layers": 2}
quiet = partial(quiet_trainer, limit_val_batches=0)


def module(**options):
    return ICRTransformer(**{**TASK, **SIZES, "lr": 3e-3, **options})


def data(**options):
    defaults = {"batch_size": 16, "n_val": 64, "n_test": 64}
    return LinearRegressionTasks(**{**TASK, **defaults, **options})


# ---- training


def test_training_approaches_ridge():
    model = module(D=1, K=6, M="inf", d_model=32, d_mlp=64, lr=5e-3, warmup_steps=20)
    tasks = data(D=1, K=6, M="inf", batch_size=128, n_val=512)
    trainer = quiet(max_steps=400, limit_val_batches=None)
    trainer.validate(model, tasks, verbose=False)
    assert trainer.callback_metrics["val_true_to_ridge"] > 0.5  # it predicts nearly 0
    trainer.fit(model, tasks)
    assert trainer.global_step == 400
    assert trainer.callback_metrics["val_true_to_ridge"] < 0.3


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_resume_is_bitwise(devices, accumulate, tmp_path):
    """During warm-up and after it, from checkpoints every 7 batches: with accumulation inside a window."""
    checkpoints = assert_resume_is_bitwise(
        lambda: module(warmup_steps=11, grad_clip=0.2), lambda: data(batch_size=16 // devices), tmp_path, every=7,
        max_steps=20, max_epochs=-1, devices=devices, limit_val_batches=0, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    steps = [torch.load(path, weights_only=True)["global_step"] for path in checkpoints]
    assert steps == ([7, 14] if accumulate == 1 else [2, 4, 7, 9, 11, 14, 16, 18])


def test_resume_across_epochs_is_bitwise(tmp_path):
    """An epoch of 5 batches ends inside an accumulation window of 2, which is then closed early."""
    assert_resume_is_bitwise(
        lambda: module(warmup_steps=11), data, tmp_path, max_steps=10, limit_train_batches=5, limit_val_batches=0,
        accumulate_grad_batches=2,
    )  # fmt: skip


def test_accumulation_averages_batches(tmp_path):
    """Two batches of 16 per step have the gradient of their 32 prompts."""
    tasks, model, reference = data(), module(grad_clip=None), module(grad_clip=None)
    quiet(max_steps=1, accumulate_grad_batches=2).fit(model, tasks)
    x, y = (torch.cat(both) for both in list(zip(tasks.draw(0), tasks.draw(1), strict=True))[:2])
    quiet(max_steps=1).fit(reference, DataLoader(TensorDataset(x, y), batch_size=32))
    for name, tensor in reference.state_dict().items():
        if not name.endswith("qkv.bias"):  # the gradient of the keys' bias is rounding error only
            torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_resume_after_validation_is_bitwise(tmp_path):
    assert_resume_is_bitwise(
        lambda: module(warmup_steps=11), data, tmp_path, hooks=("on_validation_end",),
        max_steps=20, max_epochs=-1, val_check_interval=8, check_val_every_n_epoch=None,
    )  # fmt: skip


def test_evaluation_does_not_change_training(tmp_path):
    options = {"max_steps": 15, "max_epochs": -1, "check_val_every_n_epoch": None}
    expected = train(module(warmup_steps=5), data(), tmp_path / "without", limit_val_batches=0, **options)
    for interval in (1, 4, 15):
        result = train(module(warmup_steps=5), data(), tmp_path / str(interval), val_check_interval=interval, **options)
        assert_same_weights(expected, result, f"val_check_interval {interval}")


def test_batch_n_of_a_run_is_draw_n():
    class Record(ICRTransformer):
        def training_step(self, batch, batch_idx):
            batches.append(batch)
            return super().training_step(batch, batch_idx)

    for accumulate in (1, 2):
        batches: list[Prompts] = []
        quiet(max_steps=4, accumulate_grad_batches=accumulate).fit(Record(**TASK, **SIZES), data())
        assert len(batches) == 4 * accumulate
        for number, batch in enumerate(batches):
            assert all(torch.equal(*both) for both in zip(batch, data().draw(number), strict=True))


def test_a_step_of_training_equals_a_plain_loop():
    """Weights after 12 steps, against a loop of draws, torch's clipping and the zoo's AdamW."""
    model, reference, tasks = module(warmup_steps=5), module(), data()
    quiet(max_steps=12).fit(model, tasks)
    optimizer = AdamW(reference.model.parameters(), lr=3e-3, betas=(0.9, 0.999), eps=1e-8)
    for step in range(12):
        optimizer.param_groups[0]["lr"] = 3e-3 * triangle(step, 5, 12)
        x, y, _ = tasks.draw(step)
        optimizer.zero_grad()
        (reference.model(x, y) - y).square().mean().backward()
        nn.utils.clip_grad_norm_(reference.model.parameters(), 1.0)
        optimizer.step()
    assert_same_weights(reference.model.state_dict(), model.model.state_dict(), "the loop")


def test_two_processes_equal_one(tmp_path):
    options = {"max_steps": 8, "max_epochs": -1, "limit_val_batches": 0}
    one = train(module(grad_clip=0.2), data(batch_size=32), tmp_path / "one", **options)
    two = train(module(grad_clip=0.2), data(batch_size=16), tmp_path / "two", devices=2, **options)
    x, y, _ = data().task.draw(50, 0, "here")
    predictions = []
    for weights in (one, two):
        model = module()
        model.load_state_dict(weights)
        predictions.append(model(x, y).detach())
    torch.testing.assert_close(predictions[0], predictions[1], rtol=0, atol=1e-6)
    for name in one:
        if not name.endswith("qkv.bias"):  # the gradient of the keys' bias is rounding error only
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-6, msg=lambda m, name=name: name + m)


class Norms(ICRTransformer):
    """Records the norm of the gradients that the optimizer receives, and its learning rate."""

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        self.norms = [*getattr(self, "norms", []), nn.utils.get_total_norm([p.grad for p in self.parameters()]).item()]
        self.rates = [*getattr(self, "rates", []), optimizer.param_groups[0]["lr"]]


def test_gradient_clipping_and_triangular_rate():
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


def test_logged_gradient_norm_is_that_before_clipping(tmp_path):
    logger = CSVLogger(tmp_path)
    norms = {}
    for clip in (None, 0.01):
        trainer = quiet(max_steps=1, log_every_n_steps=1, logger=logger)
        trainer.fit(module(grad_clip=clip), data())
        norms[clip] = trainer.callback_metrics["grad_norm"].item()
    assert norms[None] == norms[0.01] > 0.1


def test_gradient_clip_val_of_the_trainer_is_obeyed():
    model = Norms(**TASK, **SIZES, grad_clip=None)
    quiet(max_steps=3, gradient_clip_val=0.05).fit(model, data())
    assert model.norms == pytest.approx([0.05] * 3, rel=1e-4)


def test_muon_trains_the_matrices():
    model = module(optimizer="muon", warmup_steps=2)
    before = model.model.layers[0].qkv.weight.clone()
    quiet(max_steps=4).fit(model, data())
    assert type(model.optimizers().optimizer).__name__ == "MuonAdamW"
    assert not torch.equal(before, model.model.layers[0].qkv.weight)


def test_warmup_needs_an_end():
    with pytest.raises(UserError, match=r"warmup_steps needs an end .* give --trainer\.max_steps"):
        quiet(max_steps=-1).fit(module(warmup_steps=3), data())


def test_nonfinite_loss_stops_the_run():
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
    assert max(model.norms[-40:]) <= 0.1001  # the norms of unscaled gradients
    assert "MixedPrecision" in torch.load(tmp_path / "last.ckpt", weights_only=True)


class DrawnOnTheCPU(LinearRegressionTasks):
    """The same prompts on every device, which otherwise draw other ones."""

    device = torch.device("cpu")

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return move_data_to_device(batch, device)


def trained_on(accelerator, **options):
    """The errors after 40 steps."""
    model = module(D=1, K=6, M=8, lr=1e-2, **options)
    tasks = DrawnOnTheCPU(**{**TASK, "D": 1, "K": 6, "M": 8}, batch_size=64, n_val=512)
    callbacks = [MixedPrecision("off", tf32=False)]
    trainer = quiet(max_steps=40, limit_val_batches=None, accelerator=accelerator, devices=1, callbacks=callbacks)
    trainer.fit(model, tasks)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # the compiler's advice
@pytest.mark.parametrize("options", [{}, {"compile": True}])
def test_training_on_a_gpu(options):
    assert trained_on("gpu", **options) == pytest.approx(trained_on("cpu"), rel=0.01)


def test_a_recorded_network_serves_batches_of_one_shape(monkeypatch):
    recorded = []

    def record(call, examples, num_warmup_iters):
        recorded.append(examples)
        return lambda x, y: call.network(x, y) + 1

    monkeypatch.setattr("torch.cuda.make_graphed_callables", record)
    network = GraphedNetwork(lambda x, y: y)
    x, y = torch.randn(4, 3, 2), torch.zeros(4, 3)
    assert network(x, y).eq(1).all()
    assert network(x, y).eq(1).all()
    assert network(x[:2], y[:2]).eq(0).all()
    assert network(x, y[None]).eq(0).all()
    assert len(recorded) == 1


def test_a_recording_keeps_no_graph_of_autograd(monkeypatch):
    outputs = []

    def record(call, examples, num_warmup_iters):
        outputs.append(call(*examples))  # the recorded graphs keep the memory of this tensor
        return call

    monkeypatch.setattr("torch.cuda.make_graphed_callables", record)
    own = module().model
    GraphedNetwork(own)(torch.randn(4, own.config.K, own.config.D), torch.zeros(4, own.config.K))
    assert outputs[0].grad_fn is None
    # The accumulator is created again, in the stream of training.
    weight = own.readout.weight
    weight.view_as(weight).grad_fn.next_functions[0][0].metadata["is_new"] = True
    assert "is_new" not in weight.view_as(weight).grad_fn.next_functions[0][0].metadata


@pytest.mark.slow
def test_compiled_training_equals_eager_training(tmp_path):
    options = {"max_steps": 8, "max_epochs": -1, "limit_val_batches": 0}
    plain, compiled = (
        train(module(compile=c), data(), tmp_path / str(c), **options)["model.readout.weight"] for c in (False, True)
    )
    torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-4)


# ---- metrics


def test_metrics_are_means_over_prompts_and_positions():
    model, tasks = module(), data(n_val=50)
    trainer = quiet(limit_val_batches=None)
    trainer.validate(model, tasks, verbose=False)
    for kind, (prompts, _) in tasks.evaluation("val")._asdict().items():
        x, y, w = prompts
        prediction = model(x, y).detach()
        expected = {
            "mse": y, "noise_free": torch.einsum("bd,bkd->bk", w, x), "to_ridge": ridge(x, y, 0.25),
            "to_dmmse": dmmse(x, y, tasks.task.pool(), 0.25),
        }  # fmt: skip
        for name, target in expected.items():
            got = trainer.callback_metrics[f"val_{kind}_{name}"].item()
            assert got == pytest.approx((prediction - target).square().mean().item(), rel=1e-5), name
    assert trainer.callback_metrics["val_loss"] == trainer.callback_metrics["val_pretrain_mse"]
    trainer.validate(module(M="inf"), data(M="inf"), verbose=False)
    assert trainer.callback_metrics.keys() >= {"val_true_to_ridge", "val_pretrain_to_ridge"}
    assert not any("dmmse" in name for name in trainer.callback_metrics)


def test_two_processes_evaluate_all_prompts(tmp_path):
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


# ---- data


def test_other_data_is_refused_in_a_sentence():
    model = ICRTransformer(D=2, K=3, d_model=8, d_mlp=8)
    with pytest.raises(UserError, match="learns from LinearRegressionTasks, not from SyntheticConfigs"):
        model.check_data(SyntheticConfigs())
    for options in ({"D": 3, "K": 3}, {"D": 2, "K": 4}):
        tasks, name = LinearRegressionTasks(**options), "D" if options["D"] == 3 else "K"
        sentence = f"the data has {name} {options[name]}, but the model {options[name] - 1}: make them equal"
        with pytest.raises(UserError, match=sentence):
            model.check_data(tasks)
        with pytest.raises(UserError, match=sentence):
            quiet(max_steps=1, limit_val_batches=1, num_sanity_val_steps=1).fit(model, tasks)
    with pytest.raises(TypeError, match=r"takes Prompts or tensors \(x, y\).*not a Tensor"):
        quiet(max_steps=1).fit(model, DataLoader(torch.zeros(4, 3)))


def test_checkpoint_stores_the_task_of_the_training_data(tmp_path):
    model = ICRTransformer(D=2, K=3, d_model=8, d_mlp=8)
    train(model, LinearRegressionTasks(D=2, K=3, M=5, sigma2=0.5), tmp_path, hooks=(BATCH_END,), every=2, max_steps=2)
    (path,) = tmp_path.glob("*.ckpt")
    assert (load_model(path).config.M, load_model(path).config.sigma2) == (5, 0.5)
