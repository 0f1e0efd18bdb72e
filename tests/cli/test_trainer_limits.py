"""Options of the Trainer that are out of range, exclude each other or mean nothing are refused in one sentence."""

from types import SimpleNamespace

import pytest

from tests.commands import TINY, complaint
from zoo.__main__ import main
from zoo.cli.trainer_options import check_interval


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["budget=15s", "trainer.min_steps=9"], "--trainer.min_steps 9 excludes --budget, which could not end the run"),
        (
            ["trainer.max_time=00:00:00:09", "trainer.min_epochs=2"],
            "--trainer.min_epochs 2 excludes --trainer.max_time",
        ),
        (["trainer.val_check_interval=0"], "--trainer.val_check_interval must be at least 1, not 0"),
        (["trainer.val_check_interval=2.5"], "--trainer.val_check_interval must be a whole number of batches, not 2.5"),
        (["trainer.val_check_interval=0.5"], "0.5: for a share of each epoch add --trainer.check_val_every_n_epoch 1"),
        (
            ["trainer.val_check_interval=1.5", "trainer.check_val_every_n_epoch=1"],
            "must be a whole number of batches, or a share of the epoch above 0 and at most 1, not 1.5",
        ),
        (
            ["trainer.check_val_every_n_epoch=1"],
            "--trainer.val_check_interval 200 is more than the only batch of an epoch: add "
            "--trainer.check_val_every_n_epoch null, which counts the batches of all epochs, or set it to at most 1",
        ),
        (["trainer.check_val_every_n_epoch=0"], "--trainer.check_val_every_n_epoch must be at least 1, not 0"),
        (["trainer.limit_train_batches=0"], "--trainer.limit_train_batches 0 leaves nothing to fit"),
        (
            ["trainer.limit_val_batches=2.5"],
            "--trainer.limit_val_batches must be a whole number of batches, or a share of them from 0 to 1, not 2.5",
        ),
        (["trainer.overfit_batches=-1"], "--trainer.overfit_batches must be a whole number of batches"),
        (["trainer.max_steps=0"], "--trainer.max_steps must be at least 1, or -1 for no limit, not 0"),
        (["trainer.max_epochs=0"], "--trainer.max_epochs must be at least 1, or -1 for no limit, not 0"),
        (["trainer.gradient_clip_val=-1"], "--trainer.gradient_clip_val must be at least 0, not -1"),
        (["trainer.max_time=8"], "--trainer.max_time must be days:hours:minutes:seconds, such as 00:01:30:00, not '8'"),
        (["trainer.devices=0"], "--trainer.devices must be a number of processes from 1, or auto, not '0'"),
        (["trainer.accelerator=cpu", "trainer.devices=3x"], "--trainer.devices must be a number of processes from 1"),
        (["trainer.accelerator=cpu", "trainer.devices=0,1"], "--trainer.devices must be a number of processes from 1"),
        (
            ["trainer.num_nodes=2", "trainer.strategy=ddp", "trainer.accelerator=cpu", "trainer.devices=1"],
            "--trainer.num_nodes 2: start the command on every node with torchrun or srun, or drop the option",
        ),
        (["trainer.strategy=fsdp"], "--trainer.strategy fsdp is not supported: set it to ddp, or to fsdp2"),
        (["trainer.profiler=simpel"], "there is no profiler 'simpel'; did you mean simple?"),
        (["trainer.profiler=xla"], "--trainer.profiler xla needs the package torch_xla: drop it, or set it to simple"),
        (["trainer.profiler=XLAProfiler"], "--trainer.profiler xla needs the package torch_xla"),
        (["trainer.callbacks+=BackboneFinetuning"], "needs a model with an attribute `backbone`, and LlamaLM has none"),
        (
            ["trainer.logger=CSVLogger", "trainer.logger.flush_logs_every_n_steps=0"],
            "--trainer.logger.flush_logs_every_n_steps must be at least 1, not 0",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_trainer_options_are_refused(options, sentence, text_file, tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["fit", f"--config={TINY}", f"--data_dir={text_file}", f"--output_dir={out}"]
    assert sentence in complaint(capsys, 1, *argv, *(f"--{option}" for option in options))
    assert not out.exists()


def test_a_time_limit_that_cannot_be_planned_names_the_other_one(tmp_path, capsys):
    said = complaint(capsys, 1, "fit", "--config=tiny/icr", "--budget=15s", f"--output_dir={tmp_path / 'run'}")
    assert said.endswith(
        "ICRTransformer has another schedule: limit the time with --trainer.max_time 00:00:00:15 instead"
    )
    assert not (tmp_path / "run").exists()


def test_whole_numbers_that_are_read_as_floats_are_numbers_of_batches(text_file, tmp_path, capsys):
    """Python may give the Trainer's options the type float | int, if another library has made that type first."""
    trainer = SimpleNamespace(val_check_interval=400.0, check_val_every_n_epoch=None)
    check_interval(trainer)
    assert type(trainer.val_check_interval) is int
    argv = ["fit", f"--config={TINY}", f"--data_dir={text_file}", f"--output_dir={tmp_path / 'run'}"]
    assert main([*argv, "--trainer.limit_val_batches=2.0", "--trainer.max_steps=1"]) == 0, capsys.readouterr().err
