"""Files replaced as a whole: complete or unchanged, unique temporary names, remains of killed processes removed."""

import os
import signal
import stat

import pytest

from zoo.files.atomic import is_alive, remove_stale, replacing, temporary_path


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path, durable=True) as temporary:
        temporary.write_text("first")
        assert not path.exists()

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_temporary_names_are_unique_hidden_and_short_enough(tmp_path):
    path = tmp_path / ("é" * 120 + ".jsonl")  # 246 bytes
    names = [temporary_path(path) for _ in range(3)]
    assert len(set(names)) == 3
    for name in names:
        assert name.parent == tmp_path
        assert name.name.startswith(".")
        name.write_text("")


def test_remains_of_killed_processes_are_removed(tmp_path):
    path = tmp_path / "last.ckpt"
    (child := os.fork()) or temporary_path(path).touch() or os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    mine, other = temporary_path(path), temporary_path(tmp_path / "best.ckpt")
    foreign = tmp_path / f".last.ckpt.elsewhere-{child}-0.tmp"
    for file in (mine, other, foreign):
        file.touch()
    assert len(list(tmp_path.iterdir())) == 4
    assert not is_alive(child)
    remove_stale(path)
    assert set(tmp_path.iterdir()) == {mine, other, foreign}
    remove_stale(tmp_path / "missing" / "file")
