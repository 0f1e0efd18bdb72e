"""Starting the same command again: `--ckpt_path auto`, requeued SLURM jobs; runs that save no checkpoint."""

import pytest
import torch

from tests.commands import MICRO, TINY, complaint, fit
from zoo.__main__ import main
from zoo.cli.run_folder import find_checkpoint
from zoo.errors import UserError


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def test_auto_starts_a_run_and_then_continues_it(text_file, tmp_path, capsys):
    assert fit(tmp_path / "run", text_file, "--ckpt_path=auto", max_steps=2) == 0
    assert step_of(tmp_path / "run" / "last.ckpt") == 2
    assert fit(tmp_path / "run", text_file, "--ckpt_path=auto", max_steps=4) == 0
    assert step_of(tmp_path / "run" / "last.ckpt") == 4
    capsys.readouterr()
    assert fit(tmp_path / "run", text_file, "--ckpt_path=auto", max_steps=4) == 0
    assert "nothing was left to do" in capsys.readouterr().err


def test_auto_needs_a_fixed_folder_and_fit(tmp_path, capsys):
    assert find_checkpoint("auto", str(tmp_path)) is None
    (tmp_path / "last.ckpt").symlink_to("nothing")
    with pytest.raises(UserError, match="symbolic link to nothing"):
        find_checkpoint("auto", str(tmp_path))
    for folder in (None, "runs/{time}"):
        with pytest.raises(UserError, match="--ckpt_path auto needs to know"):
            find_checkpoint("auto", folder)
    said = complaint(capsys, 1, "test", "--ckpt_path=auto", f"--output_dir={tmp_path}")
    assert "--ckpt_path auto is for fit: give last, best or a file to test" in said


def test_a_requeued_slurm_job_continues(text_file, tmp_path, monkeypatch, capsys):
    assert fit(tmp_path / "run", text_file, max_steps=2) == 0
    assert fit(tmp_path / "run", text_file, max_steps=4) == 1  # refused
    for name, value in {"PROCID": "0", "JOB_ID": "7", "JOB_NAME": "train", "RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert fit(tmp_path / "run", text_file, max_steps=4) == 0
    assert step_of(tmp_path / "run" / "last.ckpt") == 4
    argv = ["fit", f"--config={TINY}", *MICRO, f"--data_dir={text_file}", f"--output_dir={tmp_path}/{{time}}"]
    capsys.readouterr()
    assert "needs to know which run" in complaint(capsys, 1, *argv)


@pytest.mark.parametrize("option", ["--trainer.enable_checkpointing=false", "--trainer.barebones=true"])
def test_runs_without_checkpoints(option, text_file, tmp_path, capsys):
    assert fit(tmp_path / "run", text_file, option) == 0
    assert "run: 4 steps, no checkpoint saved (checkpoints are off)" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))
    assert (tmp_path / "run").exists() == ("checkpointing" in option)
    # The config.yaml of such a run is not replaced by another run, unless the command is meant to start again.
    if "checkpointing" in option:
        config = (tmp_path / "run" / "config.yaml").read_bytes()
        assert fit(tmp_path / "run", text_file, option, max_steps=2) == 1
        assert "already holds the config.yaml of a run, which saved no checkpoint: remove it" in capsys.readouterr().err
        assert (tmp_path / "run" / "config.yaml").read_bytes() == config
        assert fit(tmp_path / "run", text_file, option, "--ckpt_path=auto", max_steps=2) == 0
        assert (tmp_path / "run" / "config.yaml").read_bytes() != config


def test_barebones_excludes_options_that_measure(text_file, tmp_path, capsys):
    argv = ["fit", f"--config={TINY}", *MICRO, f"--data_dir={text_file}", f"--output_dir={tmp_path}"]
    said = complaint(capsys, 1, *argv, "--trainer.barebones=true", "--trainer.profiler=simple")
    assert said == "zoo: --trainer.barebones true excludes --trainer.profiler: drop one of them"


def test_evaluation_without_checkpoints_and_metrics(run, capsys):
    argv = ["validate", f"--ckpt_path={run / 'best.ckpt'}", "--trainer.accelerator=cpu"]
    assert main([*argv, "--trainer.enable_checkpointing=false", "--trainer.limit_val_batches=1"]) == 0
    assert "val_loss" in capsys.readouterr().out
    assert main([*argv, "--trainer.barebones=true", "--trainer.limit_val_batches=1"]) == 0
