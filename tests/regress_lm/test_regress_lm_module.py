"""RegressLM with the command line: output folders, resuming, predictions, several processes."""

import json
import re

import numpy as np
import pytest
import torch

from tests.commands import ROOT, complaint
from tests.resume import assert_resume_is_bitwise
from zoo.callbacks import regression_figures
from zoo.cli.command_line import ZooCLI
from zoo.regress_lm import ExampleInput, RegressLM
from zoo.tokenizers.numerals import rounded

MODEL = ["--model=RegressLM", "--model.dim=16", "--model.n_heads=2", "--model.num_samples=8", "--model.val_samples=2"]
QUIET = [
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1"),
]


@pytest.fixture
def news(tmp_path):
    """A folder of YAML files, one of them without its number."""
    folder = tmp_path / "finance_positive"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i:02d}.yml").write_text(f'news: "Profit rises by {i} percent"\nchange_rate: {i / 100}\n')
    (folder / "test_target.yml").write_text('news: "Profit rises by 12 percent"\n')
    return folder


def fit(data, folder, *options: str) -> ZooCLI:
    settings = ["--data=TextRegression", "--data.batch_size=8", "--trainer.max_steps=4"]
    return ZooCLI(["fit", *MODEL, *settings, *QUIET, f"--data_dir={data}", f"--output_dir={folder}", *options])


def test_output_dir_names_the_data_label_and_the_time(news, tmp_path):
    cli = fit(news, tmp_path / "saved_models" / "{data}" / "{time}")
    [run] = (tmp_path / "saved_models" / "finance_positive").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}", run.name)
    assert str(run) == cli.trainer.default_root_dir
    assert {"best.ckpt", "last.ckpt", "config.yaml"} <= {file.name for file in run.iterdir()}


def test_resume_with_data_of_another_label_stops_and_writes_nothing(news, tmp_path):
    run = tmp_path / "run"
    fit(news, run)
    before = {file: file.read_bytes() for file in run.iterdir()}
    other = news.rename(tmp_path / "finance_negative")
    with pytest.raises(ValueError, match="was trained on 'finance_positive', and this is 'finance_negative'"):
        fit(other, tmp_path / "elsewhere", f"--ckpt_path={run / 'last.ckpt'}", "--trainer.max_steps=6")
    assert not (tmp_path / "elsewhere").exists()
    assert before == {file: file.read_bytes() for file in run.iterdir()}
    cli = fit(other, run, f"--ckpt_path={run / 'last.ckpt'}", "--trainer.max_steps=6", "--allow_other_data")
    assert cli.trainer.global_step == 6


def test_ckpt_path_last_with_a_pattern_in_output_dir_is_refused(capsys, tmp_path):
    options = ["--ckpt_path=last", f"--data_dir={tmp_path}"]
    said = complaint(capsys, 1, "fit", f"--config={ROOT / 'configs' / 'regress_lm.yaml'}", *options)
    assert "which run of saved_models/{data}/{time} is meant" in said


@pytest.mark.parametrize(("optimizer", "devices"), [("adamw", 1), ("adafactor", 1), ("muon", 1), ("adamw", 2)])
def test_resume_is_bitwise_with_each_optimizer(optimizer, devices, tmp_path):
    from zoo.datamodules import TextRegression

    sizes = {"vocab_size": TextRegression().vocab_size, "dim": 16, "n_heads": 2, "n_encoder_layers": 1}
    options = {"max_steps": 6, "limit_val_batches": 0, "devices": devices}
    assert_resume_is_bitwise(
        lambda: RegressLM(**sizes, dropout=0.1, optimizer=optimizer, warmup_steps=2),
        lambda: TextRegression(batch_size=8),
        tmp_path,
        every=3,
        **options,
    )


def test_predict_from_the_checkpoint_alone(news, tmp_path):
    run = tmp_path / "run"
    fit(news, run)
    ZooCLI(["predict", f"--ckpt_path={run / 'best.ckpt'}", "--model.keep_samples=true", *QUIET])
    [row] = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert row["input"] == "Profit rises by 12 percent"
    assert "target" not in row
    assert len(row["samples"]) == 8
    assert row["median"] == row["prediction"] == pytest.approx(np.median(row["samples"]))
    assert row["mean"] == pytest.approx(np.mean(row["samples"]))
    assert row["mode"] in row["samples"]
    assert list(row["quantiles"]) == ["0.05", "0.25", "0.5", "0.75", "0.95"]


