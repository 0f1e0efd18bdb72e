"""Loggers, progress bars, profilers and stopping rules of the user's, and checkpoints of runs that had them."""

import csv
import json
import re

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger

from tests.commands import MICRO, TINY, complaint, fit
from zoo.__main__ import main
from zoo.callbacks import Checkpoint
from zoo.cli.arguments import SHARDED, read_arguments
from zoo.files.checkpoints import read_checkpoint

BARS = [option for option in MICRO if "progress_bar" not in option]


def events(folder):
    return sorted(folder.glob("events*"))


@pytest.fixture(scope="module")
def own(tmp_path_factory, text_file):
    """A run with a CSV logger, a Rich progress bar, a profiler, a second stopping rule and a limit of time."""
    out = tmp_path_factory.mktemp("own") / "fox"
    argv = ["fit", f"--config={TINY}", *BARS, f"--data_dir={text_file}", f"--output_dir={out}"]
    callbacks = ["--trainer.callbacks+=RichProgressBar", "--trainer.callbacks+=zoo.callbacks.EarlyStopping",
                 "--trainer.callbacks.monitor=val_ppl", "--trainer.callbacks.patience=9"]  # fmt: skip
    more = ["--trainer.logger=CSVLogger", "--trainer.profiler.class_path=SimpleProfiler",
            f"--trainer.profiler.dirpath={out}", "--trainer.profiler.filename=profile",
            "--trainer.max_time=00:01:00:00", "--trainer.max_steps=4"]  # fmt: skip
    assert main([*argv, *callbacks, *more]) == 0
    return out


