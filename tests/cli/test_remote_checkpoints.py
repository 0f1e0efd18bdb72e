"""Checkpoints at a URL: copied into the cache, read with the checks of a local file, resumed into a local folder."""

import io
import struct

import fsspec
import pytest
import torch

from tests.commands import TINY, complaint
from zoo.__main__ import main
from zoo.cli.arguments import read_arguments
from zoo.cli.resume import with_chosen_settings
from zoo.files import remote_files
from zoo.files.remote_files import copy_with_neighbours, is_copy, local_copy


@pytest.fixture
def remote(run):
    """The URL of a copy of the run in memory."""
    files = fsspec.filesystem("memory")
    for name in ("last.ckpt", "config.yaml"):
        files.pipe(f"/bucket/fox/{name}", (run / name).read_bytes())
    yield "memory://bucket/fox"
    files.rm("/bucket", recursive=True)


def test_a_remote_run_is_validated_and_resumed(remote, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["validate", f"--ckpt_path={remote}/last.ckpt", "--trainer.limit_val_batches=1"]) == 0
    out = tmp_path / "here"
    assert main(["fit", f"--ckpt_path={remote}/last.ckpt", "--trainer.max_steps=6", f"--output_dir={out}"]) == 0
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 6
    assert not is_copy(out)


def test_a_remote_run_with_chosen_settings_does_not_continue_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    folder = tmp_path / "remote" / "0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("output_dir: runs/x\n")
    arguments = read_arguments(["--config=regress_lm"])
    words = with_chosen_settings(str(folder / "last.ckpt"), arguments)
    assert words == [*arguments.words, f"--config={folder / 'config.yaml'}"]


def test_a_copy_is_used_until_the_file_changes(tmp_path, monkeypatch):
    files = fsspec.filesystem("memory")
    files.pipe("/bucket/a.ckpt", b"one")
    copies = []
    read = remote_files._read
    monkeypatch.setattr(remote_files, "_read", lambda *arguments: (copies.append(arguments), read(*arguments)))
    assert local_copy("memory://bucket/a.ckpt").read_bytes() == b"one"
    path = local_copy("memory://bucket/a.ckpt")
    assert len(copies) == 1
    assert is_copy(path)
    files.pipe("/bucket/a.ckpt", b"other")
    assert local_copy("memory://bucket/a.ckpt") == path
    assert path.read_bytes() == b"other"


def test_the_tokenizer_of_remote_llama2c_weights_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    files = fsspec.filesystem("memory")
    torch.save({"model_args": {"vocab_size": 512}, "model": {}}, content := io.BytesIO())
    header = struct.pack("<7i", 64, 172, 5, 8, 4, -512, 512) + bytes(64)
    for name, weights in (("model.bin", header), ("model.pt", content.getvalue())):
        files.pipe(f"/bucket/{name[-2:]}/{name}", weights)
        files.pipe(f"/bucket/{name[-2:]}/tok512.bin", b"tokenizer")
        copy = copy_with_neighbours(f"memory://bucket/{name[-2:]}/{name}", "--ckpt_path")
        assert copy.with_name("tok512.bin").read_bytes() == b"tokenizer"


class Code:
    def __reduce__(self):
        return exec, ("raise SystemError('code of a file was run')",)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("memory://bucket/none.ckpt", "there is no such file"),
        ("memory://bucket/code.ckpt", "which could run code"),
        ("foo://bucket/x.ckpt", "Protocol not known: foo"),
        ("memory://bucket", "is a folder: copy it here"),
        ("memory://bucket/..", "names no file"),
    ],
)
def test_refusals(url, sentence, capsys):
    torch.save({"zoo": Code()}, content := io.BytesIO())
    fsspec.filesystem("memory").pipe("/bucket/code.ckpt", content.getvalue())
    assert sentence in complaint(capsys, 1, "validate", f"--ckpt_path={url}")


def test_a_run_is_not_written_to_a_url(text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["fit", f"--config={TINY}", f"--data_dir={text_file}", "--output_dir=memory://bucket/run"]
    assert "--output_dir memory://bucket/run is a URL, and files are written locally only: give a path" in complaint(
        capsys, 1, *argv
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("memory")]
