"""What the loggers of a run receive: names, steps, learning rates, baselines, layout, figures and samples."""

import csv
import json
import os
from typing import ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data, parse_session_start_info_plugin_data
from torch import nn

from tests.commands import TEXT
from tests.commands import fit as zoo_fit
from zoo.baselines import NGram
from zoo.callbacks import Charts, EarlyStopping, Plots, Samples
from zoo.callbacks.charts import changed_settings, learning_rates
from zoo.callbacks.loggers import chart_name, group_names, log_figure, log_text
from zoo.datamodules import TextLM
from zoo.registry import load_class

NAMES = {
    "train_loss": "train/loss",
    "train_lm_loss": "train/lm_loss",
    "val_loss": "val/loss",
    "val_pretrain_mse": "val/pretrain_mse",
    "test_word_ppl": "test/word_ppl",
    "pretrain_loss": "pretrain/loss",
    "grad_norm": "train/grad_norm",
    "epoch": "train/epoch",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "val": "train/val",
    "val_loss/dataloader_idx_0": "val/loss/dataloader_idx_0",
    "baseline/loss_unigram": "baseline/loss_unigram",
    "hp_metric": "hp_metric",
}


@pytest.mark.parametrize("name", NAMES)
def test_chart_name_groups_each_metric_and_leaves_grouped_names(name):
    assert chart_name(name) == NAMES[name]
    assert chart_name(chart_name(name)) == NAMES[name]