def test_rounding_is_stored_in_checkpoints_and_leaves_the_input_text(tmp_path):
    table = tmp_path / "runs.csv"
    table.write_text("lr,loss\n" + "".join(f"{0.00012345 * i:.7f},{i}\n" for i in range(1, 41)))
    rounding = ["--data.round_digits=2", "--data.power_tokens=true"]
    options = ["--data.target_columns=loss", "--data.row_format=values", *rounding]
    cli = fit(table, tmp_path / "run", *options)
    [text] = cli.datamodule.texts("test")[:1]
    assert " e-" not in text
    model = RegressLM.load(tmp_path / "run" / "last.ckpt")
    assert (model.hparams["round_digits"], model.hparams["power_tokens"]) == (2, True)
    [row] = model.rows([ExampleInput(text)])
    assert model.tokenizer.decode(row.tokens) == rounded(text, 2, True)
    model.save(tmp_path / "saved.ckpt")
    again = RegressLM.load(tmp_path / "saved.ckpt")
    assert (again.hparams["round_digits"], again.hparams["power_tokens"]) == (2, True)
    predict = ["predict", f"--ckpt_path={tmp_path / 'saved.ckpt'}", f"--data_dir={table}"]
    ZooCLI([*predict, *options[:2], *QUIET])
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    assert rows[0]["input"] == "0.0001234"


def test_test_logs_scores_of_point_and_distribution_and_writes_plots(news, tmp_path):
    run = tmp_path / "run"
    fit(news, run)
    cli = ZooCLI(["test", f"--ckpt_path={run / 'best.ckpt'}", *QUIET])
    logged = {name: value.item() for name, value in cli.trainer.callback_metrics.items()}
    expected = "loss mae median_error rmse r2 spearman pearson nll crps coverage_50 coverage_90"
    assert logged.keys() >= {f"test_{name}" for name in expected.split()}
    assert logged["test_nll"] > 0
    assert 0 <= logged["test_coverage_50"] <= logged["test_coverage_90"] <= 1
    assert (run / "test-scatter.png").stat().st_size > 5000
    assert (run / "test-calibration.png").stat().st_size > 5000
    assert not (run / "test-ranking.png").exists()


def test_ranking_and_intervals_are_drawn_by_option(news, tmp_path, monkeypatch):
    run, drawn = tmp_path / "run", {}
    fit(news, run)
    for name in ("ranking", "intervals"):
        draw = getattr(regression_figures, name)
        monkeypatch.setattr(
            regression_figures, name, lambda *a, n=name, f=draw, **k: drawn.update({n: a}) or f(*a, **k)
        )
    options = ["--plots.ranking=max", "--plots.intervals=true", *QUIET]
    cli = ZooCLI(["test", f"--ckpt_path={run / 'best.ckpt'}", *options])
    for name in ("scatter", "ranking", "intervals"):
        assert (run / f"test-{name}.png").stat().st_size > 5000
    _, targets, best = drawn["ranking"]
    assert sorted(targets[:, 0]) == sorted(np.asarray(cli.datamodule.test_dataloader().dataset.targets)[:, 0])
    assert best == "max"
    # Predictions of the same rows give the same figures: their medians and quantiles do not depend on the verb.
    in_test = dict(drawn)
    data = tmp_path / "rows.csv"
    rows = [(text, t[0]) for text, t in zip(cli.datamodule.texts("test"), targets, strict=True)]
    data.write_text("news,change_rate\n" + "".join(f'"{text}",{float(target)}\n' for text, target in rows))
    path = f"--predictions.path={tmp_path / 'p.jsonl'}"
    own = [f"--data_dir={data}", "--data.target_columns=change_rate", path]
    drawn.clear()
    ZooCLI(["predict", f"--ckpt_path={run / 'best.ckpt'}", *own, *options])
    written = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    _, _, low, high = drawn["intervals"]
    assert low[:, 0] == pytest.approx([row["quantiles"]["0.25"] for row in written])
    assert high[:, 0] == pytest.approx([row["quantiles"]["0.75"] for row in written])
    assert drawn["ranking"][0] == pytest.approx(in_test["ranking"][0])
    assert (tmp_path / "p-intervals.png").stat().st_size > 5000


def test_figures_are_written_to_tensorboard(news, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(news, tmp_path / "run", "--trainer.val_check_interval=2")
    tags = EventAccumulator(str(tmp_path / "run")).Reload().Tags()
    assert {"figures/scatter", "figures/calibration"} <= set(tags["images"])
    assert {"val/mae", "baseline/mae_median"} <= set(tags["scalars"])


def test_weights_initialise_from_another_run(news, tmp_path):
    fit(news, tmp_path / "first")
    first = torch.load(tmp_path / "first" / "last.ckpt", weights_only=True)["state_dict"]
    options = [f"--model.weights={tmp_path / 'first' / 'last.ckpt'}", "--model.lr=0.0", "--model.lora_rank=2"]
    fit(news, tmp_path / "second", *options)
    second = torch.load(tmp_path / "second" / "last.ckpt", weights_only=True)["state_dict"]
    name = "model.encoder.layers.0.q_proj"
    assert torch.equal(second[f"{name}.parametrizations.weight.original"], first[f"{name}.weight"])
    ZooCLI(["test", f"--ckpt_path={tmp_path / 'second' / 'best.ckpt'}", *QUIET])


def test_contradictory_options_are_refused(news, tmp_path):
    with pytest.raises(ValueError, match="2048 is beyond the model's max_input_len 64"):
        fit(news, tmp_path / "run", "--model.max_input_len=64")
    with pytest.raises(ValueError, match="normalized"):
        fit(news, tmp_path / "run", "--model.number_format=normalized", "--model.number_exponent=2")
