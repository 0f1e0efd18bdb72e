"""Checkpoint folders: content survives, damage and hostile tables are refused in one sentence, saves are atomic."""

import json
import os
import struct

import pytest
import torch
from torch.distributed.tensor import Shard, distribute_tensor

from tests.commands import complaint
from zoo.cli.run_folder import find_checkpoint, refuse_other_run
from zoo.console.exit_codes import BAD_INPUT, USAGE
from zoo.errors import UserError
from zoo.files import atomic
from zoo.files.checkpoint_folders import KEY, META, is_checkpoint_folder, read_folder, read_meta, write_folder
from zoo.files.checkpoints import DigestCheckpointIO, read_checkpoint
from zoo.files.digest import add_digest


@pytest.fixture
def checkpoint(mesh):
    weight = torch.arange(12, dtype=torch.float32).view(4, 3)
    half = torch.randn(5, 2).bfloat16()
    state = {0: {"step": 3, "exp_avg": weight + 1}, 1: {"step": 3, "exp_avg": half}}
    plain = {
        "state_dict": {"model.w": weight, "model.table": torch.ones(2), "model.h": half, "model.e": torch.ones(0, 2)},
        "optimizer_states": [{"parts": [{"state": state, "param_groups": [{"params": [0, 1], "lr": 0.1}]}]}],
        "global_step": 3,
        "loops": {"fit": {"done": False}},
    }

    def sharded(value):
        if isinstance(value, dict):
            return {k: v if k == "model.table" else sharded(v) for k, v in value.items()}
        if isinstance(value, list):
            return [sharded(v) for v in value]
        return distribute_tensor(value, mesh, [Shard(0)]) if isinstance(value, torch.Tensor) else value

    return plain, sharded(plain)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else a == b


def test_a_folder_has_the_content_of_the_checkpoint(checkpoint, tmp_path):
    plain, sharded = checkpoint
    path = tmp_path / "last.ckpt"
    path.write_text("an earlier file")
    for _ in range(2):  # over a file, and over a folder
        DigestCheckpointIO().save_checkpoint(sharded, path)
        assert is_checkpoint_folder(path)
        assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    got = read_checkpoint(path, required=("state_dict",))
    assert same(got, plain)
    assert list(got["state_dict"]) == list(plain["state_dict"])
    described = read_meta(path)
    assert described["state_dict"]["model.w"].is_meta
    assert described["state_dict"]["model.w"].shape == (4, 3)
    assert described["optimizer_states"][0]["parts"][0]["state"][1]["step"] == 3


