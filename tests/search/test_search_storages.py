"""Storages of a search: two processes on one, refused ones, files of another kind, and what a refused search leaves."""

import threading
from types import SimpleNamespace

import pytest

optuna = pytest.importorskip("optuna", reason="the search is an extra: pip install '.[search]'")

from zoo.callbacks import Checkpoint  # noqa: E402
from zoo.errors import Diverged, UserError  # noqa: E402
from zoo.search import study as study_module  # noqa: E402
from zoo.search.study import search  # noqa: E402


def test_two_processes_on_one_journal_draw_different_points(scores, tmp_path, monkeypatch):
    """The numbers of trials are unique in a storage, and each trial draws with the seed of its number."""
    points = []

    def cli(words, callbacks, label):
        points.append([word for word in words if word.startswith("--model.lr=")])
        raise Diverged("training has diverged")

    monkeypatch.setattr("zoo.search.study.TrialCLI", cli)
    url = f"journal:{tmp_path / 'study' / 'journal.log'}"
    for _ in range(2):  # as a second process would
        rows = search([], ["model.lr=log:1e-4:1e-2"], 2, tmp_path / "a", storage=url, study_name="a")
    assert [row["state"] for row in rows] == ["pruned"] * 4
    assert len({tuple(point) for point in points}) == 4
    first = list(points)
    search([], ["model.lr=log:1e-4:1e-2"], 2, tmp_path / "b", storage=url, study_name="b")
    assert points[4:] == first[:2]  # another study with the same seed
    search([], ["model.lr=log:1e-4:1e-2"], 2, tmp_path / "c", storage=url, study_name="c", seed=1)
    assert not {tuple(point) for point in points[6:]} & {tuple(point) for point in first}


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nonsense", r"--storage nonsense cannot be used \(.*\): see --help"),
        ("postgresql://me:secret@nowhere.invalid/db", r"--storage postgresql://me:\*\*\*@nowhere\.invalid/db cannot"),
        ("journal:", "names no file: write journal:FILE"),
    ],
)
def test_a_storage_that_cannot_be_used(storage, message, scores, tmp_path):
    with pytest.raises(UserError, match=message):
        search([], ["model.lr=1:2"], 1, tmp_path / "new", storage=storage)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("storage", "error"),
    [
        (None, KeyboardInterrupt()),
        ("journal:{}/s/j.log", UserError("wrong")),
        ("journal:{}/far/away/j.log", SystemExit(2)),
        ("sqlite:///{}/s/x.db", UserError("wrong")),
    ],
)
def test_a_refused_first_trial_leaves_no_storage(storage, error, scores, tmp_path):
    storage = storage and storage.format(tmp_path)
    scores += [error, 2.0, error]
    with pytest.raises(type(error)):
        search([], ["model.lr=1:2"], 1, tmp_path / "s", storage=storage)
    assert list(tmp_path.iterdir()) == []
    search([], ["model.lr=1:2"], 1, tmp_path / "s", storage=storage)
    with pytest.raises(type(error)):
        search([], ["model.lr=1:2"], 1, tmp_path / "s", storage=storage)
    assert len(search([], ["model.lr=1:2"], 0, tmp_path / "s", storage=storage)) == 2


@pytest.mark.parametrize("storage", [None, "journal:{}/s/j.log", "sqlite:///{}/s/x.db"])
def test_a_refused_search_keeps_the_storage_that_another_one_uses(storage, tmp_path, monkeypatch):
    """A search without a trial so far is refused, while another one that started at the same time goes on."""
    storage = storage and storage.format(tmp_path)
    checkpoint = Checkpoint()
    checkpoint.best_score = 2.0
    first_waits, second_ended = threading.Event(), threading.Event()

    def trial(words, callbacks, label):
        if threading.current_thread() is other:
            first_waits.set()
            assert second_ended.wait(30)
            return SimpleNamespace(trainer=SimpleNamespace(checkpoint_callback=checkpoint))
        assert first_waits.wait(30)
        raise UserError("wrong")

    monkeypatch.setattr("zoo.search.study.TrialCLI", trial)
    monkeypatch.setattr("zoo.search.study.read_monitor", lambda words: ("val_loss", "minimize"))
    # Both find no storage, and then make it.
    together, open_study = threading.Barrier(2), study_module._open_study
    monkeypatch.setattr(study_module, "_open_study", lambda *args: (together.wait(30), open_study(*args))[1])
    rows = []
    other = threading.Thread(
        target=lambda: rows.extend(search([], ["model.lr=1:2"], 1, tmp_path / "s", storage=storage))
    )
    other.start()
    with pytest.raises(UserError, match="wrong"):
        search([], ["model.lr=1:2"], 1, tmp_path / "s", storage=storage)
    second_ended.set()
    other.join()
    assert sorted(row["state"] for row in rows) == ["complete", "fail"]


def test_two_studies_in_one_folder_are_refused(scores, tmp_path):
    scores += [1.0]
    search([], ["model.lr=1:2"], 1, tmp_path)
    (tmp_path / "trial-000").mkdir()
    with pytest.raises(UserError, match="holds trials of another study than 'other': give another --output_dir"):
        search([], ["model.lr=1:2"], 1, tmp_path, study_name="other")
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path / 'study.db'}") == ["zoo"]


@pytest.mark.parametrize("content", ["hello", "hello\n", "{}\n", "1\n", '{"op_code": 0', "\0\n"])
def test_a_file_of_another_kind_is_no_journal_and_stays_as_it_is(content, scores, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text(content)
    with pytest.raises(UserError, match="is not a journal of Optuna: give another file"):
        search([], ["model.lr=1:2"], 1, tmp_path / "new", storage=f"journal:{file}")
    assert file.read_text() == content
    assert list(tmp_path.iterdir()) == [file]


def test_a_damaged_journal_is_named(scores, tmp_path):
    file = tmp_path / "journal.log"
    scores += [1.0]
    search([], ["model.lr=1:2"], 1, tmp_path / "a", storage=f"journal:{file}")
    first, *_ = file.read_text().splitlines()
    for damage in ("hello\n{}\n", '{"op_code": 4}\n', "1\n"):
        file.write_text(f"{first}\n{damage}")
        with pytest.raises(UserError, match=r"journal\.log cannot be used \("):
            search([], ["model.lr=1:2"], 1, tmp_path / "b", storage=f"journal:{file}")
        assert not (tmp_path / "b").exists()


def test_a_file_that_is_no_database_is_named_and_stays_as_it_is(scores, tmp_path):
    (tmp_path / "study.db").write_text("hello" * 100)
    with pytest.raises(UserError, match=r"study\.db cannot be used \(.*not a database.*\): give another --output_dir"):
        search([], ["model.lr=1:2"], 1, tmp_path)
    assert (tmp_path / "study.db").read_text() == "hello" * 100
