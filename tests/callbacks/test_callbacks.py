"""Each shared callback on a model of one weight matrix, with expectations worked out by hand."""

import errno
import json
import os
import signal

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision as MixedPrecisionPlugin
from torch import nn

from zoo.callbacks import Checkpoint, EarlyStopping, MixedPrecision, Predictions, Samples, Throughput
from zoo.callbacks.checkpoint import AtomicCheckpointIO
from zoo.datamodules import ZooDataModule


class Points(ZooDataModule):
    """Points on a plane, with their indices."""

    def __init__(self, samples: int = 8) -> None:
        super().__init__(batch_size=2)
        self.samples = samples

    def dataset(self, split):
        x = torch.randn(self.samples, 4, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True), torch.arange(self.samples))


class Plane(LightningModule):
    """Linear regression whose validation losses are given in advance."""

    item = "samples"

    def __init__(self, val_losses=()) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.val_losses = iter(val_losses)
        self.sampled_at = []

    def count(self, batch):
        return len(batch[0])

    def flops_per_item(self, batch):
        return 24.0

    def sample_text(self, prompt, max_new_tokens, temperature):
        self.sampled_at.append(self.global_step)
        return f"{prompt} and <b>more</b>"

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def on_validation_epoch_end(self):
        self.log("val_loss", next(self.val_losses, 0.0), sync_dist=True)

    def validation_step(self, batch, batch_idx):
        pass

    def predict_step(self, batch, batch_idx):
        y = self.net(batch[0])[:, 0]
        return [{"index": i, "y": v} for i, v in zip(batch[2].tolist(), y.tolist(), strict=True)]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(folder, *callbacks, **options):
    defaults = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": -1,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        "use_distributed_sampler": False,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **options})


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


# ---- checkpoint


def test_best_and_last_checkpoint(tmp_path):
    checkpoint = Checkpoint()
    t = trainer(tmp_path, checkpoint, max_epochs=4)
    t.fit(Plane([3.0, 1.0, 2.0, float("nan")]), Points())
    assert step_of(tmp_path / "best.ckpt") == 8  # after the second of four epochs of 4 steps
    assert step_of(tmp_path / "last.ckpt") == 16
    assert checkpoint.best_score == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_best_score_is_restored_on_resume(tmp_path):
    trainer(tmp_path, Checkpoint(), max_epochs=2).fit(Plane([1.0, 2.0]), Points())
    trainer(tmp_path, Checkpoint(), max_epochs=4).fit(Plane([1.5, 1.2]), Points(), ckpt_path=tmp_path / "last.ckpt")
    assert step_of(tmp_path / "best.ckpt") == 4


def test_last_is_saved_every_n_steps_and_at_the_end(tmp_path):
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_):
            last = tmp_path / "last.ckpt"
            seen.append(step_of(last) if last.exists() else 0)

    trainer(tmp_path, Checkpoint(every_n_steps=2), Watch(), max_steps=7, limit_val_batches=0).fit(Plane(), Points())
    assert seen == [0, 0, 2, 2, 4, 4, 6]
    assert step_of(tmp_path / "last.ckpt") == 7


def test_checkpoint_names_an_unknown_monitor(tmp_path):
    with pytest.raises(ValueError, match=r"'val_los' is not logged by this model, which logs val_loss"):
        trainer(tmp_path, Checkpoint(monitor="val_los"), max_epochs=1).fit(Plane(), Points())


def test_early_stopping_names_an_unknown_monitor(tmp_path):
    with pytest.raises(ValueError, match=r"early_stopping.monitor 'val_los' is not logged"):
        trainer(tmp_path, EarlyStopping("val_los", patience=1), max_epochs=1).fit(Plane(), Points())


