"""Files by torch.save from elsewhere: digest, sizes, no code, one sentence; models larger than their tensors."""

import hashlib
import os
import random
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from tests.fuzzing.mutations import damage, flip, mutate, values
from tests.fuzzing.readers import address_space, outcome
from zoo.errors import UserError
from zoo.files import regular_file
from zoo.files.checkpoints import read_checkpoint, write_checkpoint
from zoo.files.digest import KEY, add_digest, digest
from zoo.files.torch_files import read_torch_file
from zoo.llama import LlamaLM, load_checkpoint
from zoo.tokenizers import load_tokenizer

SIZES = {"dim": 8, "n_layers": 1, "n_heads": 1, "max_seq_len": 8}
FUZZ = settings(max_examples=25, derandomize=True, deadline=None, database=None)


def fit(module, folder, **options):
    """The Trainer after one training step."""
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, default_root_dir=folder, **off)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    loader = DataLoader(TensorDataset(tokens, tokens))
    with warnings.catch_warnings():  # of Lightning, about the number of workers
        warnings.simplefilter("ignore")
        trainer.fit(module, loader, loader, **options)
    return trainer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint that Lightning's Trainer has written."""
    path = tmp_path_factory.mktemp("saved") / "model.ckpt"
    module = LlamaLM(tokenizer=load_tokenizer("bytes"), **SIZES)
    fit(module, path.parent).save_checkpoint(path)
    return path


def content(path):
    """What is in a checkpoint, without its digest."""
    return {name: value for name, value in torch.load(path, weights_only=True).items() if name != KEY}


# ---- kinds of files


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "empty", "loop", "zero byte", "missing", "huge"])
def test_only_regular_files_are_read(kind, tmp_path):
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "huge":  # a sparse file: it has a size, and no blocks on the disk
        path.touch()
        os.truncate(path, 2**43)
    path = {"device": "/dev/zero", "zero byte": f"{path}\0"}.get(kind, path)
    with pytest.raises((UserError, FileNotFoundError)) as caught:
        read_torch_file(path)
    assert "file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_regular_file_follows_links_and_names_the_option(tmp_path):
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert regular_file(tmp_path / "b", max_bytes=2) == tmp_path / "b"
    with pytest.raises(UserError, match=r"--weights .*b is too large: 2 bytes, where at most 1 are read"):
        regular_file(tmp_path / "b", "--weights", max_bytes=1)


# ---- digest


def test_digest_covers_every_value_and_not_the_file_format(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "half": torch.ones(3).bfloat16(), "none": torch.zeros(0, 2)}
    value = {"state": tensors, "lr": 0.1, "n": 3, "on": True, "names": ["x", ("y", None)], 5: {2.5}}
    torch.save(value, tmp_path / "zip")
    torch.save(value, tmp_path / "old", _use_new_zipfile_serialization=False)
    again = [torch.load(tmp_path / name, weights_only=True) for name in ("zip", "old")]
    # The definition, written out: SHA-256 of types, lengths and values.
    assert digest({"a": 1}) == hashlib.sha256(b"dict 1;text 1;aint 1;").hexdigest()
    assert {digest(one) for one in (value, *again)} == {digest(value)}
    transposed = tensors | {"a": torch.arange(6.0).view(2, 3).t().contiguous().t()}  # other strides, same values
    assert digest(value | {"state": transposed}) == digest(value)
    changed = [
        value | {"lr": 0.1 + 1e-17 * 8}, value | {"n": 3.0}, value | {"on": 1}, value | {"names": ["x", ["y", None]]},
        value | {"names": ["xy", ("", None)]}, value | {"state": tensors | {"a": tensors["a"].view(3, 2)}},
        value | {"state": tensors | {"a": tensors["a"].double()}}, {k: value[k] for k in reversed(value)},
        value | {"state": tensors | {"a": -tensors["a"]}},
    ]  # fmt: skip
    assert len({digest(one) for one in (value, *changed)}) == 1 + len(changed)


def test_every_checkpoint_of_a_trainer_has_a_digest(saved):
    checkpoint = torch.load(saved, weights_only=True)
    assert checkpoint[KEY] == digest(content(saved))
    assert read_checkpoint(saved)["global_step"] == 1


def test_every_flipped_bit_of_a_tensor_is_noticed(saved, tmp_path):
    """Also in a file without a digest, by the checksums of its archive."""
    original, path = saved.read_bytes(), tmp_path / "flipped.ckpt"
    plain = tmp_path / "plain.ckpt"
    weight = content(saved)["state_dict"]["model.tok_embeddings.weight"].numpy().tobytes()
    torch.save(content(saved), plain)
    for file in (original, plain.read_bytes()):
        start = file.find(weight)
        for seed in range(30):
            path.write_bytes(flip(file, random.Random(seed), start=start, stop=start + len(weight)))
            with pytest.raises(UserError, match="damaged"):
                LlamaLM.load_from_checkpoint(path)
            with pytest.raises(UserError, match="damaged"):
                load_checkpoint(path)


