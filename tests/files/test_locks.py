"""Locks of runs and predictions: one owner, a refusal that names it, no trace after the end or a kill."""

import os
import shutil
import signal
import time

import pytest

from zoo.cli.run_lock import locked_folder
from zoo.errors import UserError
from zoo.files.locks import owned_lock


def test_a_second_owner_is_refused_by_name(tmp_path):
    folder = tmp_path / "new" / "run"
    with locked_folder(folder):
        refusal = rf"another run writes into {folder} \(process {os.getpid()}\)$"
        with pytest.raises(UserError, match=refusal), locked_folder(folder):
            pass
        (folder / "last.ckpt").touch()
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]
    with locked_folder(folder):
        pass


def test_the_end_of_a_run_leaves_the_lock_in_a_folder_that_replaced_its_own(tmp_path):
    folder = tmp_path / "run"
    with locked_folder(folder):
        shutil.rmtree(folder)
        other = locked_folder(folder)
        other.__enter__()
    assert (folder / ".lock").exists()
    with pytest.raises(UserError, match="another run writes into"), locked_folder(folder):
        pass
    other.__exit__(None, None, None)
    assert not list(folder.parent.iterdir())


def test_an_empty_folder_is_removed_again(tmp_path):
    with pytest.raises(RuntimeError), locked_folder(tmp_path / "a" / "b"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with locked_folder(tmp_path):  # it existed before
        pass
    assert tmp_path.is_dir()


@pytest.mark.parametrize("with_worker", [False, True])
def test_the_lock_of_a_killed_process_does_not_block(tmp_path, with_worker):
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        with locked_folder(tmp_path):
            if with_worker and os.fork() == 0:  # a loader process lives a little longer and shares the lock
                time.sleep(0.3)
                os._exit(0)
            os.write(write, b".")
            time.sleep(60)
    os.read(read, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / ".lock").exists()
    with locked_folder(tmp_path):
        assert (tmp_path / ".lock").read_text().split()[0] == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_machine_is_named(tmp_path):
    with owned_lock(tmp_path / "lock", "no"):
        (tmp_path / "lock").write_text("12 node7\n")
        with pytest.raises(UserError, match=r"^taken \(process 12 on node7\)$"), owned_lock(tmp_path / "lock", "taken"):
            pass
        (tmp_path / "lock").write_text("damaged")
        with pytest.raises(UserError, match=r"^taken \(another process\)$"), owned_lock(tmp_path / "lock", "taken"):
            pass


@pytest.mark.parametrize("name", ["file/below", "x" * 300, "/proc/zoo"])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, name):
    (tmp_path / "file").touch()
    sentence = r"^cannot write to .* \([A-Z][a-z ]+\): give another --output_dir$"
    with pytest.raises(OSError, match=sentence), locked_folder(tmp_path / name):
        pass
