"""SLURM jobs: whether this is one, and how it is put back into the queue before its time ends."""

import os
import subprocess


def is_job_step() -> bool:
    """Whether `srun` has started this process, other than in an interactive shell."""
    is_interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_PROCID" in os.environ and "SLURM_JOB_ID" in os.environ and not is_interactive


def was_requeued() -> bool:
    """Whether SLURM runs this job again, after it was preempted or put back into the queue."""
    return is_job_step() and os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


def requeue_job() -> str:
    """Put this job back into the queue, as its first process does for all; returns a sentence about it."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        return f"SLURM job {job} was not requeued: scontrol: {error.strerror}"
    if done.returncode:
        return f"SLURM job {job} was not requeued: {' '.join(done.stderr.split())}"
    return f"SLURM job {job} is requeued"