def test_changed_settings_are_noticed_and_the_check_can_be_skipped(saved, tmp_path, monkeypatch):
    path = tmp_path / "changed.ckpt"
    checkpoint = torch.load(saved, weights_only=True)
    checkpoint["hyper_parameters"]["norm_eps"] = 1e-3
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r"changed\.ckpt is damaged: its content differs from the digest"):
        fit(LlamaLM.load_from_checkpoint(saved), tmp_path, ckpt_path=str(path))
    with pytest.raises(UserError, match="differs from the digest"):
        LlamaLM.load_from_checkpoint(path)
    monkeypatch.setenv("ZOO_VERIFY", "0")
    assert read_checkpoint(path)["hyper_parameters"]["norm_eps"] == 1e-3
    assert LlamaLM.load_from_checkpoint(path).model.config.norm_eps == 1e-3
    monkeypatch.delenv("ZOO_VERIFY")
    write_checkpoint(checkpoint, path)  # a new digest
    assert LlamaLM.load_from_checkpoint(path).model.config.norm_eps == 1e-3


# ---- sizes


@pytest.mark.parametrize(
    "changes",
    [{"n_layers": 10**9}, {"dim": 10**9}, {"vocab_size": 2**40}, {"max_seq_len": 2**40}, {"hidden_dim": 2**40}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_model_far_larger_than_its_tensors_is_not_built(saved, tmp_path, changes):
    path = tmp_path / "huge.ckpt"
    checkpoint = content(saved)
    checkpoint["hyper_parameters"] |= changes
    torch.save(checkpoint, path)
    for read in (LlamaLM.load_from_checkpoint, load_checkpoint):
        with address_space(2**31), pytest.raises(UserError, match=r"huge\.ckpt"):
            read(path)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(1).expand(10**6, 10**6), "but the file has only"),
        (torch.eye(3).to_sparse(), "pickled Python objects"),
        (torch.zeros(2, device="meta"), "pickled Python objects"),
        (np.zeros(3), "pickled Python objects"),
        (bytearray(9), "pickled Python objects"),
    ],
    ids=["expanded", "sparse", "meta", "numpy", "bytearray"],
)
def test_tensors_that_the_file_does_not_justify(tmp_path, tensor, words, is_zip):
    torch.save({"state_dict": {"a": tensor}}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match=words):
        read_torch_file(tmp_path / "a.ckpt")


def test_a_compressed_archive_and_recursive_values_are_refused(saved, tmp_path):
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match=r"bomb\.ckpt is truncated or damaged"):
        read_torch_file(bomb)
    recursive: list = []
    recursive.append(recursive)
    wide: list = []
    for _ in range(40):
        wide = [wide] * 10  # 10^40 values by references to 40 lists
    for value in (recursive, wide):
        torch.save({"state_dict": value}, tmp_path / "nested.ckpt")
        with pytest.raises(UserError, match="nested too deeply, or contain each other"):
            read_torch_file(tmp_path / "nested.ckpt")


# ---- mutated files


@FUZZ
@given(seed=st.integers(0, 2**32))
def test_mutated_structure_is_accepted_or_refused_in_one_sentence(saved, tmp_path_factory, seed):
    rng = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "mutated.ckpt"
    torch.save(mutate(without_tokenizer(saved), rng, values(), rng.choice((1, 1, 3))), path)
    for read in (LlamaLM.load_from_checkpoint, load_checkpoint):
        assert outcome(read, path) in ("accepted", "refused")


@FUZZ
@given(seed=st.integers(0, 2**32))
def test_mutated_bytes_are_refused_in_one_sentence(saved, tmp_path_factory, seed):
    path = tmp_path_factory.getbasetemp() / "damaged.ckpt"
    path.write_bytes(damage(saved.read_bytes(), random.Random(seed)))
    for read in (LlamaLM.load_from_checkpoint, load_checkpoint):
        # A change in padding or in the archive's own records may leave the content as it was.
        result = outcome(read, path)
        assert result in ("accepted", "refused")
        assert result == "refused" or digest(content(path)) == torch.load(saved, weights_only=True)[KEY]


def without_tokenizer(path):
    checkpoint = content(path)
    del checkpoint["tokenizer"]
    return checkpoint


def test_add_digest_replaces_an_old_one():
    once = add_digest({"a": 1})
    assert add_digest(once | {"a": 2}) == add_digest({"a": 2}) != once
