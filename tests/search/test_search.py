"""Hyperparameter search: search spaces, adding trials to a study, pruning, refusals, Optuna missing."""

import csv
import io
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.commands import MICRO, TINY

optuna = pytest.importorskip("optuna", reason="the search is an extra: pip install '.[search]'")

from zoo.callbacks import Checkpoint  # noqa: E402
from zoo.console.exit_codes import run_command  # noqa: E402
from zoo.errors import UserError  # noqa: E402
from zoo.search.__main__ import main  # noqa: E402
from zoo.search.space import read_space, read_spaces  # noqa: E402
from zoo.search.study import search  # noqa: E402
from zoo.search.trial import Prune, read_monitor  # noqa: E402


def test_search_spaces_are_read():
    trial = optuna.trial.FixedTrial({"model.lr": 1e-3, "model.dim": 64, "data.batch_size": "16"})
    assert read_space("model.lr=log:1e-4:1e-2").suggest(trial) == "--model.lr=0.001"
    assert read_space("model.dim=16:128").suggest(trial) == "--model.dim=64"
    assert read_space("data.batch_size=8,16").suggest(trial) == "--data.batch_size=16"
    assert read_space("a=1:2").distribution == optuna.distributions.IntDistribution(1, 2)
    assert read_space("a=log:1:8").distribution == optuna.distributions.IntDistribution(1, 8, log=True)
    assert read_space("a=1.0:2").distribution == optuna.distributions.FloatDistribution(1.0, 2.0)
    assert read_space("a=-1e-3:1e-3").example() == "--a=-0.001"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        *((space, "write name=low:high") for space in ("a", "a=1e-4", "a=lin:1:2", "a=x:y", "=1:2", "a=0x1:3", "a=:")),
        *((f"a={ends}", "must be finite") for ends in ("nan:1", "0:inf", "log:1e-3:inf", "1:1e999", "-1e308:1e308")),
        ("a=1:0", "the lower end comes first: write 0:1"),
        *((f"a=log:{low}:1", "the lower end must be above 0") for low in ("0", "-1", "0.0")),
        *((f"a={choices}", "a choice is empty or repeated") for choices in ("x,", ",", "x,y,x")),
        ("a=1:99999999999999999999", "at most 2\\^53"),
        ("output_dir=a,b", "output_dir must be the same in all trials: give it as the option --output_dir"),
        ("checkpoint.mode=min,max", "must be the same in all trials"),
    ],
)
def test_a_search_space_that_is_not_valid(space, message, tmp_path):
    with pytest.raises(UserError, match=message):
        search([], [space], 1, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_two_spaces_of_one_setting_are_refused():
    for second in ("model.lr=3:4", "model.init_args.lr=3:4"):
        with pytest.raises(UserError, match="are of one setting: drop one of them"):
            read_spaces(["model.lr=1:2", second])


def test_a_second_call_adds_trials_to_the_study(text_file, tmp_path, capsys, monkeypatch):
    fit = [f"--config={TINY}", *MICRO, f"--data_dir={text_file}", "--trainer.max_steps=2"]
    [row] = search(fit, ["model.lr=log:1e-4:1e-2"], 1, tmp_path)
    assert row["state"] == "complete"
    assert 1e-4 <= float(row["model.lr"]) <= 1e-2
    argv = [*fit, "--space", "model.lr=log:1e-4:1e-2", "--trials", "1", "--output_dir", str(tmp_path)]
    argv.append("--trainer.enable_progress_bar=true")
    monkeypatch.setattr("sys.argv", ["search", *argv])
    main()
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["trial"] for row in rows} == {"0", "1"}
    assert float(rows[0]["best"]) <= float(rows[1]["best"])
    assert rows[0]["model.lr"] != rows[1]["model.lr"]
    assert (tmp_path / "trial-001" / "best.ckpt").exists()
    out, err = capsys.readouterr()
    assert "model.lr" in out
    assert "\nzoo: trial 1 of 1, trial-001: model.lr=" in err
    assert "\ntrial 1 of 1: step 2 of 2, 100 %, " in err


