"""Hyperparameter search: reading search spaces, adding trials to a study, pruning, and Optuna missing."""

import csv
import subprocess
import sys

import pytest

from tests.commands import MICRO, TINY

optuna = pytest.importorskip("optuna", reason="the search is an extra: pip install 'zoo[search]'")

from zoo.errors import Diverged, UserError  # noqa: E402
from zoo.search.__main__ import main  # noqa: E402
from zoo.search.study import Prune, search, suggest  # noqa: E402


def test_suggest_reads_search_spaces():
    trial = optuna.trial.FixedTrial({"model.lr": 1e-3, "model.dim": 64, "data.batch_size": "16"})
    assert suggest(trial, "model.lr=log:1e-4:1e-2") == "--model.lr=0.001"
    assert suggest(trial, "model.dim=16:128") == "--model.dim=64"
    assert suggest(trial, "data.batch_size=8,16") == "--data.batch_size=16"
    for bad in ("model.lr", "model.lr=1e-4", "model.lr=lin:1:2", "model.lr=a:b"):
        with pytest.raises(ValueError, match="write name=low:high"):
            suggest(trial, bad)


def test_a_second_call_adds_trials_to_the_study(text_file, tmp_path, capsys, monkeypatch):
    fit = [f"--config={TINY}", *MICRO, f"--data_dir={text_file}", "--trainer.max_steps=2"]
    [row] = search(fit, ["model.lr=log:1e-4:1e-2"], 1, tmp_path)
    assert row["state"] == "complete"
    assert 1e-4 <= float(row["model.lr"]) <= 1e-2
    argv = [*fit, "--space", "model.lr=log:1e-4:1e-2", "--trials", "1", "--output_dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["search", *argv])
    main()
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["trial"] for row in rows} == {"0", "1"}
    assert float(rows[0]["best"]) <= float(rows[1]["best"])
    assert rows[0]["model.lr"] != rows[1]["model.lr"]
    assert (tmp_path / "trial-001" / "best.ckpt").exists()
    assert "model.lr" in capsys.readouterr().out


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


@pytest.mark.parametrize("wrong", ["model.lr=1e-4", "model.no_such=1:2", "model.dim=15,17"])
def test_a_refused_search_leaves_nothing(wrong, text_file, tmp_path):
    fit = [f"--config={TINY}", *MICRO, f"--data_dir={text_file}", "--trainer.max_steps=2"]
    with pytest.raises((UserError, SystemExit)):
        search(fit, [wrong], 1, tmp_path / "runs" / "search")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_optuna_is_one_sentence(tmp_path):
    (tmp_path / "optuna.py").write_text("raise ImportError")
    script = (
        f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = ['--space', 'model.lr=1:2'];"
        "runpy.run_module('zoo.search', run_name='__main__')"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == "zoo: the search needs Optuna, which is an extra: pip install 'zoo[search]'\n"


def test_two_processes_on_one_journal_draw_different_points(text_file, tmp_path, monkeypatch):
    """The numbers of trials are unique in a storage, and each trial draws with the seed of its number."""
    points = []

    def cli(words, callbacks):
        points.append([word for word in words if word.startswith("--model.lr=")])
        raise Diverged("training has diverged")

    monkeypatch.setattr("zoo.search.study.ZooCLI", cli)
    url = f"journal:{tmp_path / 'study' / 'journal.log'}"
    for _ in range(2):  # as a second process would
        rows = search([], ["model.lr=log:1e-4:1e-2"], 2, tmp_path, storage=url, study_name="a")
    assert [row["state"] for row in rows] == ["pruned"] * 4
    assert len({tuple(point) for point in points}) == 4
    first = list(points)
    search([], ["model.lr=log:1e-4:1e-2"], 2, tmp_path, storage=url, study_name="b")
    assert points[4:] == first[:2]  # another study with the same seed
    search([], ["model.lr=log:1e-4:1e-2"], 2, tmp_path, storage=url, study_name="c", seed=1)
    assert not {tuple(point) for point in points[6:]} & {tuple(point) for point in first}


def test_a_diverged_trial_is_pruned_and_the_search_goes_on(text_file, tmp_path):
    fit = [f"--config={TINY}", *MICRO, f"--data_dir={text_file}", "--trainer.max_steps=2", "--model.warmup_steps=0"]
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    rows = search(fit, ["model.lr=1e-3,1e30"], 2, tmp_path, seed=9, storage=storage)
    assert [(row["model.lr"], row["state"]) for row in rows] == [("1e-3", "complete"), ("1e30", "pruned")]


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nonsense", r"--storage nonsense cannot be used \(.*\): see --help"),
        ("postgresql://me:secret@nowhere.invalid/db", r"--storage postgresql://me:\*\*\*@nowhere\.invalid/db cannot"),
        ("journal:", "names no file: write journal:FILE"),
    ],
)
def test_a_storage_that_cannot_be_used(storage, message, tmp_path):
    with pytest.raises(UserError, match=message):
        search([], ["model.lr=1:2"], 1, tmp_path / "new", storage=storage)
    assert list(tmp_path.iterdir()) == []


def test_a_search_is_no_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("sys.argv", ["search", "--space", "model.lr=1:2"])
    with pytest.raises(UserError, match="a search runs in one process: start several searches with one --storage"):
        main()


def test_other_choices_than_those_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.search.study.ZooCLI", lambda *_, **__: (_ for _ in ()).throw(Diverged("no")))
    search([], ["model.dim=16,32"], 1, tmp_path)
    with pytest.raises(UserError, match=r"--space model\.dim=16,64: the study has other choices of model\.dim"):
        search([], ["model.dim=16,64"], 1, tmp_path)
