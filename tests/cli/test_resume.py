"""A checkpoint alone: `fit` with the run's config.yaml, and old checkpoints."""

import shutil

import pytest
import torch
import yaml

from tests.commands import complaint, fit
from zoo.__main__ import main
from zoo.cli.arguments import read_arguments
from zoo.cli.checkpoint_info import read_checkpoint_info
from zoo.cli.linked_arguments import linked_arguments
from zoo.cli.resume import saved_run
from zoo.errors import UserError
from zoo.registry import MODELS, load_class


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def test_resume_from_a_checkpoint_alone_gives_the_weights_of_an_unbroken_run(text_file, tmp_path):
    constant = ["--model.min_lr_ratio=1", "--model.warmup_steps=0"]  # a schedule that does not depend on max_steps
    assert fit(tmp_path / "unbroken", text_file, *constant, max_steps=8) == 0
    assert fit(tmp_path / "first", text_file, *constant, max_steps=4) == 0
    shutil.move(tmp_path / "first", tmp_path / "moved")  # the run's folder is the checkpoint's, not the config's
    assert main(["fit", f"--ckpt_path={tmp_path / 'moved' / 'last.ckpt'}", "--trainer.max_steps=8"]) == 0
    assert not (tmp_path / "first").exists()
    expected, resumed = weights(tmp_path / "unbroken"), weights(tmp_path / "moved")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())


def test_a_saved_config_can_be_given_again(run, tmp_path):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert not set(saved["model"]["init_args"]) & set(linked_arguments(load_class("LlamaLM")))
    argv = ["fit", f"--config={run / 'config.yaml'}", f"--output_dir={tmp_path / 'again'}", "--trainer.max_steps=1"]
    assert main(argv) == 0


def test_a_config_or_class_in_the_command_wins(run):
    checkpoint = str(run / "last.ckpt")
    assert saved_run(checkpoint, read_arguments([])) == [f"--config={run / 'config.yaml'}", f"--output_dir={run}"]
    for words in (["--config=tiny/llama"], ["--model=LlamaLM"], ["--data", "TextLM"]):
        assert saved_run(checkpoint, read_arguments(words)) == []
    assert saved_run(None, read_arguments([])) == []


@pytest.mark.parametrize(
    "settings",
    [
        "model: {class_path: evil.Model}",
        "trainer: {callbacks: [{class_path: evil.Callback}]}",
        "trainer: {logger: evil.Logger}",
        "trainer: {logger: [evil.Logger]}",
        "data: {class_path: TextLM, init_args: {more: {class_path: evil.Data}}}",
    ],
)
def test_the_config_next_to_a_checkpoint_names_no_foreign_class(settings, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.yaml").write_text(settings)
    with pytest.raises(UserError, match=r"config\.yaml names evil\.\w+, which is not a class of the zoo: add --config"):
        saved_run(str(tmp_path / "last.ckpt"), read_arguments([]))


def test_an_old_checkpoint_names_its_data_by_import_path(run, tmp_path):
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    del checkpoint["TextLM"], checkpoint["zoo_digest"]
    checkpoint["zoo"] = {"model": "zoo.llama.module.LlamaLM", "data": "datamodules.text.TextLM"}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    info = read_checkpoint_info(str(tmp_path / "old.ckpt"))
    assert (info.model["class_path"], info.data["class_path"]) == ("LlamaLM", "TextLM")
    assert info.data["init_args"]["seq_len"] == 16
    checkpoint["zoo"]["data"] = "somewhere.Other"
    torch.save(checkpoint, tmp_path / "other.ckpt")
    assert read_checkpoint_info(str(tmp_path / "other.ckpt")).data is None


@pytest.mark.parametrize("name", MODELS)
def test_linked_arguments_cannot_be_given(name, capsys):
    for argument in linked_arguments(load_class(name)):
        said = complaint(capsys, 2, "fit", f"--model={name}", "--data=TextLM", f"--model.{argument}=3")
        assert f"--model.{argument} is taken from the data: drop it" in said
    inline = f'{{"class_path": "{name}", "init_args": {{"{argument}": 3}}}}'
    assert f"--model.{argument} is taken" in complaint(capsys, 2, "fit", "--model", inline, "--data=TextLM")


def test_a_subclass_may_read_a_checkpoint_of_its_base(run):
    llama = load_class("LlamaLM")
    info = read_checkpoint_info(str(run / "best.ckpt"))
    info.check_model("own.MyLlama", type("MyLlama", (llama,), {}))
    info.check_model("zoo.llama.LlamaLM", llama)
    info.check_model(None, None)
    with pytest.raises(UserError, match="was written by LlamaLM"):
        info.check_model("own.Other", type("Other", (), {}))


def test_ckpt_path_may_precede_the_config(run, tmp_path, capsys):
    out = [f"--output_dir={tmp_path / 'out'}", "--model.lr=0", "--trainer.max_steps=6"]
    checkpoint, config = f"--ckpt_path={run / 'last.ckpt'}", run / "config.yaml"
    assert main(["fit", checkpoint, f"--config={config}", *out]) == 0
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(tmp_path / "out").items())
    # Files by earlier versions contain the null; a new run would start without a message.
    (tmp_path / "old.yaml").write_text(config.read_text() + "ckpt_path: null\n")
    capsys.readouterr()
    said = complaint(capsys, 1, "fit", checkpoint, f"--config={tmp_path / 'old.yaml'}", *out)
    assert "sets ckpt_path to null: give --ckpt_path after that --config" in said
