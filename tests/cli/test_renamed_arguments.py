"""Old names of options are refused with the new name: on the command line, in configs and in checkpoints."""

import pytest
import torch

from tests.commands import MICRO, TINY, complaint
from zoo.cli.renamed_arguments import find_renamed
from zoo.llama import LlamaLM


class Base:
    renamed_arguments = {"bag": "bow_features", "digits": "number_digits"}  # noqa: RUF012


class Model(Base):
    renamed_arguments = {"bag_c": "bow_C", "method": "set --model LlamaZeroShot instead", "gone": ""}  # noqa: RUF012


@pytest.mark.parametrize(
    ("key", "source", "sentence"),
    [
        ("model.bag", "", "--model.bag is now called --model.bow_features"),
        ("model.init_args.bag_c", "x.yaml", "x.yaml: model.bag_c is now called model.bow_C"),
        ("model.digits.0", "", "--model.digits.0 is now called --model.number_digits.0"),
        ("model.method", "", "--model.method no longer exists: set --model LlamaZeroShot instead"),
        ("model.gone", "", "--model.gone no longer exists"),
        ("half.dtype", "", "--half.dtype is now called --mixed_precision.dtype"),
        ("half", "x.yaml", "x.yaml: half is now called mixed_precision"),
        ("model.dim", "", None),
        ("data.bag", "", None),
        ("trainer.bag", "", None),
    ],
)
def test_sentence(key, source, sentence):
    assert find_renamed([("output_dir", ""), (key, source)], {"model": Model, "data": None}) == sentence


@pytest.fixture
def renamed(monkeypatch):
    monkeypatch.setattr(LlamaLM, "renamed_arguments", {"depth": "n_layers", "gone": ""}, raising=False)


def test_on_the_command_line_and_in_a_config(renamed, capsys, tmp_path):
    argv = ["fit", f"--config={TINY}", *MICRO, f"--output_dir={tmp_path / 'run'}"]
    assert "--model.depth is now called --model.n_layers" in complaint(capsys, 2, *argv, "--model.depth=1")
    expected = "--half.precision is now called --mixed_precision.dtype"
    assert expected in complaint(capsys, 2, *argv, "--half.precision=bf16")
    expected = "--mixed_precision.precision is now called --mixed_precision.dtype"
    assert expected in complaint(capsys, 2, *argv, "--mixed_precision.precision=bf16")
    old = tmp_path / "old.yaml"
    old.write_text("model:\n  class_path: LlamaLM\n  init_args:\n    depth: 1\n")
    assert f"{old}: model.depth is now called model.n_layers" in complaint(capsys, 2, *argv, f"--config={old}")
    old.write_text("half:\n  precision: bf16\n")
    expected = f"{old}: half.precision is now called mixed_precision.dtype"
    assert expected in complaint(capsys, 2, *argv, f"--config={old}")


def test_in_a_checkpoint(renamed, run, capsys, tmp_path):
    from zoo.__main__ import main

    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    del checkpoint["zoo_digest"]  # it is changed below
    settings = checkpoint["hyper_parameters"]
    path = tmp_path / "old.ckpt"
    torch.save(checkpoint | {"hyper_parameters": settings | {"gone": 3}}, path)
    argv = [f"--ckpt_path={path}", "--prompt=The ", "--max_new_tokens=1"]
    assert main(["generate", *argv]) == 0  # a setting that no longer exists is dropped
    capsys.readouterr()
    torch.save(checkpoint | {"hyper_parameters": settings | {"depth": 3}}, path)
    assert f"{path}: model.depth is now called model.n_layers" in complaint(capsys, 1, "generate", *argv)