def test_a_logger_without_a_folder_writes_into_that_of_the_run(own):
    with open(own / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert max(int(row["step"]) for row in rows) >= 3
    assert not events(own)
    assert "Profiler Report" in (own / "fit-profile.txt").read_text()


class LoggerWithoutPackage(CSVLogger):
    def __init__(self) -> None:
        raise ModuleNotFoundError("Requirement 'tracker>=1.0' not met. HINT: Try running `pip install tracker`")


def test_a_logger_whose_package_is_missing_names_it(text_file, tmp_path, capsys):
    argv = ["fit", f"--config={TINY}", f"--data_dir={text_file}", f"--output_dir={tmp_path / 'run'}"]
    name = f"{__name__}.{LoggerWithoutPackage.__name__}"
    assert "Requirement 'tracker>=1.0' not met. HINT: Try" in complaint(capsys, 1, *argv, f"--trainer.logger={name}")
    assert not (tmp_path / "run").exists()


def test_other_verbs_need_no_callback_of_the_training(own, recwarn, capsys):
    assert main(["test", f"--ckpt_path={own / 'last.ckpt'}", "--trainer.limit_test_batches=1"]) == 0
    assert not [str(warning.message) for warning in recwarn if "Timer" in str(warning.message)]
    assert not events(own)


def test_verbs_log_where_it_is_wanted(own, recwarn):
    argv = [f"--ckpt_path={own / 'last.ckpt'}", "--trainer.logger=true", "--trainer.enable_progress_bar=false"]
    for verb in ("validate", "test"):
        before = len(events(own))
        assert main([verb, *argv, f"--trainer.limit_{verb[:3] if verb != 'test' else 'test'}_batches=1"]) == 0
        assert len(events(own)) == before + 1
    assert not (own / "hparams.yaml").exists()  # that of the training, if there was one, is kept


def test_resume_says_which_limit_was_reached(text_file, tmp_path, capsys):
    assert fit(tmp_path / "run", text_file, "--trainer.max_time=00:00:00:01", max_steps=2) == 0
    state = tmp_path / "run" / "last.ckpt"
    assert main(["fit", f"--ckpt_path={state}", "--trainer.max_time=00:00:00:00", "--trainer.max_steps=4"]) == 0
    assert "nothing was left to do: raise --trainer.max_time to go on" in capsys.readouterr().err


def test_a_second_rule_with_a_metric_that_is_not_logged_is_refused(text_file, tmp_path, capsys):
    argv = ["fit", f"--config={TINY}", *MICRO, f"--data_dir={text_file}", f"--output_dir={tmp_path}"]
    argv += ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=val_acc"]
    assert main([*argv, "--trainer.max_steps=2"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "EarlyStopping watches 'val_acc', which this model does not log: set its monitor to one of" in said
    assert "val_loss, val_ppl" in said


def test_a_second_checkpoint_callback_leaves_that_of_the_run_as_it_is(text_file, tmp_path, capsys):
    assert fit(tmp_path / "run", text_file, "--trainer.callbacks+=ModelCheckpoint", max_steps=2) == 0
    summary, following = capsys.readouterr().err.splitlines()[-2:]
    assert "2 steps, best val_loss " in summary
    assert following == f"next: zoo test --ckpt_path {tmp_path / 'run' / 'best.ckpt'}"


def test_a_run_with_stochastic_weight_averaging_is_resumed(text_file, tmp_path, recwarn):
    swa = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01",
           "--trainer.callbacks.swa_epoch_start=1", "--data.batch_size=64"]  # fmt: skip
    averages = []
    for name in ("one part", "two parts"):
        out = tmp_path / name
        assert fit(out, text_file, *swa, max_steps=4 if name == "one part" else 2) == 0  # an epoch has 2 steps
        if name == "two parts":
            assert main(["fit", f"--ckpt_path={out / 'last.ckpt'}", "--trainer.max_steps=4"]) == 0
        callbacks = read_checkpoint(out / "last.ckpt")["callbacks"]
        averages.append(callbacks["StochasticWeightAveraging"])
    said = {str(warning.message) for warning in recwarn if "average" in str(warning.message)}
    assert len(said) == 1
    assert "keep the schedule, and best.ckpt and last.ckpt have their average" in said.pop()
    assert not [warning for warning in recwarn if "serialize" in str(warning.message)]
    assert yaml.safe_load((out / "config.yaml").read_text())["trainer"]["callbacks"][0]["init_args"]["device"] == "cpu"
    one, two = averages
    assert one["n_averaged"] == two["n_averaged"] == 2
    torch.testing.assert_close(one["average_model_state"], two["average_model_state"], rtol=0, atol=0)


def test_a_stopped_run_prints_the_command_that_resumes_it(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    checkpoint = Checkpoint(dirpath=str(folder))
    assert checkpoint.how_to_resume() == f"to continue, add --ckpt_path {folder / 'last.ckpt'}"  # run from Python
    (folder / "config.yaml").touch()
    assert checkpoint.how_to_resume() == f"to continue: zoo fit --ckpt_path '{folder / 'last.ckpt'}'"


def test_the_report_of_a_profiler_is_shown(text_file, tmp_path, caplog):
    assert fit(tmp_path / "run", text_file, "--trainer.profiler=simple", max_steps=1) == 0
    assert any("FIT Profiler Report" in record.getMessage() for record in caplog.records)


def test_predictions_are_overwritten_only_where_that_is_wanted(run, tmp_path, capsys):
    argv = [
        "predict",
        f"--ckpt_path={run / 'last.ckpt'}",
        f"--output_dir={tmp_path}",
        "--trainer.limit_predict_batches=1",
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("of the user")
    assert "is not a file of earlier predictions: give another --predictions.path" in complaint(
        capsys, 1, *argv, "--trainer.enable_progress_bar=false", "--overwrite"
    )
    assert path.read_text() == "of the user"
    path.write_text('{"index": 0}\n')
    assert "exists already: add --overwrite to replace it" in complaint(
        capsys, 1, *argv, "--trainer.enable_progress_bar=false"
    )
    assert path.read_text() == '{"index": 0}\n'
    assert main([*argv, "--overwrite"]) == 0
    shown = capsys.readouterr().err
    assert re.search(r"zoo: predicts all rows, those of the training included, \d+ in all, of \S+fox.txt", shown)
    assert "index" in json.loads(path.read_text().splitlines()[0])


def test_both_files_of_predictions_must_differ(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["predict", f"--ckpt_path={run / 'last.ckpt'}", "--predictions.path=p.jsonl", "--trainer.logger=false"]
    argv += ["--trainer.enable_progress_bar=false", f"--predictions.text_path={tmp_path / 'p.jsonl'}"]
    assert main(argv) == 1
    assert "p.jsonl cannot hold both kinds of lines: give another --predictions.text_path" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_loggers_in_configs_get_the_folder_of_the_run():
    for logger, expected in [
        ("{class_path: CSVLogger}", {"class_path": "CSVLogger", "init_args": {"save_dir": "{output_dir}"}}),
        ("CSVLogger", {"class_path": "CSVLogger", "init_args": {"save_dir": "{output_dir}"}}),
        ("[{class_path: CSVLogger, init_args: {save_dir: x}}, WandbLogger]",
         [{"class_path": "CSVLogger", "init_args": {"save_dir": "x"}}, "WandbLogger"]),
        ("false", False),
    ]:  # fmt: skip
        (word,) = read_arguments(["--config", f"trainer: {{logger: {logger}}}"]).words
        assert yaml.safe_load(word.removeprefix("--config="))["trainer"]["logger"] == expected
        if logger[0] in "[{":  # the same as the value of an option
            (word,) = read_arguments([f"--trainer.logger={logger}"]).words
            assert yaml.safe_load(word.removeprefix("--trainer.logger=")) == expected
            assert read_arguments(["--trainer.logger", logger]).words == ["--trainer.logger", word.partition("=")[2]]


@pytest.mark.parametrize("option", ["--trainer.logger", "--trainer.logger+", "--trainer.logger.class_path"])
@pytest.mark.parametrize("name", ["CSVLogger", "lightning.pytorch.loggers.csv_logs.CSVLogger"])
def test_loggers_on_the_command_line_get_the_folder_of_the_run(option, name):
    folder = "--trainer.logger.save_dir={output_dir}"
    assert read_arguments([f"{option}={name}"]).words == [f"{option}={name}", folder]
    assert read_arguments([option, name, "--model.lr=1"]).words == [option, name, folder, "--model.lr=1"]
    assert read_arguments([option, f"mine.{name}"]).words == [option, f"mine.{name}"]  # another class of that name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--trainer.profiler", "simple", "--trainer.profiler.filename=x"],
            ["--trainer.profiler=SimpleProfiler", "--trainer.profiler.filename=x"],
        ),
        (["--trainer.profiler=simple"], ["--trainer.profiler=simple"]),
        (
            ["--trainer.strategy=ddp", "--trainer.strategy.find_unused_parameters=true"],
            ["--trainer.strategy=DDPStrategy", "--trainer.strategy.find_unused_parameters=true"],
        ),
        (
            ["--config", "trainer: {strategy: fsdp2}", "--trainer.strategy.shard_size=2"],
            ["--config=trainer: {strategy: fsdp2}", f"--trainer.strategy={SHARDED}", "--trainer.strategy.shard_size=2"],
        ),
    ],
)
def test_short_names_of_strategies_and_profilers_can_have_options(words, expected):
    assert read_arguments(words).words == expected
