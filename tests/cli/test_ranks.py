"""Several ranks of one run: they fail together with one message, share one folder, and write results once."""

import json
import os
import signal
import time

import pytest
import torch

from tests.commands import MICRO, TINY, start
from tests.ranks import free_port, run_ranks
from zoo.cli import command_line
from zoo.cli.command_line import ZooCLI
from zoo.cli.ranks import Ranks
from zoo.cli.world import World
from zoo.datamodules.text_lm import TextLM
from zoo.errors import UserError
from zoo.llama import LlamaLM

TWO = ["--trainer.strategy=ddp", "--trainer.devices=2"]
BAD = "zoo: the data of this rank is bad"
LOST = "zoo: another process of the run has ended (killed, or out of memory): to continue, resume from last.ckpt"


def fit(out, text_file, *options):
    return ["fit", f"--config={TINY}", *MICRO, *TWO, f"--data_dir={text_file}", f"--output_dir={out}",
            "--trainer.max_steps=4", *options]  # fmt: skip


def failing(rank, cls, name, action, when=lambda self: True):
    """A preparation of ranks: in one of them `action` runs first in a method."""

    def prepare(own):
        if own == rank:
            original = getattr(cls, name)

            def replaced(self, *args, **options):
                if when(self):
                    action()
                return original(self, *args, **options)

            setattr(cls, name, replaced)

    return prepare


def refuse():
    raise UserError(BAD.removeprefix("zoo: "))


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def messages(ends):
    """The zoo's messages of all ranks."""
    return [line for end in ends for line in end.err if line.startswith("zoo: ")]


