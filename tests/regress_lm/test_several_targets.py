"""Several targets of different units: the scores, baselines, figures and predictions of each, by its name."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Trainer
from sklearn import metrics

from zoo.baselines.of_data import baselines_of
from zoo.callbacks.loggers import chart_name
from zoo.callbacks.regression_figures import calibration, scatter
from zoo.cli.command_line import ZooCLI
from zoo.cli.score_table import ScoreTable, by_metric
from zoo.datamodules import TextRegression
from zoo.errors import UserError
from zoo.mini_rlm import MiniRLM
from zoo.regress_lm import RegressLM
from zoo.tokenizers import load_tokenizer

SIZES = {"dim": 16, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1, "num_samples": 8}


@pytest.fixture
def table(tmp_path):
    random = np.random.default_rng(0)
    with open(tmp_path / "houses.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["area", "city", "price", "height, m"])
        for _ in range(40):
            area = int(random.integers(20, 200))
            writer.writerow([area, random.choice(["Rome", "Oslo"]), area * 3000 + random.normal() * 9000, area / 50])
    return tmp_path / "houses.csv"


def trainer(folder):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder),
    )  # fmt: skip


@pytest.mark.parametrize("cls", [RegressLM, MiniRLM])
def test_scores_of_each_target_are_those_of_its_predictions(cls, table, tmp_path):
    names = ["price", "height, m"]
    data = TextRegression(str(table), target_columns=names, tokenizer="bytes", test_fraction=1.0, val_fraction=0.0)
    sizes = SIZES | {"max_input_len": data.max_input_len} if cls is RegressLM else {"dim": 8, "hidden_dim": 8}
    torch.manual_seed(0)
    model = cls(n_objectives=2, target_names=data.target_names, tokenizer=data.tokenizer, **sizes)
    [logged] = trainer(tmp_path).test(model, datamodule=data, verbose=False)
    rows = [row for batch in trainer(tmp_path).predict(model, datamodule=data) for row in batch]
    assert all(row["target_names"] == names for row in rows)
    predictions, targets = (np.array([row[field] for row in rows]) for field in ("prediction", "target"))
    for k, name in enumerate(names):
        p, t = predictions[:, k], targets[:, k]
        assert logged[f"test_mae/{name}"] == pytest.approx(metrics.mean_absolute_error(t, p), rel=1e-6)
        assert logged[f"test_r2/{name}"] == pytest.approx(metrics.r2_score(t, p), rel=1e-5)
        assert logged[f"test_relative_mae/{name}"] == pytest.approx(1 - metrics.d2_absolute_error_score(t, p), rel=1e-5)
        if cls is RegressLM:
            low, high = (np.array([row["quantiles"][q] for row in rows])[:, k] for q in ("0.05", "0.95"))
            assert logged[f"test_coverage_90/{name}"] == pytest.approx(((low <= t) & (t <= high)).mean(), rel=1e-6)
            assert logged[f"test_crps/{name}"] > 0
    for score in ("mae", "relative_mae", "rmse"):
        of_each = [logged[f"test_{score}/{name}"] for name in names]
        assert logged[f"test_{score}"] == pytest.approx(np.mean(of_each), rel=1e-6)


def test_the_printed_table_has_a_row_for_each_target(capsys):
    scores = {"test_mae": 1.5, "test_r2": 0.5, "test_mae/a": 1.0, "test_r2/a": 0.75, "test_mae/b, c": 2.0}
    targets = {"train": np.array([[1.0, 0.0], [3.0, 4.0]]), "test": np.array([[0.0, 3.0], [5.0, 1.0]])}
    run = SimpleNamespace(
        is_global_zero=True, fast_dev_run=False,
        datamodule=SimpleNamespace(targets=targets.get, target_names=["a", "b, c"]),
        callback_metrics={name: torch.tensor(score) for name, score in scores.items()},
    )  # fmt: skip
    ScoreTable().on_test_end(run, type("Regressor", (), {})())
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[2:4] == [["test_mae", "1.5", "median 1.75"], ["test_r2", "0.5"]]
    assert cells[5:] == [
        ["of each target, logged as test_<metric>/<target>:"],
        ["target", "mae", "r2"],
        ["------", "-" * 14, "----"],
        ["a", "1 (median 2.5)", "0.75"],
        ["b, c", "2 (median 1)"],
    ]


def test_the_rules_monitor_several_targets_independently_of_their_units(table):
    data = TextRegression(str(table), target_columns=["price", "height, m"])
    [monitor] = [c for c in RegressLM.choose_settings(data, {}) if c.option.startswith("checkpoint")]
    assert (monitor.option, monitor.value, monitor.replaces) == ("checkpoint.monitor", "val_relative_mae", "val_mae")
    one = TextRegression(str(table), target_columns="price")
    assert not [c for c in RegressLM.choose_settings(one, {}) if c.option.startswith("checkpoint")]


class ReadOnlyCLI(ZooCLI):
    """Parses and chooses settings, and builds nothing."""

    runs_verb = False

    def instantiate_classes(self):
        pass

    def after_instantiate_classes(self):
        pass


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "val_relative_mae"),
        (["--checkpoint.monitor=val_mae"], "val_mae"),
        (["--config={other}"], "val_loss"),
        (["--data.target_columns=price"], "val_mae"),
    ],
)
def test_only_the_monitor_of_the_config_is_replaced(table, tmp_path, options, expected):
    (tmp_path / "other.yaml").write_text("checkpoint: {monitor: val_loss}\n")
    columns = "--data.target_columns=['price','height, m']"
    words = [option.format(other=tmp_path / "other.yaml") for option in options]
    cli = ReadOnlyCLI(["fit", "--config=regress_lm", f"--data_dir={table}", columns, *words])
    assert cli.config.fit.checkpoint.monitor == expected


def test_baselines_of_each_target_belong_to_its_metrics():
    train, val = np.array([[1.0, 10.0], [2.0, 20.0], [9.0, 90.0]]), np.array([[0.0, 5.0], [4.0, 5.0]])
    data = SimpleNamespace(targets={"train": train, "val": val}.get, target_names=["a", "a_b"])
    model = type("Regressor", (), {})()
    scores = baselines_of(SimpleNamespace(limit_val_batches=1.0), model, data)
    # The training medians are 2 and 20. The second target of the validation is constant.
    assert scores == {
        "mae_median": 8.5, "relative_mae_median": 1.0, "mae/a_median": 2.0, "mae/a_b_median": 15.0,
        "relative_mae/a_median": 1.0,
    }  # fmt: skip
    metrics_of_run = ["val_mae", "val_mae/a", "val_mae/a_b", "val_relative_mae", "val_relative_mae/a"]
    assert by_metric(metrics_of_run, scores) == {
        "val_mae": {"median": 8.5}, "val_relative_mae": {"median": 1.0}, "val_mae/a": {"median": 2.0},
        "val_mae/a_b": {"median": 15.0}, "val_relative_mae/a": {"median": 1.0},
    }  # fmt: skip


def test_metrics_of_a_target_have_the_group_of_their_metric_in_the_loggers():
    assert chart_name("val_mae/price") == "val_mae/price"
    assert chart_name("val_mae") == "val/mae"


def test_names_must_be_as_many_as_targets():
    tokenizer = load_tokenizer("bytes")
    for cls in (MiniRLM, RegressLM):
        model = cls(tokenizer=tokenizer, n_objectives=2, target_names=["a", "b"], dim=16)
        assert model.target_labels == ["a", "b"]
        assert cls(tokenizer=tokenizer, n_objectives=2, dim=16).target_labels == ["objective_1", "objective_2"]
        with pytest.raises(UserError, match="target_names has 1 names, but n_objectives is 2"):
            cls(tokenizer=tokenizer, n_objectives=2, target_names=["a"], dim=16)


def test_figures_have_a_panel_or_a_line_for_each_target(tmp_path):
    values = np.array([[1e6, 0.1], [2e6, 0.3]])
    figure = scatter(values, values, ["price", "$height$ {"])
    assert [axes.get_title() for axes in figure.axes] == ["price: 2 predictions", r"\$height\$ {: 2 predictions"]
    assert [axes.get_xlim()[1] for axes in figure.axes] == pytest.approx([2.1e6, 0.32])
    figure.savefig(tmp_path / "scatter.png")
    [axes] = calibration(np.array([[0.5, 0.9]]), ["price", "_x"]).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["model, price", "model, _x", "calibrated"]