class Line(LightningModule):
    """A linear model with two parameter groups of one learning rate and a third of another, halved after each step."""

    charts: ClassVar = {"loss": ("train/loss", "val/loss", "baseline/loss_.*"), "never logged": ("val/loss_of",)}
    hparam_metrics = ("val_loss",)

    def __init__(self, lr: float = 0.1, name: str = "line") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)
        self.step_size = nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        loss = (self.step_size * self.second(self.first(batch))).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", float(self.global_step))

    def on_validation_epoch_start(self):
        self.log("step", float(self.global_step))

    def configure_optimizers(self):
        lr = self.hparams["lr"]
        groups = [
            {"params": [self.step_size], "lr": 2 * lr},
            {"params": [self.first.weight, self.second.weight], "lr": lr},
            {"params": [self.first.bias, self.second.bias], "lr": lr, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def figures(self):
        figure = Figure(figsize=(2, 2))
        figure.subplots().plot([0, 1])
        return {"line": figure}

    def sample_text(self, prompt, max_new_tokens, temperature):
        return f"after {self.global_step} steps\n<b>"


def fit(folder, *loggers, baselines=None):
    early = EarlyStopping(patience=9)  # monitors val_loss, by the module's name
    trainer = Trainer(
        max_steps=6, val_check_interval=3, log_every_n_steps=2, logger=list(loggers), accelerator="cpu",
        callbacks=[Charts(baselines), Plots(), Samples(), early], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Line(), loader(12), loader(2))
    return trainer


def loader(samples):
    return torch.utils.data.DataLoader(
        torch.randn(samples, 4, generator=torch.Generator().manual_seed(0)), batch_size=2
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trainer, its TensorBoard events, and the folder of its CSVLogger."""
    folder = tmp_path_factory.mktemp("charts")
    calls = []

    def baselines(trainer, module, data):
        calls.append((trainer.global_step, type(module)))
        return {"loss_zero": 2.5}

    loggers = TensorBoardLogger(folder / "board", "", "", default_hp_metric=False), CSVLogger(folder / "csv", "", "")
    trainer = fit(folder, *loggers, baselines=baselines)
    assert calls == [(3, Line)]  # once
    return trainer, EventAccumulator(str(folder / "board")).Reload(), folder / "csv"


def points(events, tag):
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


def test_names_are_grouped_in_the_loggers_only(run):
    trainer, events, _ = run
    assert {"train_loss", "val_loss"} <= trainer.callback_metrics.keys()
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "val/loss", "train/lr", "train/lr_2", "train/epoch", "baseline/loss_zero"
    }  # fmt: skip


def test_scores_figures_and_samples_of_a_validation_have_one_step(run):
    _, events, _ = run
    assert points(events, "val/loss") == [(3, 3.0), (6, 6.0)]
    assert [event.step for event in events.Images("figures/line")] == [3, 6]
    assert [event.step for event in events.Tensors("sample/text_summary")] == [3, 6]


def test_learning_rate_of_every_step_once_per_peak(run):
    _, events, _ = run
    # The peak 0.1 has 25 parameters, the peak 0.2 a single one.
    assert points(events, "train/lr") == [(step, 0.1 * 0.5**step) for step in range(6)]
    assert points(events, "train/lr_2") == [(step, 0.2 * 0.5**step) for step in range(6)]


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("every", [0, 100])
def test_learning_rates_of_the_steps_before_an_error_are_written(tmp_path, every):
    class Fails(Line):
        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == 3:
                raise RuntimeError("at step 3")

    logger = TensorBoardLogger(tmp_path, "", "", default_hp_metric=False)
    trainer = Trainer(
        max_steps=6, log_every_n_steps=every, logger=logger, accelerator="cpu", callbacks=[Charts()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="at step 3"):
        trainer.fit(Fails(), loader(6), loader(2))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [step for step, _ in points(events, "train/lr")] == [0, 1, 2]


def test_learning_rates_ignore_groups_without_parameters():
    weight, bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    groups = [{"params": [bias], "lr": 3.0}, {"params": [], "lr": 1.0}, {"params": [weight], "lr": 2.0}]
    assert learning_rates([torch.optim.SGD(groups)]) == {"train/lr": 2.0, "train/lr_2": 3.0}


def test_baselines_are_lines_from_the_first_to_the_last_step_in_the_chart_of_their_metric(run):
    _, events, _ = run
    assert points(events, "baseline/loss_zero") == [(0, 2.5), (3, 2.5), (6, 2.5)]
    # Before the first validation all charts, then those with a line.
    first, last = (_charts(event.tensor_proto) for event in events.Tensors("custom_scalars__config__"))
    assert [*first] == ["loss", "never logged", "learning rate", "gradient norm", "speed"]
    assert last == {"loss": ["train/loss$", "val/loss$", "baseline/loss_.*$"], "learning rate": ["train/lr.*$"]}


def _charts(tensor):
    """TensorBoard's layout of a model: title of a chart -> regular expressions."""
    [category] = Layout.FromString(tensor.string_val[0]).category
    assert category.title == "Line"
    return {chart.title: list(chart.multiline.tag) for chart in category.chart}


def test_hyperparameters_have_the_metric(run):
    _, events, _ = run
    assert [value.name.tag for value in _experiment(events).metric_infos] == ["val/loss"]
    start = parse_session_start_info_plugin_data(_plugin_data(events, "_hparams_/session_start_info"))
    assert (start.hparams["lr"].number_value, start.hparams["name"].string_value) == (0.1, "line")
    assert "_hparams_/session_end_info" in events.summary_metadata
    assert not any(column.differs for column in _experiment(events).hparam_infos)


@pytest.mark.parametrize(
    ("name", "settings", "fixed"),
    [
        ("LlamaLM", {"dim": 16, "n_heads": 2, "n_layers": 1, "lr": 0.5}, {"vocab_size": 9}),
        ("RegressLM", {"dim": 16, "point": "mean", "lr": 0.5}, {"vocab_size": 9}),
        ("ICRTransformer", {"warmup_steps": 7}, {"D": 2, "K": 3}),
    ],
)
def test_settings_that_differ_from_the_defaults_are_the_first_columns(name, settings, fixed, tmp_path):
    model = load_class(name)(**settings, **fixed)
    assert changed_settings(model, model.hparams) == settings.keys()
    logger = TensorBoardLogger(tmp_path)
    logger.hparams = model.hparams
    columns = parse_experiment_plugin_data(Charts._hparams(logger, model)[0].value[0].metadata.plugin_data.content)
    assert {column.name for column in columns.hparam_infos if column.differs} == settings.keys()


def _experiment(events):
    return parse_experiment_plugin_data(_plugin_data(events, "_hparams_/experiment"))


def _plugin_data(events, tag):
    return events.SummaryMetadata(tag).plugin_data.content


def test_csv_logger_has_the_names_and_files_of_figures_and_samples(run):
    _, _, folder = run
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    of = {name: [(int(row["step"]), float(row[name])) for row in rows if row[name]] for name in rows[0]}
    assert of["val/loss"] == [(3, 3.0), (6, 6.0)]
    assert [step for step, _ in of["train/lr"]] == [step for step, _ in of["train/loss"]] == [1, 3, 5]
    assert of["baseline/loss_zero"] == [(3, 2.5), (6, 2.5)]
    assert (folder / "samples" / "sample-step6.txt").read_text() == "after 6 steps\n<b>"
    figures = sorted((folder / "figures").iterdir())
    assert [path.name for path in figures] == ["line-step3.png", "line-step6.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)


def test_a_run_without_validation_has_layout_and_hyperparameters(tmp_path):
    logger = TensorBoardLogger(tmp_path, "", "", default_hp_metric=False)
    trainer = Trainer(
        max_steps=1, log_every_n_steps=1, logger=logger, accelerator="cpu", callbacks=[Charts()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(Line(), loader(2), loader(2))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert points(events, "train/lr") == [(0, 0.1)]
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert [value.name.tag for value in _experiment(events).metric_infos] == ["val/loss"]


# ---- W&B and MLflow


def image() -> Figure:
    figure = Figure(figsize=(2, 1), dpi=50, facecolor="red")
    return figure


class Wandb(WandbLogger):
    """WandbLogger's methods that the zoo calls, recorded."""

    def __init__(self):
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append((metrics, step))

    def log_image(self, key, images, step=None):
        self.calls.append((key, images, step))

    def log_text(self, key, columns=None, data=None, step=None):
        self.calls.append((key, columns, data, step))


class MLflow(MLFlowLogger):
    """The methods of MLflow's client that the zoo calls, recorded."""

    run_id = "run"

    def __init__(self):
        self.calls = []

    @property
    def experiment(self):
        return self

    def log_metrics(self, metrics, step=None):
        self.calls.append((metrics, step))

    def log_figure(self, run_id, figure, path):
        self.calls.append((run_id, figure, path))

    def log_text(self, run_id, text, path):
        self.calls.append((run_id, text, path))


def test_wandb_gets_names_images_and_tables():
    logger = Wandb()
    group_names(logger)
    logger.log_metrics({"val_loss": 1.5}, 7)
    log_figure(logger, "scatter", image(), 7)
    log_text(logger, "sample", "Once\nupon", 7)
    metrics, (key, [pixels], step), table = logger.calls
    assert metrics == ({"val/loss": 1.5}, 7)
    assert (key, step, pixels.shape) == ("figures/scatter", 7, (50, 100, 4))
    assert np.array_equal(pixels[0, 0], [255, 0, 0, 255])
    assert table == ("samples/sample", ["text"], [["Once\nupon"]], 7)


def test_mlflow_gets_names_and_artifacts():
    logger, figure = MLflow(), image()
    group_names(logger)
    logger.log_metrics({"val_loss": 1.5}, 7)
    log_figure(logger, "scatter", figure, 7)
    log_text(logger, "sample", "Once\nupon", 7)
    assert logger.calls == [
        ({"val/loss": 1.5}, 7),
        ("run", figure, "figures/scatter-step7.png"),
        ("run", "Once\nupon", "samples/sample-step7.txt"),
    ]


@pytest.mark.slow
def test_wandb_offline_stores_image_and_table(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the optional package wandb is not installed")
    monkeypatch.setitem(os.environ, "WANDB_SILENT", "true")
    logger = WandbLogger(project="zoo", save_dir=tmp_path, offline=True)
    fit(tmp_path, logger)
    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    assert (summary["val/loss"], summary["trainer/global_step"]) == (6.0, 6)
    assert len(list(tmp_path.rglob("media/images/figures/line_*.png"))) == 2
    tables = [json.loads(path.read_text())["data"] for path in tmp_path.rglob("media/table/samples/*.json")]
    assert sorted(tables) == [[["after 3 steps\n<b>"]], [["after 6 steps\n<b>"]]]


@pytest.mark.slow
def test_mlflow_file_store_has_metrics_and_artifacts(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="the optional package mlflow is not installed")
    monkeypatch.setitem(os.environ, "MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("zoo", tracking_uri=f"file:{tmp_path / 'store'}")
    fit(tmp_path, logger)
    history = logger.experiment.get_metric_history(logger.run_id, "val/loss")
    assert [(metric.step, metric.value) for metric in history] == [(3, 3.0), (6, 6.0)]
    files = {path.relative_to(tmp_path / "store").name for path in tmp_path.rglob("artifacts/*/*")}
    assert files == {"line-step3.png", "line-step6.png", "sample-step3.txt", "sample-step6.txt"}


# ---- through the command line


def test_fit_with_csv_logger_has_baselines_and_samples(tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'logs'}"]
    assert zoo_fit(tmp_path / "run", tmp_path / "fox.txt", *logger) == 0
    [metrics] = (tmp_path / "logs").rglob("metrics.csv")
    rows = list(csv.DictReader(metrics.read_text().splitlines()))
    assert {(row["step"], row["val/loss"] != "") for row in rows if row["val/ppl"]} == {("2", True), ("4", True)}
    data = TextLM(data=str(tmp_path / "fox.txt"), tokenizer="bytes", seq_len=16)
    # The validation scores 2 batches of 4 windows of 16 tokens.
    expected = NGram(data.tokens("train"), data.vocab_size, 1).nll(data.tokens("val")[: 2 * 4 * 16 + 1])
    unigram = [float(row["baseline/loss_unigram"]) for row in rows if row["baseline/loss_unigram"]]
    assert unigram == pytest.approx([expected] * 2)
    assert (metrics.parent / "samples" / "sample-step4.txt").read_text()
