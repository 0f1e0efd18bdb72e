"""Settings chosen from the data: printed, replaced by options, recorded in config.yaml, used again on resume."""

import csv
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests.commands import ROOT, complaint
from zoo.cli.command_line import ZooCLI
from zoo.cli.run_lock import locked_folder

QUIET = [
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1"),
]
SMALL = ["--model.dim=16", "--model.n_heads=2", "--model.val_samples=2", "--data.batch_size=8", "--trainer.max_steps=6"]
SCRATCH = "--data.synthetic_rows=0"
CONFIG = f"--config={ROOT / 'configs' / 'regress_lm.yaml'}"


@pytest.fixture
def table(tmp_path):
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "y"), *((i, i % 7 + 0.5, i / 10) for i in range(1, 61))])
    return tmp_path / "table.csv"


def fit(table, out, *options):
    data = [f"--data_dir={table}", "--data.target_columns=y"] if table else []
    configs = [option for option in options if option.startswith("--config")]
    others = [option for option in options if option not in configs]
    return ZooCLI(["fit", *configs, *data, f"--output_dir={out}", *QUIET, *others])


def test_choices_are_printed_recorded_and_repeated(table, tmp_path, capsys):
    cli = fit(table, tmp_path / "run", CONFIG, *SMALL, SCRATCH)
    lines = capsys.readouterr().err.splitlines()
    start = next(i for i, line in enumerate(lines) if "settings chosen from the data" in line)
    sizes = "48 for training, 6 for validation, 6 for tests; cut off at random (--data.val_fraction)"
    assert f"zoo: rows of {table}: {sizes}" in lines
    printed = dict(line.split()[:2] for line in lines[start + 1 :] if line.startswith("  --"))
    # Options that are typed are not chosen.
    assert not {option.partition("=")[0] for option in [*SMALL, SCRATCH]} & printed.keys()
    assert printed["--data.tokenizer"] == "bytes"  # the numbers of such a column are mostly new
    assert printed["--trainer.val_check_interval"] == "1"
    # The file has the values used, which the modules have too.
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["automatic"] is False
    assert saved["model"]["init_args"]["optimizer"] == printed["--model.optimizer"] == cli.model.hparams["optimizer"]
    assert saved["data"]["init_args"]["augment_copies"] == int(printed["--data.augment_copies"])
    assert saved["model"]["init_args"]["dim"] == cli.model.hparams["dim"] == 16
    assert cli.datamodule.hparams["jitter"] == float(printed["--data.jitter"])
    # That file repeats the run without rules.
    again = fit(None, tmp_path / "again", f"--config={tmp_path / 'run' / 'config.yaml'}")
    assert "settings chosen" not in capsys.readouterr().err
    for name, value in cli.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_resume_uses_the_recorded_settings(table, tmp_path, capsys, monkeypatch):
    first = fit(table, tmp_path / "run", CONFIG, *SMALL, SCRATCH)
    capsys.readouterr()
    monkeypatch.delattr("zoo.regress_lm.module.RegressLMModule.choose_settings")
    for options in ([CONFIG], []):
        cli = fit(table, tmp_path / "run", *options, f"--ckpt_path={tmp_path / 'run' / 'last.ckpt'}")
        assert "settings chosen" not in capsys.readouterr().err
        assert dict(cli.model.hparams) == dict(first.model.hparams)
        assert cli.trainer.global_step == 6


def test_budget_plans_the_schedule_and_records_it(table, tmp_path, monkeypatch, capsys):
    from zoo.callbacks import budget

    clock = iter(range(10**6))
    # A second passes between two readings of the clock.
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("zoo.cli.command_line.time", SimpleNamespace(monotonic=lambda: 0))
    monkeypatch.setattr(budget, "FIRST_STEPS", 3)
    options = [*SMALL[:-1], "--trainer.max_steps=1000", "--trainer.limit_val_batches=1", "--budget=90s", SCRATCH]
    cli = fit(table, tmp_path / "run", CONFIG, *options)
    steps = cli.trainer.global_step
    assert 10 < steps < 100
    assert cli.model.total_steps == steps
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (saved["budget"], saved["trainer"]["max_steps"]) == (None, steps)
    plan = (tmp_path / "run" / "config.yaml").read_text().splitlines()[0]
    assert plan.startswith("# planned for --budget 90s: the training began after ")
    assert plan.endswith(f"; {steps} of 1,000 steps fit into the time")
    assert "s have passed; at most about" in capsys.readouterr().err
    assert saved["model"]["init_args"]["warmup_steps"] == round(steps / 20)
    last = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert last["global_step"] == steps
    # The rate has decayed to its end.
    [scheduler] = last["lr_schedulers"]
    assert scheduler["_last_lr"][-1] == pytest.approx(cli.model.hparams["min_lr_ratio"] * cli.model.hparams["lr"])


def test_budget_keeps_the_number_of_validations(table, tmp_path, monkeypatch):
    """With synthetic rows a run has a single validation, after its last step."""
    from zoo.callbacks import budget
    from zoo.datamodules import teacher_models

    clock = iter(range(10**6))
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("zoo.cli.command_line.time", SimpleNamespace(monotonic=lambda: 0))
    monkeypatch.setattr(teacher_models, "N_TREES", 20)
    monkeypatch.setattr(teacher_models, "N_COMPARED_TREES", 10)
    options = [*SMALL[:-1], "--data.synthetic_rows=100", "--trainer.limit_val_batches=1", "--budget=60s"]
    cli = fit(table, tmp_path / "run", CONFIG, *options)
    steps = cli.trainer.global_step
    assert 10 < steps < 100
    best = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)
    assert best["global_step"] == steps == cli.model.total_steps
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["trainer"]["val_check_interval"] == saved["trainer"]["max_steps"] == steps


def test_refusals(table, tmp_path, capsys):
    options = [f"--output_dir={tmp_path / 'run'}", *QUIET]
    data = [f"--data_dir={table}", "--data.target_columns=y"]
    said = complaint(capsys, 1, "fit", "--config=tiny/llama", "--automatic", *options)
    assert said == "zoo: --automatic: LlamaLM has no rules for its settings: drop it"
    said = complaint(capsys, 1, "fit", CONFIG, *data, *options, "--budget=soon")
    assert "--budget must be a time such as 90s" in said
    said = complaint(capsys, 1, "fit", CONFIG, *data, *options, "--budget=0.001s")
    assert said.startswith("zoo: --budget 0.001s is too short: the start of the command alone took ")
    said = complaint(capsys, 1, "fit", CONFIG, *data[:1], *options)
    assert "set --data.target_columns" in said
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_refused_before_any_work_on_the_data(table, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr("zoo.regress_lm.module.RegressLMModule.choose_settings")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").touch()
    options = [f"--data_dir={table}", "--data.target_columns=y", f"--output_dir={tmp_path / 'run'}"]
    said = complaint(capsys, 1, "fit", CONFIG, *options, *QUIET)
    assert said.startswith(f"zoo: {tmp_path / 'run'} already holds a run (last.ckpt): add --ckpt_path last")
    (tmp_path / "run" / "last.ckpt").unlink()
    with locked_folder(tmp_path / "run"):
        said = complaint(capsys, 1, "fit", CONFIG, *options, *QUIET)
        assert said.startswith(f"zoo: another run writes into {tmp_path / 'run'}")
    # A folder that is free is not refused.
    said = complaint(capsys, 1, "fit", CONFIG, *options, *QUIET)
    assert "has no rules for its settings" in said
