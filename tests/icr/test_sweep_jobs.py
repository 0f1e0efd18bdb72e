"""A sweep as a SLURM job array, from the job script of docs/scaling.md: tasks without locks, then a collecting job."""

import fcntl
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import threading

import pytest

from tests.commands import ROOT
from zoo.console.exit_codes import run_command
from zoo.errors import UserError
from zoo.icr.sweep import __main__ as sweep_module
from zoo.icr.sweep import training
from zoo.icr.sweep.metadata import Metadata

SMALL = "--D=2 --K=4 --d_model=8 --d_mlp=16 --n_heads=2 --n_layers=1 --num_steps=4 --batch_size=4 --n_val=4"


def job_scripts() -> list[str]:
    """The job scripts in the section on searches and sweeps."""
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    section = text.split("### Searches and sweeps")[1].split("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def sweep_script(folder) -> str:
    """The script of the sweep, with a small model, without an environment to activate."""
    (script,) = (block for block in job_scripts() if "zoo.icr.sweep" in block and "#SBATCH" in block)
    script = script.replace("--num_steps 500000", SMALL).replace("/shared/icr-sweep", str(folder))
    return re.sub(r"^source .*\n", "", script, flags=re.MULTILINE)


def run_task(argv, monkeypatch, task, last, first=1, step=1, count=None) -> int:
    """Run a command as one task of an array, in this process."""
    variables = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count or last - first + 1}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    return run_command(lambda: sweep_module.main(argv))


def test_tasks_of_an_array_train_all_members_without_locks(tmp_path, monkeypatch, capsys):
    script = sweep_script(tmp_path)
    (command,) = (line for line in script.splitlines() if "--share array" in line)
    argv = [*shlex.split(command)[4:], "--accelerator=cpu"]
    argv[argv.index("--max_power") + 1] = "3"
    collect = ["--collect", f"--output_dir={tmp_path}"]
    # The file system of a task that was requeued from another machine may still hold the lock of its predecessor.
    (tmp_path / "checkpoints_M8").mkdir()
    with open(tmp_path / "checkpoints_M8" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_task(argv, monkeypatch, 1, 2) == 0  # M 2 and 8
    assert "M 4 (waiting)" in _failure(collect, capsys)
    # The second task is stopped by its time limit, and requeued.
    train_stack = training.train_stack
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_stack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_task(argv, monkeypatch, 2, 2) == 130
    assert training.train_stack is train_stack
    assert run_task(argv, monkeypatch, 2, 2) == 0
    assert not list(tmp_path.glob("*.lock"))
    # The file that collects the statuses may be old or missing a member.
    path = tmp_path / "experiment_metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"members": {"2": {"status": "waiting", "step": 0}}}))
    capsys.readouterr()
    assert run_command(lambda: sweep_module.main(collect)) == 0
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()[2:]] == [
        [M, "done", "4"] for M in ("2", "4", "8")
    ]
    assert {member["status"] for member in json.loads(path.read_text())["members"].values()} == {"done"}


