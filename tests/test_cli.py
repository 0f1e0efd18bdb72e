"""The command line end to end, with the tiny Llama: help, fit, validate, test, predict, generate, resume, signals."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

from tests.commands import MICRO, ROOT, TEXT, TINY, complaint, fit, start
from zoo.__main__ import main
from zoo.cli import overview
from zoo.cli.config_names import find_config


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


# ---- help and list


def test_help_names_verbs_and_models(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in ("fit", "validate", "test", "predict", "generate", "list"))
    assert re.search(r"LlamaLM +Llama from scratch", shown)


def test_list_shows_the_name_of_every_config(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    folder = ROOT / "configs"
    names = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))
    assert [line.split()[0] for line in shown.splitlines()[2:]] == names


@pytest.mark.parametrize("row", overview.configs(), ids=lambda row: row["config"])
def test_a_config_states_its_size_and_needs(row):
    from zoo.datamodules import LinearRegressionTasks, Reviews, SyntheticConfigs
    from zoo.icr import ICRTransformer, Task
    from zoo.llama import Llama, LlamaClassifier, LlamaConfig
    from zoo.mini_rlm import MiniRLM
    from zoo.regress_lm import RegressLM
    from zoo.revdeq import RevDEQLM

    assert row["needs"]
    settings = yaml.safe_load(find_config(row["config"]).read_text())
    data = settings.get("data", {}).get("init_args", {})
    sizes = settings.get("model", {}).get("init_args", {})
    vocabularies = {"bytes": 257, "gpt2": 50257, "words": 128}  # words: the number of words in scan_bench's rows
    vocab_size = vocabularies.get(data.get("tokenizer", "bytes")) or data.get("bpe_vocab_size", 4096)
    if settings.get("data", {}).get("class_path") == "SyntheticTables":
        vocab_size = 2182  # words of its 64 tables
    names = data.get("label_names", "").split(",")
    if data.get("data") == "opinions":
        names, vocab_size = Reviews(**data).label_names, Reviews(**data).vocab_size
    with torch.device("meta"):
        if row["model"] == "RegressLM" and row["size"]:
            model = RegressLM(vocab_size=vocab_size, **sizes)
        elif row["model"] == "ICRTransformer":
            task = LinearRegressionTasks(**data)
            model = ICRTransformer(**{field.name: getattr(task, field.name) for field in fields(Task)}, **sizes)
        elif row["model"] == "RevDEQLM":
            model = RevDEQLM(vocab_size=vocab_size, **sizes)
        elif row["model"] == "MiniRLM":
            rows = SyntheticConfigs(**data)
            model = MiniRLM(**{name: getattr(rows, name) for name in MiniRLM.data_arguments}, **sizes)
        elif row["model"] == "LlamaClassifier" and row["size"]:
            model = LlamaClassifier(names, vocab_size=vocab_size, **sizes)
        elif row["model"] == "LlamaLM" and row["size"]:
            sizes = {name: size for name, size in sizes.items() if name in LlamaConfig.__dataclass_fields__}
            model = Llama(LlamaConfig(vocab_size=vocab_size, **sizes))
        else:  # sizes that depend on the data, or an overlay
            assert not row["size"]
            return
    assert row["size"] == f"{sum(p.numel() for p in model.parameters()) / 1e6:.3g}M"


WITHOUT_NEEDS = [row["config"] for row in overview.configs() if row["needs"].startswith("nothing")]


@pytest.mark.parametrize("name", WITHOUT_NEEDS)
def test_a_config_without_needs_trains_alone(name, tmp_path):
    few = {"regress_lm_pretrain": ["--data.n_tables=2", "--data.n_val=8"]}.get(name, [])
    argv = [f"--config={name}", f"--output_dir={tmp_path / 'run'}", "--trainer.max_steps=2", *few]
    assert main(["fit", *argv, "--trainer.accelerator=cpu", "--trainer.num_sanity_val_steps=0"]) == 0
    assert weights(tmp_path / "run" / "last.ckpt")


def test_help_and_import_are_cheap():
    """Neither imports torch. This is not a timing."""
    script = "import sys, zoo, zoo.__main__; zoo.__main__.main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


# ---- a run and its checkpoint


def test_files_in_the_folder_of_a_run(run):
    names = {p.name for p in run.iterdir()}
    assert {"best.ckpt", "last.ckpt", "config.yaml"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".tmp") for name in names)


def test_tensorboard_shows_the_training(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(run)).Reload().Tags()
    wanted = {"train/loss", "val/loss", "val/ppl", "val/word_ppl", "train/grad_norm", "speed/tokens_per_second"}
    assert wanted <= set(tags["scalars"])
    assert [tag for tag in tags["scalars"] if "lr" in tag] == ["train/lr"]
    assert "sample/text_summary" in tags["tensors"]


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_validate_and_test_from_the_checkpoint_alone(run, verb, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([verb, f"--ckpt_path={run / 'best.ckpt'}", "--trainer.enable_progress_bar=false"]) == 0
    assert f"{'val' if verb == 'validate' else 'test'}_word_ppl" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_predict_ends_with_the_name_of_its_file(run, tmp_path, capsys):
    path = tmp_path / "scores.jsonl"
    assert main(["predict", f"--ckpt_path={run / 'best.ckpt'}", f"--predictions.path={path}"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == str(path)
    assert lines[-2].endswith(", prediction")  # the last line of the progress
    assert "" not in lines


def test_predict_writes_a_score_per_window(run, tmp_path):
    out = tmp_path / "scores.jsonl"
    assert main(["predict", f"--ckpt_path={run / 'best.ckpt'}", f"--predictions.path={out}",
                 "--trainer.enable_progress_bar=false"]) == 0  # fmt: skip
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert "".join(row["text"] for row in rows) in TEXT


def test_generate_prints_only_the_text(run, capfd):
    argv = ["generate", f"--ckpt_path={run / 'best.ckpt'}", "--prompt=The ", "--max_new_tokens=5", "--temperature=0"]
    assert main(argv) == 0
    first = capfd.readouterr().out
    assert first.startswith("The ")
    assert main(argv) == 0
    assert capfd.readouterr().out == first


def test_max_length_includes_the_prompt(run, capsys):
    argv = ["generate", f"--ckpt_path={run / 'best.ckpt'}", "--prompt=The ", "--temperature=0"]
    texts = []
    for length in ("--max_length=10", "--max_new_tokens=5"):  # four bytes and the mark before them
        assert main([*argv, length]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "max_length 3 is less than the prompt's 5 tokens" in complaint(capsys, 1, *argv, "--max_length=3")


@pytest.mark.slow
def test_generate_compiled_gives_the_same_text(run, capfd):
    argv = ["generate", f"--ckpt_path={run / 'best.ckpt'}", "--prompt=The ", "--max_new_tokens=5", "--temperature=0"]
    assert main(argv) == 0
    plain = capfd.readouterr().out
    assert main([*argv, "--compile"]) == 0
    assert capfd.readouterr().out == plain


def test_generate_several_prompts_equals_each_alone(run, capfd):
    argv = ["generate", f"--ckpt_path={run / 'best.ckpt'}", "--max_new_tokens=5", "--temperature=0"]
    alone = []
    for prompt in ("The quick", "A"):
        assert main([*argv, f"--prompt={prompt}"]) == 0
        alone.append(capfd.readouterr().out.rstrip("\n"))
    assert main([*argv, '--prompts=["The quick", "A"]']) == 0
    assert capfd.readouterr().out == "".join(text + "\n" for text in alone)


def test_generate_stop_tokens_with_several_prompts(run, capfd):
    argv = ["generate", f"--ckpt_path={run / 'best.ckpt'}", "--temperature=0", "--max_new_tokens=20"]
    argv.append(f"--stop_tokens={list(range(97, 256))}")  # any letter
    alone = []
    for prompt in ("The quick", "A"):
        assert main([*argv, f"--prompt={prompt}"]) == 0
        alone.append(capfd.readouterr().out)
    assert main([*argv, '--prompts=["The quick", "A"]']) == 0
    assert capfd.readouterr().out == "".join(alone)
    assert main([*argv, '--prompts=["[a]", "A"]', "--max_new_tokens=0"]) == 0
    assert capfd.readouterr().out == "[a]\nA\n"


def test_the_command_line_overrides_the_checkpoint(run, capsys, monkeypatch):
    import zoo.cli.command_line

    seen = {}
    monkeypatch.setattr(zoo.cli.command_line.ZooTrainer, "validate", lambda self, model, datamodule, **_: seen.update(
        seq_len=datamodule.hparams.seq_len, batch=datamodule.batch_size, dropout=model.hparams.dropout))  # fmt: skip
    assert main(["validate", f"--ckpt_path={run / 'best.ckpt'}", "--data.seq_len=24", "--model.dropout=0.3"]) == 0
    assert seen == {"seq_len": 24, "batch": 4, "dropout": 0.3}


def test_the_training_text_is_not_needed_after_training(run, text_file, tmp_path, capfd):
    """A BPE tokenizer trained on the text is stored in the checkpoint."""
    text = shutil.copy(text_file, tmp_path / "gone.txt")
    options = ["--data.tokenizer=bpe", "--data.bpe_vocab_size=270", "--model.max_seq_len=32"]
    assert fit(tmp_path / "run", text, *options, max_steps=2) == 0
    Path(text).unlink()
    shutil.rmtree(os.environ["ZOO_CACHE"])
    capfd.readouterr()
    assert main(["generate", f"--ckpt_path={tmp_path / 'run' / 'last.ckpt'}", "--max_new_tokens=3"]) == 0
    assert capfd.readouterr().out


def test_a_checkpoint_can_be_loaded_in_python(run):
    from zoo.llama import LlamaLM, load_checkpoint

    bare, module = load_checkpoint(run / "best.ckpt"), LlamaLM.load_from_checkpoint(run / "best.ckpt")
    tokens = torch.arange(10)[None]
    assert torch.equal(bare.eval()(tokens)[0], module.eval().model(tokens)[0])


# ---- stop and resume


def test_a_second_fit_is_refused_and_a_resumed_run_is_bitwise_equal(run, text_file, tmp_path, capsys):
    before = (run / "last.ckpt").read_bytes()
    argv = ["fit", f"--config={TINY}", *MICRO, f"--data_dir={text_file}", f"--output_dir={run}"]
    said = complaint(capsys, 1, *argv)
    assert "already holds a run" in said
    assert "--ckpt_path last" in said
    assert (run / "last.ckpt").read_bytes() == before

    # A constant learning rate, so that the schedule does not depend on max_steps.
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    constant = ["--model.min_lr_ratio=1"]
    assert fit(whole, text_file, *constant, max_steps=8) == 0
    assert fit(halves, text_file, *constant, max_steps=4) == 0
    assert fit(halves, text_file, *constant, "--ckpt_path=last", max_steps=8) == 0
    expected, got = weights(whole / "last.ckpt"), weights(halves / "last.ckpt")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_resuming_a_finished_run_changes_nothing(run, text_file, tmp_path, capsys):
    run = Path(shutil.copytree(run, tmp_path / "run"))
    before = weights(run / "last.ckpt")
    assert fit(run, text_file, "--ckpt_path=last") == 0
    assert "nothing was left to do: raise --trainer.max_steps" in capsys.readouterr().err
    after = weights(run / "last.ckpt")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_saved_config_repeats_the_run(run, tmp_path):
    assert main(["fit", f"--config={run / 'config.yaml'}", f"--output_dir={tmp_path / 'again'}"]) == 0
    first, again = weights(run / "best.ckpt"), weights(tmp_path / "again" / "best.ckpt")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_command_line_overrides_a_saved_config(run, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("x")
    argv = ["fit", f"--config={run / 'config.yaml'}", f"--data.data={other}", f"--output_dir={tmp_path / 'out'}"]
    assert "other.txt" in complaint(capsys, 1, *argv)


def test_a_full_disk_is_one_sentence(text_file, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("zoo.callbacks.checkpoint.torch.save", full)
    argv = ["fit", f"--config={TINY}", *MICRO, f"--data_dir={text_file}", f"--output_dir={tmp_path}"]
    assert "(No space left on device); nothing was written: free disk space" in complaint(capsys, 1, *argv)
    assert not list(tmp_path.glob("*.ckpt*"))


def test_fast_dev_run_saves_nothing(text_file, tmp_path):
    assert fit(tmp_path, text_file, f"--config={ROOT / 'configs' / 'debug.yaml'}") == 0
    assert not list(tmp_path.glob("*.ckpt"))


def test_two_processes_equal_one(text_file, tmp_path):
    argv = ["fit", f"--config={TINY}", f"--config={ROOT / 'configs' / 'ddp.yaml'}", *MICRO, f"--data_dir={text_file}",
            f"--output_dir={tmp_path / 'two'}", "--trainer.devices=2", "--trainer.max_steps=4", "--data.batch_size=2",
            "--model.dropout=0"]  # fmt: skip
    process = start(*argv)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    assert fit(tmp_path / "one", text_file, "--model.dropout=0") == 0  # batch 4 on one = 2 x 2 on two
    one, two = weights(tmp_path / "one" / "last.ckpt"), weights(tmp_path / "two" / "last.ckpt")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
