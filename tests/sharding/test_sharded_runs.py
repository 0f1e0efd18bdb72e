"""Runs with the strategy fsdp2 on two ranks: equal to one process, resumed to the same bits, read by every verb."""

import json
import signal

import pytest
import torch
from lightning.pytorch import Callback

from tests.commands import TEXT
from tests.sharding.forks import run_ranks
from zoo.__main__ import main
from zoo.cli.command_line import ZooCLI
from zoo.console.exit_codes import INTERRUPTED, run_command
from zoo.files.checkpoints import read_checkpoint

STEPS = 10
COMMON = [
    f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=5", "--trainer.limit_val_batches=3",
    "--trainer.check_val_every_n_epoch=null", "--trainer.num_sanity_val_steps=1", "--trainer.log_every_n_steps=1",
    "--trainer.gradient_clip_val=0.5", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]  # fmt: skip
TEXTS = ["--data.seq_len=16", "--samples.max_new_tokens=3"]
LLAMA = [
    "--config=tiny/llama", "--model.dim=16", "--model.n_layers=2", "--model.n_heads=2", "--model.max_seq_len=64",
    *TEXTS,
]  # fmt: skip
MODELS = {
    "llama": LLAMA,
    "revdeq": ["--config=tiny/revdeq", "--model.hidden_size=32", "--model.intermediate_size=64", *TEXTS],
    "regress_lm": ["--config=tiny/regress_lm", "--model.dim=16", "--model.val_samples=4",
                   "--data.target_columns=y", "--data.text_column=x"],
}  # fmt: skip
SHARDED = ["--trainer.strategy=fsdp2", "--trainer.devices=2"]


class Log(Callback):
    """Writes the logged values of every step into a file."""

    def __init__(self, path):
        self.path, self.rows = path, []

    def on_train_batch_end(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready % trainer.accumulate_grad_batches:
            return  # in an accumulation window
        self.rows.append({name: value.item() for name, value in trainer.callback_metrics.items()})
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.rows))