def test_a_task_that_is_submitted_again_trains_its_own_share(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(sweep_module, "train_members", lambda members, *_: trained.append(members))
    monkeypatch.setattr(sweep_module, "report", lambda *_: None)
    argv = [*SMALL.split(), "--max_power=5", f"--output_dir={tmp_path}/sweep"]
    # Before the first submission of all tasks, the number of shares is not known from some of them.
    for bounds in ((3, 3, 3), (5, 5, 3, 1, 2), (3, 5, 1, 2, 3), (2, 3, 0)):
        assert run_task([*argv, "--share=array"], monkeypatch, *bounds) == 1
        assert "write --share array/N" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
    assert run_task([*argv, "--share=array"], monkeypatch, 1, 3) == 0
    assert run_task([*argv, "--share=array"], monkeypatch, 2, 2, 2, 0) == 0  # sbatch --array=2
    assert run_task([*argv, "--share=array/3"], monkeypatch, 3, 3, 1, 1, 2) == 0  # sbatch --array=1,3
    assert trained == [[2, 16], [4, 32], [8]]
    for option, task, message in (
        ("array", 4, "task 4 is none of the 3 shares of the sweep: submit --array=1-3"),
        ("array", 0, "task 0 is none of the 3 shares"),
        ("array/4", 1, "give --share array/3"),
    ):
        assert run_task([*argv, f"--share={option}"], monkeypatch, task, 4, 0) == 1
        assert message in capsys.readouterr().err
    # The option gives the number where the first submission has one task.
    argv[-1] = f"--output_dir={tmp_path}/other"
    assert run_task([*argv, "--share=array/2"], monkeypatch, 2, 2, 2) == 0
    assert run_task([*argv, "--share=array"], monkeypatch, 1, 1) == 0
    assert trained[3:] == [[4, 16], [2, 8, 32]]
    for option in ("array/0", "array/", "array/x", "3/2", "/2", "-1/2"):
        with pytest.raises(SystemExit):
            run_task([*argv, f"--share={option}"], monkeypatch, 1, 2)
        assert "is not a share: write I/N" in capsys.readouterr().err


def _failure(argv, capsys) -> str:
    capsys.readouterr()
    assert run_command(lambda: sweep_module.main(argv)) == 1
    return capsys.readouterr().err


def test_collecting_what_is_no_sweep(tmp_path, capsys):
    assert "has no sweep: give the --output_dir of one" in _failure(["--collect", f"--output_dir={tmp_path}"], capsys)
    assert not [*tmp_path.iterdir()]


def test_collecting_takes_no_other_options(tmp_path, capsys):
    words = ["--collect", f"--output_dir={tmp_path}"]
    with pytest.raises(SystemExit):
        run_command(lambda: sweep_module.main([*words, "--share=1/2", "--num_steps=4", "--no-use_prenorm"]))
    assert capsys.readouterr().err.endswith("drop --num_steps, --share, --use_prenorm\n")


@pytest.mark.parametrize("content", ['{"status": 3}', "[1]", "{", '{"status": "done"}'])
def test_a_damaged_status_is_named(content, tmp_path):
    Metadata(tmp_path).start({"D": 2}, [2])
    (tmp_path / "checkpoints_M2").mkdir()
    (tmp_path / "checkpoints_M2" / "status.json").write_text(content)
    with pytest.raises(UserError, match=r"checkpoints_M2/status\.json is "):
        Metadata(tmp_path).members()


def test_processes_change_the_metadata_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    members = [1, 2, 4, "inf"]

    def task(M):
        metadata = Metadata(tmp_path)
        metadata.start({"D": 2}, members)
        for step in range(30):
            metadata.report(M, "running", step=step)
        metadata.report(M, "done", step=30)

    threads = [threading.Thread(target=task, args=[M]) for M in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = json.loads((tmp_path / "experiment_metadata.json").read_text())
    assert stored["settings"] == {"D": 2}
    assert {M: member["step"] for M, member in stored["members"].items()} == {"1": 30, "2": 30, "4": 30, "inf": 30}


# A stand-in for SLURM's command: it runs the tasks of an array one after the other, or the command of --wrap.
SBATCH = """#!/bin/bash
set -e
export SLURM_JOB_ID=7 SLURM_JOB_NAME=icr SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
last_word="${@: -1}"
if [[ "$*" == *--wrap* ]]; then
    bash -ec "$last_word" > collected.log
    exit
fi
tasks=$(sed -n 's/^#SBATCH --array=1-\\([0-9]*\\).*/\\1/p' "$last_word")
export SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=$tasks SLURM_ARRAY_TASK_STEP=1
for task in $(seq 1 "$tasks"); do
    SLURM_ARRAY_TASK_ID=$task bash -e "$last_word" > "task-$task.log" 2>&1
done
echo 7
"""
RUN = """#!/bin/bash
exec {command}"$@"
"""


@pytest.mark.slow
def test_the_job_script_of_the_documentation_runs(tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    contents = {"sbatch": SBATCH, "srun": RUN.format(command=""), "python": RUN.format(command=f"{sys.executable} ")}
    for name, content in contents.items():
        (commands / name).write_text(content)
        (commands / name).chmod(stat.S_IRWXU)
    script = sweep_script(tmp_path / "sweep").replace("--max_power 20", "--max_power 2").replace("1-8", "1-2")
    (tmp_path / "sweep.sbatch").write_text(script)
    (submit,) = (block for block in job_scripts() if "afterany" in block)
    submit = submit.replace("/shared/icr-sweep", str(tmp_path / "sweep"))
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-ec", submit], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + "".join(log.read_text() for log in tmp_path.glob("*.log"))
    rows = (tmp_path / "collected.log").read_text().splitlines()[2:]
    assert [row.split()[:3] for row in rows] == [[M, "done", "4"] for M in ("2", "4")]
