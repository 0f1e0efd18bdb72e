"""Signals, locks and kills of whole commands: exit code, sentence, complete files, and no process left."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch

from tests.commands import MICRO, TINY, start

LONG = [
    f"--config={TINY}", *MICRO, "--trainer.max_steps=100000", "--trainer.val_check_interval=20",
    "--early_stopping.patience=null", "--data.num_workers=1",
]  # fmt: skip
TWO = ["--trainer.strategy=ddp", "--trainer.devices=2"]


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition(), process.communicate(timeout=60)


def members(session):
    """The running processes of a session: the command, its ranks and loader workers."""
    listed = subprocess.run(["ps", "-s", str(session), "-o", "stat=,pid="], capture_output=True, text=True).stdout
    return [line.split()[1] for line in listed.splitlines() if not line.startswith("Z")]


def end(process, code):
    """What a command prints on standard error, after which it ends with `code` and leaves no process."""
    _, err = process.communicate(timeout=90)
    assert process.returncode == code, err[-2000:]
    assert "Traceback" not in err
    assert not members(process.pid)
    return [line for line in err.splitlines() if line]


def step_of(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["global_step"]


@pytest.mark.slow
def test_one_process_is_locked_killed_resumed_and_stopped(text_file, tmp_path):
    """The second run is refused while the first trains; kill -9 leaves a checkpoint and blocks nothing."""
    argv = ["fit", *LONG, f"--data_dir={text_file}", f"--output_dir={tmp_path}"]
    first = start(*argv)
    wait_for((tmp_path / "last.ckpt").exists, first)
    second = start(*argv, "--ckpt_path=last")
    assert end(second, 1) == [f"zoo: another run writes into {tmp_path} (process {first.pid})"]
    first.kill()
    resumed = start("fit", f"--ckpt_path={tmp_path / 'last.ckpt'}")  # the killed run's worker still holds the lock
    first.communicate()
    at_kill = step_of(tmp_path)
    wait_for(lambda: step_of(tmp_path) > at_kill, resumed)
    os.killpg(resumed.pid, signal.SIGHUP)  # as a closing terminal does: to the loader's worker too
    sentence = end(resumed, 129)[-1]
    assert sentence.startswith(f"zoo: stopped by SIGHUP after step {step_of(tmp_path)}, which is saved; to continue")
    assert {path.suffix for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


@pytest.mark.parametrize(
    ("signals", "to_group", "code"),
    [
        ([signal.SIGTERM], False, 143),
        pytest.param([signal.SIGTERM], True, 143, marks=pytest.mark.slow),
        pytest.param([signal.SIGINT], True, 130, marks=pytest.mark.slow),
        pytest.param([signal.SIGINT] * 3, True, 130, marks=pytest.mark.slow),
        pytest.param([signal.SIGHUP], True, 129, marks=pytest.mark.slow),
    ],
)
def test_two_processes_save_and_stop_together(text_file, tmp_path, signals, to_group, code):
    process = start("fit", *LONG, *TWO, f"--data_dir={text_file}", f"--output_dir={tmp_path}")
    wait_for((tmp_path / "last.ckpt").exists, process)
    for signum in signals:
        (os.killpg if to_group else os.kill)(process.pid, signum)
        time.sleep(0.1)
    *_, sentence = end(process, code)
    assert f"after step {step_of(tmp_path)}, which is saved; to continue" in sentence or len(signals) > 1
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_ranks_end_with_the_killed_process_that_started_them(text_file, tmp_path):
    process = start("fit", *LONG, *TWO, f"--data_dir={text_file}", f"--output_dir={tmp_path}")
    wait_for((tmp_path / "last.ckpt").exists, process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not members(process.pid)
    assert step_of(tmp_path) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_text_is_tokenized_leaves_no_partial_files(tmp_path, monkeypatch, signum, code):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "long.txt"
    text.write_text("".join(f"word{n} " * 20 + "\n" for n in range(400_000)))
    process = start("fit", *LONG, f"--data_dir={text}", "--data.tokenizer=bytes", f"--output_dir={tmp_path / 'run'}")
    wait_for(lambda: list((tmp_path / "cache").rglob(".*.tmp")), process)
    os.killpg(process.pid, signum)
    end(process, code)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".tmp", ".bin", ".json")]
    assert not list((tmp_path / "run").glob("*.ckpt")) if (tmp_path / "run").exists() else True


@pytest.mark.slow
def test_a_signal_during_predict_leaves_no_file_and_a_second_predict_is_refused(run, text_file, tmp_path):
    text, out = tmp_path / "long.txt", tmp_path / "out" / "scores.jsonl"
    text.write_text(text_file.read_text() * 500)
    argv = ["predict", f"--ckpt_path={run / 'best.ckpt'}", f"--data_dir={text}", f"--predictions.path={out}"]
    first = start(*argv, "--trainer.enable_progress_bar=false")
    wait_for(lambda: list(tmp_path.glob("out/.*.tmp")), first)
    first.send_signal(signal.SIGSTOP)  # so that it does not end before the second one starts
    second = start(*argv, "--trainer.enable_progress_bar=false")
    assert end(second, 1) == [f"zoo: another process writes {out} (process {first.pid})"]
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGCONT)
    assert end(first, 143) == []
    assert not out.parent.exists()  # the run created it


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_is_stopped_and_continued(tmp_path, signum, code):
    argv = ["--tasks=1,2", "--D=2", "--K=4", "--d_model=16", "--d_mlp=16", "--n_layers=1", "--batch_size=8",
            "--num_steps=100000", "--eval_every=50", f"--output_dir={tmp_path}", "--processes=2"]  # fmt: skip
    process = start(*argv, module="zoo.icr.sweep")
    files = [tmp_path / f"checkpoints_M{M}" / "last.ckpt" for M in (1, 2)]
    wait_for(lambda: all(file.exists() for file in files), process)
    os.kill(process.pid, signum)
    lines = end(process, code)
    assert sum("which is saved; to continue, give the same command again" in line for line in lines) == 2
    status = json.loads((tmp_path / "experiment_metadata.json").read_text())["members"]
    assert {member["status"] for member in status.values()} == {"stopped"}
    assert not list(tmp_path.rglob(".*.tmp"))