class InterruptAfter(Callback):
    """Ctrl-C in the first rank, after a number of steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        if trainer.is_global_zero and trainer.global_step == self.steps:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "fox.txt").write_text(TEXT)
    rows = "".join(f"value {i * 7 % 101} of {i},{i * 7 % 101 / 10}\n" for i in range(200))
    (folder / "rows.csv").write_text("x,y\n" + rows)
    return folder


def fit(model, data, out, *options, ranks=1, callbacks=()):
    """`zoo fit` with 4 samples in each step, on any number of ranks; returns the exit codes."""
    file = data / ("rows.csv" if model == "regress_lm" else "fox.txt")
    argv = ["fit", *MODELS[model], *COMMON, f"--data_dir={file}", f"--output_dir={out}",
            f"--data.batch_size={4 // ranks}", *(SHARDED if ranks > 1 else []), *options]  # fmt: skip
    return run_ranks(lambda: run_command(lambda: ZooCLI(argv, callbacks=callbacks)), ranks)


def assert_equals_one_process(model, data, tmp_path, *options, tolerance=1e-4):
    one, two = tmp_path / "one", tmp_path / "two"
    for out, ranks in ((one, 1), (two, 2)):
        assert fit(model, data, out, *options, ranks=ranks, callbacks=[Log(tmp_path / f"{ranks}")]) == [0] * ranks
    rows = [json.loads((tmp_path / f"{ranks}").read_text()) for ranks in (1, 2)]
    assert [len(part) for part in rows] == [STEPS] * 2
    for expected, got in zip(*rows, strict=True):
        for name in ("train_loss", "grad_norm"):
            assert got[name] == pytest.approx(expected[name], abs=tolerance)
    expected, got = (read_checkpoint(out / "last.ckpt") for out in (one, two))
    assert (two / "last.ckpt" / "meta.pt").is_file()
    assert expected.keys() == got.keys() | {"zoo_digest"}
    for name, tensor in expected["state_dict"].items():
        assert torch.allclose(got["state_dict"][name], tensor, atol=10 * tolerance), name


def assert_resume_is_bitwise(model, data, tmp_path, *options):
    complete, part = tmp_path / "complete", tmp_path / "part"
    assert fit(model, data, complete, *options, ranks=2) == [0, 0]
    stopped = fit(model, data, part, *options, ranks=2, callbacks=[InterruptAfter(STEPS // 2)])
    assert stopped == [INTERRUPTED] * 2
    assert read_checkpoint(part / "last.ckpt")["global_step"] == STEPS // 2
    assert fit(model, data, part, *options, "--ckpt_path=last", ranks=2) == [0, 0]
    expected, got = (read_checkpoint(out / "last.ckpt") for out in (complete, part))
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(got["state_dict"][name], tensor), name


def test_two_ranks_equal_one_process(data, tmp_path, capsys):
    assert_equals_one_process("llama", data, tmp_path, "--model.dropout=0")
    # The folder and the consolidated file generate the same tokens in one process.
    folder = tmp_path / "two" / "last.ckpt"
    assert main(["consolidate", f"--ckpt_path={folder}"]) == 0
    capsys.readouterr()
    texts = []
    for path in (folder, folder.with_name("last-full.ckpt")):
        assert main(["generate", f"--ckpt_path={path}", "--max_new_tokens=20", "--prompt=fox"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0]) > len("fox")


def test_resume_is_bitwise(data, tmp_path):
    assert_resume_is_bitwise("llama", data, tmp_path, "--model.dropout=0.1", "--model.optimizer=muon")


@pytest.mark.slow
def test_resume_on_another_number_of_ranks(data, tmp_path):
    out = tmp_path / "run"
    assert fit("llama", data, out, "--model.dropout=0.1", "--model.optimizer=muon", ranks=2) == [0, 0]
    # One process continues the run of two, and its file replaces the folder; then two continue the run of one.
    more = ["--model.dropout=0.1", "--model.optimizer=muon", "--ckpt_path=last"]
    for steps, ranks in ((12, 1), (14, 2)):
        assert fit("llama", data, out, *more, f"--trainer.max_steps={steps}", ranks=ranks) == [0] * ranks
        assert (out / "last.ckpt").is_dir() == (ranks == 2)
        assert read_checkpoint(out / "last.ckpt")["global_step"] == steps
        assert {path.name for path in out.glob("*.ckpt*")} == {"best.ckpt", "last.ckpt"}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["revdeq", "regress_lm"])
def test_other_models_equal_one_process(model, data, tmp_path):
    assert_equals_one_process(model, data, tmp_path, "--model.dropout=0")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["revdeq", "regress_lm"])
def test_other_models_resume_is_bitwise(model, data, tmp_path):
    assert_resume_is_bitwise(model, data, tmp_path, "--model.dropout=0.1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options", "tolerance"),
    [
        ("llama", ["--model.optimizer=muon"], 1e-4),
        ("llama", ["--trainer.accumulate_grad_batches=2", "--model.gradient_checkpointing=true"], 1e-4),
        ("llama", ["--model.tie_embeddings=false"], 1e-4),
        ("llama", ["--trainer.precision=bf16-mixed"], 1e-3),
        ("regress_lm", ["--model.gradient_checkpointing=true"], 1e-4),
        ("regress_lm", ["--model.lora_rank=2"], 1e-4),
    ],
)
def test_settings_equal_one_process(model, options, tolerance, data, tmp_path):
    assert_equals_one_process(model, data, tmp_path, "--model.dropout=0", *options, tolerance=tolerance)


@pytest.mark.slow
def test_copies_of_a_sharded_model_equal_one_process(data, tmp_path):
    """Four ranks, of which two share a copy."""
    one, four = tmp_path / "one", tmp_path / "four"
    assert fit("llama", data, one, "--model.dropout=0") == [0]
    strategy = ["--trainer.strategy=zoo.sharding.strategy.FullySharded", "--trainer.strategy.shard_size=2"]
    assert fit("llama", data, four, "--model.dropout=0", *strategy, "--trainer.devices=4", ranks=4) == [0] * 4
    expected, got = (read_checkpoint(out / "last.ckpt")["state_dict"] for out in (one, four))
    assert all(torch.allclose(got[name], tensor, atol=1e-3) for name, tensor in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "revdeq", "regress_lm"])
def test_every_verb_reads_a_folder_on_two_ranks(model, data, tmp_path, capfd):
    assert fit(model, data, tmp_path / "run", "--trainer.max_steps=5", ranks=2) == [0, 0]
    best = f"--ckpt_path={tmp_path / 'run' / 'best.ckpt'}"

    def verbs():
        # 3 batches for two ranks: one of them has one batch more.
        for verb in ("validate", "test"):
            limit = f"--trainer.limit_{'val' if verb == 'validate' else verb}_batches=3"
            assert main([verb, best, limit, "--trainer.accelerator=cpu", *SHARDED]) == 0
        path = f"--predictions.path={tmp_path / 'rows.jsonl'}"
        assert main(["predict", best, path, "--trainer.accelerator=cpu", *SHARDED]) == 0

    assert run_ranks(verbs) == [0, 0]
    rows = [json.loads(line) for file in tmp_path.glob("rows*.jsonl") for line in file.read_text().splitlines()]
    index = sorted(row["index"] for row in rows)
    assert index == list(range(len(index)))
