"""Each other shared callback on a model of one weight matrix, with expectations worked out by hand."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision as MixedPrecisionPlugin
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from tests.callbacks.plane import Plane, Points, trainer
from zoo.callbacks import Checkpoint, EarlyStopping, MixedPrecision, Plots, Predictions, Samples, Throughput
from zoo.errors import UserError

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
    monkeypatch.setattr("zoo.callbacks.throughput.device_flops", lambda device, dtype: 1e6)
    t = trainer(tmp_path, Throughput(every_n_steps=2), max_steps=6, log_every_n_steps=1)
    t.fit(Plane(), Points())
    assert t.logged_metrics["mfu"] == pytest.approx(t.logged_metrics["samples_per_second"] * 24 / 1e6)


def test_mfu_counts_every_batch_by_its_own_operations(tmp_path, monkeypatch):
    counted = []

    class Uneven(Points):  # batches of two samples and of one sample in turn
        def train_dataloader(self):
            return torch.utils.data.DataLoader(self.dataset("train"), batch_size=2)

    class Sizes(Plane):
        def flops_per_item(self, batch):
            counted.append(len(batch[0]))
            return 10.0 * len(batch[0])

    monkeypatch.setattr("zoo.callbacks.throughput.device_flops", lambda device, dtype: 1e6)
    t = trainer(tmp_path, Throughput(every_n_steps=4), max_steps=8, log_every_n_steps=1)
    t.fit(Sizes(), Uneven(3))
    # Of three samples two take 20 operations and one takes 10, which are counted once in a window for each size.
    assert t.logged_metrics["mfu"] == pytest.approx(t.logged_metrics["samples_per_second"] * 50 / 3 / 1e6)
    assert counted == [2, 1, 2, 1]


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


def test_only_empty_files_and_earlier_predictions_are_overwritten(tmp_path):
    def predict(path, text_path=None, data=None):
        module, points = Plane(), Points(7)
        points.save_hyperparameters({"data": str(data)})
        trainer(tmp_path, Predictions(str(path), text_path and str(text_path), overwrite=True)).predict(module, points)

    old, data, link = tmp_path / "old.jsonl", tmp_path / "data.jsonl", tmp_path / "link.jsonl"
    for content in ("", '{"index": 0, "y": 1}\n'):
        old.write_text(content)
        predict(old)
        assert len(old.read_text().splitlines()) == 7
    # Earlier predictions that are the input now, also by another name, and in a folder of data.
    content = old.read_bytes()
    link.symlink_to(old)
    for path in (old, link):
        with pytest.raises(UserError, match=r"is an input of this prediction: give another --predictions\.path"):
            predict(path, data=old)
    with pytest.raises(UserError, match="is in the folder of the data"):
        predict(old, data=tmp_path)
    # Files that are not predictions.
    for wrong in (b"PK\x03\x04\xff", b'{"x": 1, "label": 2}\n', b"[1]\n", b"model: 1\n", b"\n", b'{"index": "a"}'):
        data.write_bytes(wrong)
        with pytest.raises(UserError, match=r"is not a file of earlier predictions: give another --predictions\.path"):
            predict(data)
        assert data.read_bytes() == wrong
    data.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"is not a file of earlier predictions: give another --predictions\.text_path"):
        predict(tmp_path / "new.jsonl", data)
    assert (old.read_bytes(), data.read_bytes()) == (content, b"mine")


def test_only_lines_of_earlier_predictions_are_overwritten(tmp_path):
    class Labels(Plane):
        def predict_step(self, batch, batch_idx):
            return [
                row | {"label": "a", "input": f"text {row['index']}"} for row in super().predict_step(batch, batch_idx)
            ]

    def predict(text_path, data="rows.txt", name="new.jsonl"):
        points = Points(3)
        points.save_hyperparameters({"data": str(data)})
        trainer(tmp_path, Predictions(str(tmp_path / name), str(text_path), overwrite=True)).predict(Labels(), points)

    out, gold = tmp_path / "out.txt", tmp_path / "sst-test.txt"
    for _ in range(2):  # the second time both files are replaced
        predict(out)
        assert out.read_text() == "a ||| text 0\na ||| text 1\na ||| text 2\n"
    with pytest.raises(UserError, match=r"is not a file of earlier predictions: give another --predictions\.text_path"):
        predict(out, name="other.jsonl")  # its JSON lines are unknown
    for content in ("b ||| text 0\na ||| text 1\na ||| text 2\n", out.read_text() + "a ||| text 3\n", "a ||| text 0\n"):
        gold.write_text(content)
        with pytest.raises(UserError, match="is not a file of earlier predictions"):
            predict(gold)
        with pytest.raises(UserError, match="is one of the files of the data"):
            predict(gold, data=tmp_path / "sst")
        assert gold.read_text() == content
    gold.write_text(out.read_text())
    with pytest.raises(UserError, match="is one of the files of the data"):
        predict(gold, data=tmp_path / "sst")


def test_figures_of_predictions_are_next_to_them_and_kept(tmp_path):
    class Scored(Plane):
        def predict_step(self, batch, batch_idx):
            return [row | {"prediction": row["y"], "target": 1.0} for row in super().predict_step(batch, batch_idx)]

    def predict(name, overwrite=False):
        run, path = tmp_path / "run", str(tmp_path / "out" / name)
        trainer(run, Predictions(path, overwrite=overwrite), Plots()).predict(Scored(), Points(4))

    predict("y.v1.jsonl")
    predict("z.jsonl")
    figure = tmp_path / "out" / "y.v1-scatter.png"
    names = ["y.v1-scatter.png", "y.v1.jsonl", "z-scatter.png", "z.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert not list((tmp_path / "run").glob("*"))
    figure.write_bytes(b"mine")
    (tmp_path / "out" / "y.v1.jsonl").unlink()
    with pytest.warns(UserWarning, match=r"y\.v1-scatter\.png exists already and is not drawn again: add --overwrite"):
        predict("y.v1.jsonl")
    assert figure.read_bytes() == b"mine"
    predict("y.v1.jsonl", overwrite=True)
    assert figure.read_bytes()[:4] == b"\x89PNG"


def test_figures_of_other_data_are_not_replaced(tmp_path):
    def evaluate(data):
        plots = Plots()
        run = SimpleNamespace(
            state=SimpleNamespace(fn=TrainerFn.TESTING), callbacks=[plots], default_root_dir=tmp_path,
            is_global_zero=True, datamodule=SimpleNamespace(hparams={"data": data}),
        )  # fmt: skip
        values = torch.rand(4, 1)
        plots.on_test_batch_end(run, None, {"prediction": values, "target": values})
        plots.on_test_end(run, None)
        return (tmp_path / "test-scatter.png").read_bytes()

    first = evaluate("first.csv")
    second = evaluate("first.csv")
    assert second != first
    with pytest.warns(UserWarning, match=r"test-scatter\.png shows other data, first\.csv, and is not replaced: give"):
        assert evaluate("other.csv") == second


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


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: EarlyStopping(patience=1, min_delta=-0.1), "--early_stopping.min_delta must be"),
        (lambda: EarlyStopping(patience=1, min_delta=math.nan), "--early_stopping.min_delta must be"),
        (lambda: MixedPrecision(devices=("gpu",)), "each of --mixed_precision.devices must be one of cpu, cuda"),
        (lambda: Samples(max_new_tokens=-1), "--samples.max_new_tokens must be at least 0"),
        (lambda: Samples(temperature=-1.0), "--samples.temperature must be a finite number of at least 0"),
    ],
)
def test_settings_outside_their_range_are_refused_by_the_constructor(build, sentence):
    with pytest.raises(UserError, match=sentence):
        build()