def test_a_bad_trial_is_pruned(text_file, tmp_path):
    from zoo.cli.command_line import ZooCLI

    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0.01))

    def objective(trial):
        fit = ["fit", f"--config={TINY}", *MICRO, f"--data_dir={text_file}", f"--output_dir={tmp_path / 'run'}"]
        ZooCLI([*fit, "--trainer.max_steps=4"], callbacks=[Prune(trial)])

    study.optimize(objective, n_trials=1)
    [trial] = study.trials
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert list(trial.intermediate_values) == [2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--space=model.no_such=1:2"], "there is no setting 'model.no_such'"),
        (["--space=model.dim=15,17"], "is not a multiple of n_heads"),
        (["--space=model.lr=1e-4:1e-3", "--trainer.enable_checkpointing=false"], "the search compares checkpoints"),
        (
            ["--space=model.lr=1e-4:1e-3", "--checkpoint.monitor=val_nope"],
            "--checkpoint.monitor 'val_nope' is not logged",
        ),
        (
            ["--space=model.lr=1e-4:1e-3", "--trainer.strategy=ddp", "--trainer.devices=2"],
            "a trial runs in one process: set --trainer.devices 1",
        ),
    ],
)
def test_a_refused_search_is_one_sentence_and_leaves_nothing(words, message, text_file, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "runs" / "search"
    fit = [f"--config={TINY}", *MICRO, f"--data_dir={text_file}", "--trainer.max_steps=2", f"--output_dir={folder}"]
    monkeypatch.setattr("sys.argv", ["search", *fit, *words])
    logged = io.StringIO()  # where Optuna prints
    handler = logging.StreamHandler(logged)
    logging.getLogger("optuna").addHandler(handler)
    try:
        code = run_command(main)
    except SystemExit as stop:
        code = stop.code
    finally:
        logging.getLogger("optuna").removeHandler(handler)
    assert code in (1, 2)
    assert message in capsys.readouterr().err
    assert logged.getvalue() == ""
    assert list(tmp_path.iterdir()) == []


def test_a_missing_optuna_is_one_sentence(tmp_path):
    (tmp_path / "optuna.py").write_text("raise ImportError")
    script = (
        f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = ['--space', 'model.lr=1:2'];"
        "runpy.run_module('zoo.search', run_name='__main__')"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == (
        "zoo: the search needs Optuna, an extra: pip install '.[search]' in the folder of the zoo's source\n"
    )


def test_a_diverged_trial_is_pruned_and_the_search_goes_on(text_file, tmp_path):
    fit = [f"--config={TINY}", *MICRO, f"--data_dir={text_file}", "--trainer.max_steps=2", "--model.warmup_steps=0"]
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    rows = search(fit, ["model.lr=1e-3,1e30"], 2, tmp_path, seed=9, storage=storage)
    assert [(row["model.lr"], row["state"]) for row in rows] == [("1e-3", "complete"), ("1e30", "pruned")]


def test_trials_without_a_validation_are_refused(monkeypatch, tmp_path):
    def trial(words, callbacks, label):
        trainer = SimpleNamespace(checkpoint_callback=Checkpoint(), callback_metrics={}, global_step=30)
        return SimpleNamespace(trainer=trainer)

    monkeypatch.setattr("zoo.search.study.TrialCLI", trial)
    monkeypatch.setattr("zoo.search.study.read_monitor", lambda words: ("val_loss", "minimize"))
    with pytest.raises(UserError, match="ended after 30 steps without a validation"):
        search([], ["model.lr=1:2"], 3, tmp_path)


def test_a_requeued_task_of_a_job_array_searches(monkeypatch):
    """The options that are checked first have no --output_dir, which a run that is continued needs."""
    for name, value in {"PROCID": 0, "JOB_ID": 7, "JOB_NAME": "search", "RESTART_COUNT": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert read_monitor(["--config=tiny/regress_lm"]) == ("val_loss", "minimize")


def test_a_search_is_no_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("sys.argv", ["search", "--space", "model.lr=1:2"])
    with pytest.raises(UserError, match="a search runs in one process: start several searches with one --storage"):
        main()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("model.dim=16,64", r"--space model\.dim=16,64: the study has other choices or another kind of number"),
        ("model.dim=16:64", "the study has other choices or another kind of number"),
        ("model.lr=1:2", r"the study searches model\.dim, not model\.lr: give the same --space, or another --study"),
    ],
)
def test_other_settings_than_those_of_the_study(space, message, scores, tmp_path):
    scores += [None, 1.0]
    search([], ["model.dim=16,32"], 1, tmp_path)
    with pytest.raises(UserError, match=message):
        search([], [space], 1, tmp_path)
    assert len(search([], ["model.dim=16,32"], 1, tmp_path)) == 2  # the refused call has left no trial


def test_a_trial_that_failed_early_has_empty_cells(scores, tmp_path):
    """In a storage that was there before, a call whose first trial is refused leaves a failed trial."""
    (tmp_path / "journal.log").touch()
    url = f"journal:{tmp_path / 'journal.log'}"
    scores += [UserError("wrong"), 2.0]
    with pytest.raises(UserError, match="wrong"):
        search([], ["model.lrr=1:2"], 1, tmp_path, storage=url)
    rows = search([], ["model.lr=1:1"], 1, tmp_path, storage=url)
    assert [(row["model.lr"], row["best"], row["state"]) for row in rows] == [("1", "2", "complete"), ("", "", "fail")]


def test_a_maximised_metric_has_the_largest_value_first(scores, tmp_path, capsys):
    scores += [0.5, 0.9, None, 0.7]
    rows = search(["val_accuracy", "maximize"], ["model.lr=1e-4:1e-3"], 4, tmp_path)
    begun = [f"zoo: trial {i + 1} of 4, trial-00{i}: model.lr=" for i in range(4)]
    ended = [
        "zoo: trial 1 of 4: val_accuracy 0.5; the best so far is 0.5, of trial-000",
        "zoo: trial 2 of 4: val_accuracy 0.9; the best so far is 0.9, of trial-001",
        "zoo: trial 3 of 4: training has diverged",
        "zoo: trial 4 of 4: val_accuracy 0.7; the best so far is 0.9, of trial-001",
    ]
    lines = capsys.readouterr().err.splitlines()
    assert lines[1::2] == ended
    assert all(line.startswith(start) for line, start in zip(lines[::2], begun, strict=True))
    assert [row["best"] for row in rows] == ["0.9", "0.7", "0.5", ""]
    study = optuna.load_study(study_name="zoo", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert study.best_value == 0.9
    for other in (["val_accuracy", "minimize"], ["val_f1", "maximize"]):
        with pytest.raises(UserError, match="is to maximize val_accuracy, this call to"):
            search(other, ["model.lr=1e-4:1e-3"], 1, tmp_path)


def test_direction_is_that_of_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "tiny-llama_classifier"  # the config's output folder, which trials do not use
    run.mkdir(parents=True)
    (run / "last.ckpt").touch()
    assert read_monitor(["--config=tiny/llama_classifier"]) == ("val_accuracy", "maximize")
    assert read_monitor(["--config=tiny/regress_lm"]) == ("val_loss", "minimize")