def test_a_failed_save_stops_all_processes(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match=r"cannot save the checkpoint|another process could not save"):
        trainer(tmp_path, Checkpoint(), max_epochs=1, strategy="ddp_fork", devices=2).fit(Plane(), Points())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_accumulated_step(tmp_path, signum):
    class Send(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 1:  # in the middle of a window of 3
                os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    with pytest.raises(SystemExit):
        trainer(tmp_path, Send(), Checkpoint(), max_steps=9, accumulate_grad_batches=3).fit(Plane(), Points(20))
    assert step_of(tmp_path / "last.ckpt") == 1
    assert signal.getsignal(signum) == before or signum == signal.SIGINT  # Lightning ignores SIGINT in shutdown
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_failed_save_keeps_the_old_file_and_says_why(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"last\.ckpt \(No space left on device\); the one before it is untouched"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_kill_during_a_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    if (child := os.fork()) == 0:
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert torch.load(path)["step"] == 1
    monkeypatch.undo()
    AtomicCheckpointIO().save_checkpoint({"step": 3}, path)  # the partial file does not prevent the next save
    assert torch.load(path)["step"] == 3


def test_loading_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="pickled Python objects"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "evil").exists()


# ---- early stopping


def test_early_stopping_after_patience_validations_without_improvement(tmp_path):
    t = trainer(tmp_path, EarlyStopping(patience=2), max_epochs=10)
    t.fit(Plane([3.0, 2.0, 2.5, 2.2, 1.0]), Points())
    assert t.current_epoch == 4


def test_a_changed_patience_applies_on_resume(tmp_path):
    trainer(tmp_path, EarlyStopping(patience=5), Checkpoint(), max_epochs=2).fit(Plane([1.0, 2.0]), Points())
    t = trainer(tmp_path, EarlyStopping(patience=2), Checkpoint(), max_epochs=10)
    t.fit(Plane([3.0, 3.0, 3.0]), Points(), ckpt_path=tmp_path / "last.ckpt")
    assert t.current_epoch == 3  # one bad validation before the stop, one after it


def test_without_patience_nothing_stops(tmp_path):
    t = trainer(tmp_path, EarlyStopping(), max_epochs=4)
    t.fit(Plane([1.0, float("nan"), 2.0, 3.0]), Points())
    assert t.current_epoch == 4


# ---- mixed precision


class Autocast(Callback):
    """Note in which type the network's matrix product ran."""

    def on_fit_start(self, trainer, module):
        module.net.register_forward_hook(lambda *args: setattr(self, "dtype", args[-1].dtype))


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_mixed_precision_autocasts_on_its_devices(tmp_path, name, dtype):
    seen = Autocast()
    t = trainer(
        tmp_path, MixedPrecision(name, devices=("cpu",)), seen, Checkpoint(), max_steps=3, gradient_clip_val=1.0
    )
    t.fit(Plane(), Points())
    assert seen.dtype == dtype
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["state_dict"]["net.weight"].dtype == torch.float32
    assert ("MixedPrecision" in saved) == (name == "fp16")  # the scaler's state
    resumed = trainer(tmp_path, MixedPrecision(name, devices=("cpu",)), Checkpoint(), max_steps=4)
    resumed.fit(Plane(), Points(), ckpt_path=tmp_path / "last.ckpt")
    if name == "fp16":
        scale = saved["MixedPrecision"]["scale"]
        assert scale < 65536  # halved since the start
        assert resumed.precision_plugin.scaler.get_scale() in (scale, scale / 2)


def test_gradients_are_clipped_after_they_are_unscaled(tmp_path):
    class Clipped(Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            if module.net.weight.grad is not None:
                self.norm = nn.utils.get_total_norm([p.grad for p in module.parameters()]).item()

    seen = Clipped()
    trainer(tmp_path, MixedPrecision(devices=("cpu",)), seen, max_steps=12, gradient_clip_val=0.01).fit(
        Plane(), Points()
    )
    # The first steps overflow and are skipped while the scale of 65536 is being halved.
    assert seen.norm == pytest.approx(0.01, rel=1e-2)


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled, but CUDA is not available")
@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_mixed_precision_is_bf16_where_the_gpu_has_it(monkeypatch, tmp_path, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    t = trainer(tmp_path, MixedPrecision(), max_steps=1)
    monkeypatch.setattr(type(t.strategy), "root_device", torch.device("cuda"))
    t.callbacks[0].setup(t, Plane(), "fit")
    assert t.precision_plugin.precision == expected


def test_mixed_precision_keeps_a_cpu_and_an_explicit_precision(tmp_path):
    t = trainer(tmp_path, MixedPrecision(), max_steps=1)
    t.fit(Plane(), Points())
    assert not isinstance(t.precision_plugin, MixedPrecisionPlugin)
    t = trainer(tmp_path, MixedPrecision("fp16", devices=("cpu",)), max_steps=1, precision="bf16-mixed")
    t.fit(Plane(), Points())
    assert t.precision_plugin.precision == "bf16-mixed"


# ---- throughput, samples, predictions


def test_throughput_is_items_per_second_of_training(tmp_path, monkeypatch):
    now = 0.0

    class Clock(Callback):  # a step takes a second, a validation a hundred
        def on_train_batch_start(self, *_):
            nonlocal now
            now += 1

        def on_validation_epoch_start(self, *_):
            nonlocal now
            now += 100

    monkeypatch.setattr("zoo.callbacks.throughput.time.perf_counter", lambda: now)
    t = trainer(tmp_path, Throughput(every_n_steps=4), Clock(), max_epochs=3, log_every_n_steps=1)
    t.fit(Plane(), Points())
    assert t.logged_metrics["samples_per_second"] == 2
    assert "mfu" not in t.logged_metrics  # no CPU's peak is known


def test_mfu_is_flops_per_second_over_the_peak(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.callbacks.throughput.get_available_flops", lambda device, dtype: 1e6)
    t = trainer(tmp_path, Throughput(every_n_steps=2), max_steps=6, log_every_n_steps=1)
    t.fit(Plane(), Points())
    assert t.logged_metrics["mfu"] == pytest.approx(t.logged_metrics["samples_per_second"] * 24 / 1e6)


def test_samples_in_tensorboard_are_unchanged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = Plane()
    logger = TensorBoardLogger(tmp_path, name="", version="")
    samples = Samples("Once", every_n_validations=2)
    trainer(tmp_path, samples, max_epochs=4, logger=logger, log_every_n_steps=1).fit(module, Points())
    assert module.sampled_at == [8, 16]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tensors("sample/text_summary")[0].tensor_proto.string_val[0] == b"    Once and <b>more</b>"


def test_predictions_are_json_lines_in_input_order(tmp_path):
    t = trainer(tmp_path, Predictions())
    t.predict(Plane(), Points(7), return_predictions=False)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(7))
    with pytest.raises(ValueError, match=r"predictions\.jsonl exists already"):
        trainer(tmp_path, Predictions()).predict(Plane(), Points(7), return_predictions=False)


def test_two_processes_share_the_predictions(tmp_path):
    t = trainer(tmp_path, Predictions(), strategy="ddp_fork", devices=2)
    t.predict(Plane(), Points(7), return_predictions=False)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(7))
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_text_path_needs_a_model_that_predicts_labels(tmp_path):
    with pytest.raises(ValueError, match=r"Plane predicts no label: drop --predictions\.text_path"):
        trainer(tmp_path, Predictions(text_path=str(tmp_path / "out.txt"))).predict(Plane(), Points(7))
    assert not list(tmp_path.glob("*.tmp"))
    (tmp_path / "out.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"give another --predictions\.text_path"):
        trainer(tmp_path, Predictions(text_path=str(tmp_path / "out.txt"))).predict(Plane(), Points(7))
    both = str(tmp_path / "both.txt")
    with pytest.raises(ValueError, match=r"both\.txt cannot hold both kinds of lines"):
        trainer(tmp_path, Predictions(both, both)).predict(Plane(), Points(7))
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_a_failed_prediction_leaves_no_file(tmp_path):
    class Fail(Plane):
        def predict_step(self, batch, batch_idx):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        trainer(tmp_path, Predictions()).predict(Fail(), Points(), return_predictions=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Checkpoint(mode="least"),
        lambda: Checkpoint(every_n_steps=0),
        lambda: EarlyStopping(patience=0),
        lambda: Throughput(every_n_steps=0),
        lambda: Samples(every_n_validations=0),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"must be|is"):
        make()
