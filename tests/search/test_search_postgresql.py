"""A study in a PostgreSQL database: two processes work on it, and another call goes on with it."""

import os
import pwd
import shutil
import subprocess
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest

optuna = pytest.importorskip("optuna", reason="the search is an extra: pip install '.[search]'")
pytest.importorskip("psycopg2", reason="needs the package psycopg2-binary")
if (pg_ctl := shutil.which("pg_ctl")) is None:
    pytest.skip("needs PostgreSQL's pg_ctl in PATH", allow_module_level=True)

from zoo.callbacks import Checkpoint  # noqa: E402
from zoo.search.study import search  # noqa: E402

SPACE = ["model.lr=log:1e-4:1e-2"]


@pytest.fixture
def url():
    """The URL of an empty database of a server that listens on a socket in a new folder."""
    programs = Path(pg_ctl).resolve().parent
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short, as the names of sockets must be
    user = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        owner = pwd.getpwnam("nobody")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

    def run(program, *words):
        subprocess.run([programs / program, "-D", folder / "data", *words], check=True, capture_output=True, **user)

    try:
        run("initdb", "--username=me", "--auth=trust", "--no-sync")
        run("pg_ctl", "start", "-w", "-l", folder / "log", "-o", f"-c listen_addresses='' -k {folder} -F")
        yield f"postgresql+psycopg2://me@/postgres?host={folder}"
        run("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder)


def trial(words, callbacks):
    [lr] = [float(word.partition("=")[2]) for word in words if word.startswith("--model.lr=")]
    checkpoint = Checkpoint()
    checkpoint.best_score = lr
    return SimpleNamespace(trainer=SimpleNamespace(checkpoint_callback=checkpoint))


def test_two_processes_on_one_database(url, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.search.study.TrialCLI", trial)
    monkeypatch.setattr("zoo.search.study.read_monitor", lambda words: ("val_loss", "minimize"))

    def work():
        return search([], SPACE, 3, tmp_path / "study", storage=url, study_name="a")

    processes = []
    for _ in range(2):
        if not (pid := os.fork()):
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        processes.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes] == [0, 0]
    rows = work()
    assert sorted(int(row["trial"]) for row in rows) == list(range(9))
    points = [float(row["model.lr"]) for row in rows]
    assert len(set(points)) == 9
    assert points == sorted(points)  # the score is the learning rate
    assert {row["state"] for row in rows} == {"complete"}
    assert optuna.get_all_study_names(url) == ["a"]