def test_a_failed_save_leaves_the_earlier_folder(checkpoint, tmp_path, monkeypatch):
    _, sharded = checkpoint
    path = tmp_path / "last.ckpt"
    write_folder(sharded, path)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.save", fail)
    with pytest.raises(OSError, match="No space left"):
        write_folder(sharded | {"global_step": 4}, path)
    assert read_folder(path)["global_step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_save_that_was_killed_is_cleaned_up_or_named(checkpoint, tmp_path):
    _, sharded = checkpoint
    path = tmp_path / "last.ckpt"
    stale = atomic.temporary_path(path)
    stale = stale.with_name(stale.name.replace(str(os.getpid()), "4194305"))  # no process has this number
    stale.mkdir()
    write_folder(sharded, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    path.rename(tmp_path / "last.ckpt.old")
    for name in ("auto", "last", str(path)):
        assert find_checkpoint(name, str(tmp_path)) == f"{path}.old"
    with pytest.raises(UserError, match=r"already holds a run \(last.ckpt.old\)"):
        refuse_other_run(tmp_path, None)
    write_folder(sharded, path)  # the next save
    assert [file.name for file in tmp_path.glob("last*")] == ["last.ckpt"]
    (path / META).unlink()
    with pytest.raises(UserError, match="incomplete copy of a checkpoint folder"):
        find_checkpoint(str(path), None)


def change_meta(path, change):
    content = torch.load(path / META, weights_only=True)
    change(content)
    torch.save(add_digest(content), path / META)


def header(path, change):
    """Change the header of the folder's safetensors file, with its size and digest left out."""
    (file,) = path.glob("*.safetensors")
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    text = change(json.loads(data[8 : 8 + size]))
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    change_meta(path, lambda meta: meta[KEY]["files"][file.name].update(bytes=file.stat().st_size))


def entry(meta, **values):
    meta[KEY]["tensors"][0].update(values)


HOSTILE = {
    "no table": lambda m: m.pop(KEY),
    "table": lambda m: m.update({KEY: [1]}),
    "tensors": lambda m: m[KEY].update(tensors={}),
    "files": lambda m: m[KEY].update(files=[1]),
    "outside": lambda m: m[KEY]["files"].update({"../x": {"bytes": 1, "sha256": ""}}),
    "file entry": lambda m: m[KEY]["files"].update({"x": 3}),
    "huge": lambda m: entry(m, shape=[2**30, 2**30]),
    "negative": lambda m: entry(m, shape=[-1]),
    "dtype": lambda m: entry(m, dtype=["float32"]),
    "other dtype": lambda m: entry(m, dtype="quint8"),
    "place": lambda m: entry(m, place=["state_dict", "none"]),
    "deep place": lambda m: entry(m, place=["state_dict", "model.w", 0, 1]),
    "no place": lambda m: entry(m, place=[]),
    "elsewhere": lambda m: entry(m, place=["hyper_parameters", "x"]),
    "index": lambda m: entry(m, place=["optimizer_states", 7]),
    "shape": lambda m: entry(m, shape=[3, 4]),
    "name": lambda m: entry(m, name="state_dict.model.z"),
    "missing": lambda m: m[KEY]["files"].clear(),
    "state": lambda m: m.update(state_dict=[]),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("verify", ["0", "1"])
def test_hostile_tables_are_refused(kind, verify, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_VERIFY", verify)
    path = tmp_path / "last.ckpt"
    write_folder(checkpoint[1], path)
    change_meta(path, HOSTILE[kind])
    with pytest.raises(UserError, match=r"last.ckpt.* is (truncated or )?damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", ["missing", "shorter", "flipped", "link", "header", "offsets"])
def test_damaged_files_are_refused(kind, checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write_folder(checkpoint[1], path)
    (file,) = path.glob("*.safetensors")
    data = file.read_bytes()
    if kind == "missing":
        file.unlink()
    elif kind == "shorter":
        file.write_bytes(data[:-1])
    elif kind == "flipped":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif kind == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        monkeypatch.setenv("ZOO_VERIFY", "0")
        spoil = {"header": lambda h: b"{}", "offsets": lambda h: json.dumps(h).replace("saved_offsets", "x").encode()}
        header(path, spoil[kind])
    with pytest.raises(UserError, match="is truncated or damaged"):
        read_checkpoint(path)


def test_consolidate_refuses_in_one_sentence(checkpoint, tmp_path, capsys):
    write_folder(checkpoint[1], tmp_path / "last.ckpt")
    (tmp_path / "one.ckpt").write_bytes(b"")
    folder = f"--ckpt_path={tmp_path / 'last.ckpt'}"
    expected = {
        (): (USAGE, "--ckpt_path"),
        (folder, "--otput=x"): (USAGE, "--otput"),
        (f"--ckpt_path={tmp_path / 'none.ckpt'}",): (BAD_INPUT, "there is no checkpoint"),
        (f"--ckpt_path={tmp_path / 'one.ckpt'}",): (BAD_INPUT, "not a checkpoint of several files"),
        (folder, f"--output={tmp_path / 'one.ckpt'}"): (BAD_INPUT, "exists already"),
        (folder, f"--output={tmp_path / 'no' / 'x.ckpt'}"): (BAD_INPUT, "does not exist"),
    }
    for options, (code, words) in expected.items():
        assert words in complaint(capsys, code, "consolidate", *options)
    assert (tmp_path / "one.ckpt").read_bytes() == b""