@pytest.mark.parametrize(
    ("rank", "cls", "name"),
    [
        (1, ZooCLI, "before_instantiate_classes"),
        pytest.param(0, ZooCLI, "before_instantiate_classes", marks=pytest.mark.slow),
        pytest.param(0, TextLM, "setup", marks=pytest.mark.slow),
        pytest.param(1, TextLM, "setup", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_refuses_ends_the_others(rank, cls, name, text_file, tmp_path):
    command = fit(tmp_path / "run", text_file)
    ends = run_ranks(tmp_path, command, command, prepare=failing(rank, cls, name, refuse))
    assert [end.code for end in ends] == [1, 1]
    assert max(end.after_first for end in ends) < 10
    assert messages(ends) == [BAD]
    assert not (tmp_path / "run").exists()


def test_a_refusal_of_both_ranks_is_printed_once(run, text_file, tmp_path):
    ends = run_ranks(tmp_path, *[fit(run, text_file, "--ckpt_path=missing.ckpt")] * 2)
    assert [end.code for end in ends] == [1, 1]
    assert messages(ends) == ["zoo: there is no checkpoint missing.ckpt"]


def test_a_mistyped_option_of_both_ranks_is_printed_once(text_file, tmp_path):
    ends = run_ranks(tmp_path, *[fit(tmp_path / "run", text_file, "--model.dimm=3")] * 2)
    assert [end.code for end in ends] == [2, 2]
    assert messages(ends) == ["zoo: there is no setting 'model.dimm'; did you mean model.dim?"]


def test_a_folder_in_use_ends_both_ranks(run, text_file, tmp_path):
    ends = run_ranks(tmp_path, *[fit(run, text_file)] * 2)  # rank 0 alone looks
    assert [end.code for end in ends] == [1, 1]
    assert max(end.after_first for end in ends) < 10
    [message] = messages(ends)
    assert "already holds a run (last.ckpt)" in message


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_others_and_the_run_resumes(rank, text_file, tmp_path):
    command = fit(tmp_path / "run", text_file, "--ckpt_path=auto")
    kill_in_step_3 = failing(rank, LlamaLM, "training_step", kill, lambda module: module.global_step == 3)
    ends = run_ranks(tmp_path, command, command, prepare=kill_in_step_3)
    assert ends[rank].code == -signal.SIGKILL
    assert ends[1 - rank].code == 1
    assert ends[1 - rank].after_first < 10
    assert messages(ends) == [LOST]
    assert [end.code for end in run_ranks(tmp_path, command, command)] == [0, 0]
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_ranks_share_the_folder_of_the_start_time(text_file, tmp_path):
    """Each rank would choose another name: their clocks differ."""

    def prepare(rank):
        command_line.output_dir = lambda config, is_project_weights: str(tmp_path / f"{rank}")

    ends = run_ranks(tmp_path, *[fit(tmp_path / "{time}", text_file)] * 2, prepare=prepare)
    assert [end.code for end in ends] == [0, 0], ends
    assert (tmp_path / "0" / "last.ckpt").exists()
    assert not (tmp_path / "1").exists()
    assert [len(end.err) for end in ends] == [2, 0]  # the closing message


def test_two_ranks_generate_and_predict_once(run, text_file, tmp_path):
    generate = ["generate", f"--ckpt_path={run / 'best.ckpt'}", "--prompt=The ", "--max_new_tokens=3"]
    ends = run_ranks(tmp_path, generate, generate)
    assert [end.code for end in ends] == [0, 0]
    assert [end.out[:4] for end in ends] == ["The ", ""]
    out = tmp_path / "predictions.jsonl"
    predict = ["predict", f"--ckpt_path={run / 'best.ckpt'}", f"--data_dir={text_file}", f"--predictions.path={out}",
               "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]  # fmt: skip
    ends = run_ranks(tmp_path, *[[*predict, *TWO]] * 2)
    assert [end.code for end in ends] == [0, 0], ends
    assert [end.err for end in ends] == [[str(out)], []]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert len(rows) > 2
    assert not list(tmp_path.glob(".*"))


def test_a_trainer_for_one_process_is_refused_under_torchrun(text_file, tmp_path):
    command = [*fit(tmp_path / "run", text_file), "--trainer.strategy=auto", "--trainer.devices=1"]
    ends = run_ranks(tmp_path, command, command)
    assert [end.code for end in ends] == [1, 1]
    [message] = messages(ends)
    assert message.startswith("zoo: 2 processes were started, and the Trainer is set up for 1 (1 devices on 1 nodes)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("devices", "nodes"), [(3, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_another_number_of_processes_than_the_options_is_refused(devices, nodes, text_file, tmp_path):
    command = [*fit(tmp_path / "run", text_file), f"--trainer.devices={devices}", f"--trainer.num_nodes={nodes}"]
    ends = run_ranks(tmp_path, command, command)
    assert [end.code for end in ends] == [1, 1]
    [message] = messages(ends)
    assert f"2 processes were started, and the Trainer is set up for {devices * nodes}" in message


def test_ranks_with_other_settings_or_data_are_refused(text_file, tmp_path):
    other = tmp_path / "other" / text_file.name
    other.parent.mkdir()
    other.write_text(text_file.read_text().replace("fox", "cat"))
    command = fit(tmp_path / "run", text_file)
    for change, text in (
        (["--model.dim=32"], "--model.dim is 16 on rank 0 and 32 on rank 1"),
        ([f"--data_dir={other}"], "the digest of the train split is"),
    ):
        ends = run_ranks(tmp_path, command, [*command, *change])
        assert [end.code for end in ends] == [1, 1]
        [message] = messages(ends)
        assert text in message
    assert not (tmp_path / "run").exists()


def test_fewer_rows_than_ranks_are_predicted(run, text_file, tmp_path):
    out = tmp_path / "predictions.jsonl"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text(text_file.read_text())
    (tmp_path / "data" / "test.txt").write_text("one window")
    command = ["predict", f"--ckpt_path={run / 'best.ckpt'}", f"--data_dir={tmp_path / 'data'}",
               f"--predictions.path={out}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
               *TWO]  # fmt: skip
    ends = run_ranks(tmp_path, command, command)
    assert [end.code for end in ends] == [0, 0], ends
    assert [json.loads(line)["index"] for line in out.read_text().splitlines()] == [0]


@pytest.mark.slow
def test_two_nodes_of_torchrun_make_one_run_and_resume_it(text_file, tmp_path):
    """Two agents on this machine, each with one process; the folder's name holds the time of the first rank."""

    def run(*options):
        words = [word for word in fit(tmp_path / "{time}", text_file, *options) if word not in TWO]
        words += ["--trainer.strategy=ddp", "--trainer.devices=1", "--trainer.num_nodes=2"]
        address = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
        agents = [
            start(*address, f"--node_rank={node}", "-m", "zoo", *words, module="torch.distributed.run")
            for node in (0, 1)
        ]
        told = [agent.communicate(timeout=400)[1] for agent in agents]
        assert [agent.returncode for agent in agents] == [0, 0], told
        return told

    first, second = run()
    [folder] = tmp_path.iterdir()
    assert f"{folder}: 4 steps" in first
    assert "zoo" not in second
    first, _ = run(f"--output_dir={folder}", "--ckpt_path=auto", "--trainer.max_steps=6")
    assert f"{folder}: 6 steps" in first
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 6


def test_the_environment_of_torchrun_slurm_and_lightning(monkeypatch):
    address = {"MASTER_ADDR": "node3", "MASTER_PORT": "29500"}
    slurm = {"NTASKS": 4, "PROCID": 2, "LOCALID": 0, "NODEID": 1, "JOB_ID": 7, "JOB_NAME": "x", "NTASKS_PER_NODE": 2}
    environments = {
        World(2, 4, "node3", 29500, False): address | {f"SLURM_{name}": str(value) for name, value in slurm.items()},
        World(5, 8, "node3", 29500, True): address | {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8",
            "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"},
        World(1, 2, "node3", 29500, False): address | {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"},
        None: address | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
    }  # fmt: skip
    for world, variables in environments.items():
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert World.from_environment() == world


def test_a_signal_that_python_cannot_handle_ends_the_process(monkeypatch):
    """As long as the main thread is inside torch, no handler runs. A signal to a forked process does not count."""
    ended = []
    monkeypatch.setattr("zoo.cli.ranks.os._exit", ended.append)
    monkeypatch.setattr("zoo.cli.ranks.SECONDS_TO_END", 0.1)
    monkeypatch.setattr("zoo.cli.ranks.POLL", 0.05)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with Ranks(World(1, 2, "127.0.0.1", free_port(), False)).watched(lambda: ended.append("cleaned up")):
            if not (pid := os.fork()):
                os.kill(os.getpid(), signal.SIGTERM)
                os.execv("/bin/true", ["true"])
            os.waitpid(pid, 0)
            time.sleep(0.5)
            assert ended == []
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
            assert ended == ["cleaned up", 143]
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- ranks that Lightning starts from one process


@pytest.mark.parametrize("strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
def test_ddp_fork_and_spawn_end_cleanly(strategy, text_file, tmp_path):
    [end] = run_ranks(tmp_path, fit(tmp_path / "run", text_file, f"--trainer.strategy={strategy}"))
    assert end.code == 0, end
    [line] = [line for line in end.err if "steps" in line]
    assert line.startswith(f"{tmp_path / 'run'}: 4 steps, best val_loss 5.522 (unigram ")
    assert not messages([end])
    assert {"best.ckpt", "last.ckpt", "config.yaml"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_a_refusal_in_ddp_fork_is_one_sentence(text_file, tmp_path):
    command = fit(tmp_path / "run", text_file, "--trainer.strategy=ddp_fork")
    [end] = run_ranks(tmp_path, command, prepare=failing(0, TextLM, "setup", refuse))
    assert end.code == 1
    assert end.err == [BAD]
    assert not (tmp_path / "run").exists()


def test_a_signal_to_ddp_fork_saves_and_stops(text_file, tmp_path):
    def stop():  # in both ranks: the second signal must not disturb the end after the first
        os.kill(os.getppid(), signal.SIGTERM)

    command = fit(tmp_path / "run", text_file, "--trainer.strategy=ddp_fork", "--trainer.max_steps=100000")
    at_step_3 = failing(0, LlamaLM, "training_step", stop, lambda module: module.global_step == 3)
    [end] = run_ranks(tmp_path, command, prepare=at_step_3)
    assert end.code == 143, end
    assert any("which is saved; to continue: zoo fit --ckpt_path" in line for line in end.err)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] >= 3
