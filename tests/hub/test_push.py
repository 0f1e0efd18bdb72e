"""`zoo push` to a stand-in of the hub: what is uploaded, the model card, refusals, and pulling it back."""

import io
import json
import re
import shutil

import pytest
import torch
import yaml

from tests.commands import complaint
from zoo.__main__ import main
from zoo.files.checkpoints import write_checkpoint
from zoo.files.safetensors_checkpoints import write_safetensors_checkpoint
from zoo.hub.model_card import model_card
from zoo.weights import find_weights

REPOSITORY = "someone/fox"


def push(*options):
    return main(["push", *map(str, options), "--licence=cc0-1.0"])


def test_a_run_is_pushed_without_training_state_and_pulled_back(hub, run, capsys):
    assert push(run, REPOSITORY) == 0
    assert capsys.readouterr().out == f"{hub.address}/{REPOSITORY}\n"
    files = hub.repositories[REPOSITORY]
    assert sorted(files) == ["README.md", "best.ckpt"]
    assert len(files["best.ckpt"]) < (run / "best.ckpt").stat().st_size / 2
    # The card's metadata, scores and config.
    metadata, card = re.fullmatch(r"---\n(.*?)---\n(.*)", files["README.md"].decode(), re.DOTALL).groups()
    assert yaml.safe_load(metadata) == {
        "license": "cc0-1.0", "library_name": "zoo", "tags": ["LlamaLM"], "pipeline_tag": "text-generation",
    }  # fmt: skip
    best = torch.load(run / "best.ckpt", weights_only=True)
    (state,) = [state for state in best["callbacks"].values() if "best_model_path" in state]
    for row in (f"| optimizer steps | {best['global_step']} |", f"| best val_loss | {state['best_score']:.6g} |",
                "| dim | 16 |", "| data | fox.txt |"):  # fmt: skip
        assert row in card
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    assert config["model"]["init_args"]["dim"] == 16
    assert str(run.parent) not in card
    # No path of this machine is in the checkpoint either.
    assert main(["pull", REPOSITORY]) == 0
    pulled = torch.load(find_weights(f"zoo:{REPOSITORY}"), weights_only=True)
    assert pulled["datamodule_hyper_parameters"]["data"] == "fox.txt"
    assert "optimizer_states" not in pulled
    for name, tensor in best["state_dict"].items():
        assert torch.equal(pulled["state_dict"][name], tensor)
    capsys.readouterr()
    assert main(["generate", f"--ckpt_path=zoo:{REPOSITORY}", "--prompt=The", "--max_new_tokens=4"]) == 0
    assert capsys.readouterr().out.startswith("The")


