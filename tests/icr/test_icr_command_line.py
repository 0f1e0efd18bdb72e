"""ICRTransformer through the command line: fit, resume, validate, test, predict, and messages for bad settings."""

import json
import re

import pytest
import torch

from tests.commands import ROOT, complaint
from tests.resume import assert_same_weights
from zoo.__main__ import main
from zoo.icr import load_model, predict_from_prompt

TINY = ROOT / "configs" / "tiny" / "icr.yaml"
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
MICRO = [
    "--model.d_model=16", "--model.d_mlp=16", "--model.n_layers=1", "--data.D=3", "--data.K=5", "--data.batch_size=8",
    "--data.n_val=40", "--data.n_test=40", "--trainer.max_steps=20", "--trainer.val_check_interval=10",
    "--trainer.enable_model_summary=false", *QUIET,
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("icr") / "run"
    assert main(["fit", f"--config={TINY}", *MICRO, "--data.M=6", f"--output_dir={out}"]) == 0
    return out


def test_fit_fills_the_folder(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert {"best.ckpt", "last.ckpt", "config.yaml"} <= {path.name for path in trained.iterdir()}
    events = EventAccumulator(str(trained)).Reload()
    tags = events.Tags()
    positions = {tag for tag in tags["scalars"] if re.fullmatch(r"by_position/val_pretrain_mse/\d+", tag)}
    assert len(positions) == 5
    assert any("true" in tag and "noise_free" in tag for tag in tags["scalars"])
    names = {f"val/{kind}_{m}" for kind in ("pretrain", "true") for m in ("mse", "noise_free", "to_ridge", "to_dmmse")}
    assert names | {"train/loss", "val/loss"} <= set(tags["scalars"])
    # The number of finished steps, for scalars and figures.
    assert [event.step for event in events.Scalars("val/loss")] == [10, 20]
    assert [event.step for event in events.Scalars(min(positions))] == [10, 20]
    assert [event.step for event in events.Images("figures/errors")] == [10, 20]
    assert [event.step for event in events.Scalars("train/loss")] == [9, 19]
    # The learning rate of every step.
    rates = events.Scalars("train/lr")
    assert [event.step for event in rates] == list(range(20))
    assert len({event.value for event in rates}) > 10
    assert "train/grad_norm" in tags["scalars"]


def test_checkpoint_alone_validates_tests_and_predicts(trained, tmp_path, capfd):
    alone = [f"--ckpt_path={trained / 'best.ckpt'}", *QUIET]
    assert main(["validate", *alone]) == 0
    out = capfd.readouterr().out
    assert "val_true_to_ridge" in out
    assert main(["test", *alone]) == 0
    assert "test_pretrain_to_dmmse" in capfd.readouterr().out
    assert (trained / "test-errors.png").stat().st_size > 5000
    model = load_model(trained / "best.ckpt")
    assert (model.config.M, model.config.D, model.config.K, model.config.sigma2) == (6, 3, 5, 0.25)
    prompts = [{"x_context": [[1, 0, 0], [0, 1, 0]], "y_context": [0.5, -1], "x_query": [[1, 1, 0], [0, 0, 2.5]]},
               {"x_context": [], "y_context": [], "x_query": [[1, 1, 1]]}]  # fmt: skip
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(map(json.dumps, prompts)))
    output = tmp_path / "answers.jsonl"
    assert main(["predict", *alone, f"--data_dir={path}", f"--predictions.path={output}"]) == 0, capfd.readouterr().err
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["index"], len(row["prediction"]), len(row["ridge"])) for row in rows] == [(0, 2, 2), (1, 1, 1)]
    for row, prompt in zip(rows, prompts, strict=True):
        x, y, query = (torch.tensor(value, dtype=torch.float32) for value in prompt.values())
        expected = predict_from_prompt(model, x.reshape(-1, 3), y, query)
        assert row["prediction"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert rows[1]["ridge"] == [0]
    w = torch.tensor([0.5, -1, 0]) / 1.25
    assert rows[0]["ridge"] == pytest.approx([w[0].item() + w[1].item(), 0], abs=1e-6)


def test_run_resumes_through_the_command_line(trained, tmp_path):
    """20 steps, and two times 10."""
    out = tmp_path / "run"
    start = ["fit", f"--config={TINY}", *MICRO, "--data.M=6", "--model.warmup_steps=null", f"--output_dir={out}"]
    assert main([*start, "--trainer.max_steps=10"]) == 0
    assert main([*start, "--ckpt_path=last"]) == 0
    whole = tmp_path / "whole"
    assert main([*start, f"--output_dir={whole}"]) == 0
    weights = [torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (whole, out)]
    assert_same_weights(*weights, "the command line")


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--data.M=0"], 1, 'M must be a number of tasks, at least 1, or "inf", not 0'),
        (["--data.M=-3"], 1, "not -3"),
        (["--data.M=1.5"], 2, "M must be int or 'inf', not '1.5'"),
        (["--data.M=many"], 2, "M must be int or 'inf', not 'many'"),
        (["--data.M=65536"], 1, "M 65536 is more tasks than the pool holds: raise max_M, which is 32768"),
        (["--data.K=1"], 1, "K must be at least 2"),
        (["--data.D=0"], 1, "D must be at least 1"),
        (["--data.sigma2=0"], 1, "sigma2, the variance of the noise, must be positive"),
        (["--data.n_val=0"], 1, "n_val must be at least 1, not 0"),
        (["--data.batch_size=0"], 1, "batch_size must be at least 1, not 0"),
        (["--data_dir=prompts.jsonl"], 1, "drop --data_dir, which is for predict"),
        (["--model.n_heads=3"], 1, "d_model 16 is not a multiple of n_heads 3"),
        (["--model.lr=1e30", "--model.grad_clip=null", "--model.use_prenorm=false"], 1, "the loss is nan after"),
    ],
    ids=str,
)
def test_bad_settings_get_one_sentence(options, code, sentence, tmp_path, capsys):
    argv = ["fit", f"--config={TINY}", *MICRO, f"--output_dir={tmp_path / 'run'}", *options]
    assert sentence in complaint(capsys, code, *argv)


def test_predict_needs_a_file_of_prompts(trained, tmp_path, capsys):
    alone = [f"--ckpt_path={trained / 'best.ckpt'}", *QUIET, f"--predictions.path={tmp_path / 'answers.jsonl'}"]
    assert "there are no prompts to predict: give a file" in complaint(capsys, 1, "predict", *alone)
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"x_context": [], "y_context": [], "x_query": [[1, 2]]}')
    said = complaint(capsys, 1, "predict", *alone, f"--data_dir={path}")
    assert "prompts.jsonl line 1: x_query has shape (1, 2), and must be rows of D = 3 numbers" in said
    assert "no/such.jsonl" in complaint(capsys, 1, "predict", *alone, "--data_dir=no/such.jsonl")
    assert "drop --data_dir" in complaint(capsys, 1, "test", *alone[:-1], f"--data_dir={path}")