def test_an_exported_folder_is_pushed_as_it_is(hub, run, tmp_path, capsys):
    folder = tmp_path / "exported"
    (folder / "sub").mkdir(parents=True)
    contents = {"config.json": b"{}", "sub/a.txt": b"a", ".hidden": b"h"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    assert push(folder, REPOSITORY, f"--ckpt_path={run / 'best.ckpt'}") == 0
    files = hub.repositories[REPOSITORY]
    assert sorted(files) == ["README.md", "config.json", "sub/a.txt"]
    assert files["sub/a.txt"] == b"a"
    assert b"| dim | 16 |" in files["README.md"]
    # The user's own card is kept.
    (folder / "README.md").write_bytes(b"# mine")
    assert push(folder, REPOSITORY) == 0
    assert hub.repositories[REPOSITORY]["README.md"] == b"# mine"
    assert sorted(file.name for file in folder.iterdir()) == [".hidden", "README.md", "config.json", "sub"]


def test_the_checkpoint_that_the_card_describes_is_uploaded(hub, run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    write_checkpoint({**checkpoint, "global_step": 77}, folder / "other.ckpt")
    for name in ("other.ckpt", "last"):
        path = name if name == "last" else folder / name
        assert push(folder, REPOSITORY, f"--ckpt_path={path}") == 0
        files = hub.repositories[REPOSITORY]
        step = torch.load(io.BytesIO(files["best.ckpt"]), weights_only=True)["global_step"]
        assert step == (77 if name == "other.ckpt" else checkpoint["global_step"])
        assert f"| optimizer steps | {step} |" in files["README.md"].decode()
    capsys.readouterr()
    said = complaint(capsys, 1, "push", folder, "a/b", "--licence=mit", f"--ckpt_path={run / 'last.ckpt'}")
    assert f"is not a checkpoint in {folder}, whose own would be uploaded" in said
    for licence in ("", " ", "my licence"):
        assert "is no licence: give" in complaint(capsys, 1, "push", folder, "a/b", f"--licence={licence}")
    # The checkpoint of a sharded run is a folder.
    (folder / "best.ckpt").unlink()
    (folder / "best.ckpt").mkdir()
    (folder / "best.ckpt" / "meta.pt").touch()
    said = complaint(capsys, 1, "push", folder, "a/b", "--licence=mit")
    assert (
        f"run `zoo consolidate --ckpt_path {folder / 'best.ckpt'}`, and add --ckpt_path {folder / 'best-full.ckpt'}"
        in said
    )


def test_a_dry_run_uploads_nothing(hub, run, capsys):
    assert push(run, REPOSITORY, "--dry_run") == 0
    assert "files: README.md, best.ckpt" in capsys.readouterr().out
    assert hub.repositories == {}


def test_wrong_commands_are_refused_in_one_sentence(hub, run, tmp_path, capsys, monkeypatch):
    licence = "--licence=mit"
    assert "--licence" in complaint(capsys, 2, "push", run, REPOSITORY)
    assert "give OWNER/NAME" in complaint(capsys, 1, "push", run, "fox", licence)
    assert "is not a folder" in complaint(capsys, 1, "push", tmp_path / "none", REPOSITORY, licence)
    assert "has no files to upload" in complaint(capsys, 1, "push", tmp_path, "a/b", licence)
    assert "no checkpoint" in complaint(capsys, 1, "push", run, "a/b", licence, "--ckpt_path=x.ckpt")
    hub.token = "secret"
    said = complaint(capsys, 1, "push", run, "a/b", licence)
    assert "log in with `hf auth login`" in said.splitlines()[-1]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in complaint(capsys, 1, "push", run, "a/b", licence)


@pytest.mark.parametrize("value", ["a|b", "a\nb", "/home/me/data.csv", ["/home/me/x"], "x" * 10_000])
def test_any_setting_is_one_cell_of_the_cards_table(value):
    checkpoint = {"zoo": {"model": "LlamaLM"}, "state_dict": {}, "hyper_parameters": {"name": value}}
    (row,) = [line for line in model_card("a/b", "mit", checkpoint).splitlines() if line.startswith("| name")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert "/home/me" not in row
    assert len(row) < 300


def texts_in(value):
    """All strings in nested values."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts_in(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("kind", ["run", "safetensors", "one checkpoint"])
def test_no_upload_holds_a_local_path(kind, hub, run, tmp_path):
    """Every text of every uploaded file is compared, also those in the state of the data module."""
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    checkpoint["hyper_parameters"] |= {"base": "/secret/base.bin", "more": ["~/secret/a.csv", ("../secret/b", 1)]}
    checkpoint["datamodule_hyper_parameters"]["data"] = "C:\\secret\\fox.txt"
    checkpoint["SomeData"] = {"fixed": {"tokenizer": "transformers:/secret/encoder", "table": "file:///secret/t.csv"}}
    checkpoint["tokenizer"] = {**checkpoint["tokenizer"], "model": "/secret"}  # stands for base64, which stays
    folder = tmp_path / "local"
    folder.mkdir()
    if kind == "safetensors":
        write_safetensors_checkpoint(checkpoint, folder)
    else:
        write_checkpoint(checkpoint, folder / ("best.ckpt" if kind == "run" else "some.ckpt"))
    (folder / "config.json").write_text('{"_name_or_path": "/secret/llama", "dim": 3}')
    assert push(folder, REPOSITORY) == 0
    files = hub.repositories[REPOSITORY]
    for name, content in files.items():
        if name.endswith(".ckpt"):
            uploaded = torch.load(io.BytesIO(content), weights_only=True)
        elif name == "zoo.json":
            uploaded = json.loads(content)["checkpoint"]
        else:
            assert b"secret" not in content
            continue
        assert uploaded.pop("tokenizer")["model"] == "/secret"
        texts = texts_in(uploaded)
        assert not [text for text in texts if "secret" in text]
        assert {"base.bin", "a.csv", "b", "fox.txt", "transformers:encoder", "t.csv"} <= set(texts)


def test_an_export_in_safetensors_is_pushed_and_pulled(hub, run, tmp_path, capsys):
    assert main(["export", f"--ckpt_path={run / 'best.ckpt'}", "--format=safetensors", str(tmp_path / "st")]) == 0
    assert push(tmp_path / "st", REPOSITORY) == 0
    card = hub.repositories[REPOSITORY]["README.md"].decode()
    assert "tags:\n- LlamaLM" in card
    assert "| dim | 16 |" in card
    assert main(["pull", REPOSITORY]) == 0
    prompt = ("--prompt=The", "--max_new_tokens=4", "--temperature=0")
    capsys.readouterr()
    assert main(["generate", f"--ckpt_path=zoo:{REPOSITORY}", *prompt]) == 0
    pulled = capsys.readouterr().out
    assert main(["generate", f"--ckpt_path={run / 'best.ckpt'}", *prompt]) == 0
    assert capsys.readouterr().out == pulled


@pytest.mark.parametrize("suffix", ["onnx", "gguf"])
def test_the_card_of_files_for_other_programs_has_no_commands_of_the_zoo(suffix, hub, tmp_path):
    (tmp_path / f"model.{suffix}").write_bytes(b"x")
    assert push(tmp_path, REPOSITORY) == 0
    card = hub.repositories[REPOSITORY]["README.md"].decode()
    assert f"tags:\n- {suffix}" in card
    assert "zoo pull" not in card
    assert f"programs that read {suffix}" in card
