"""MiniRLM with the zoo's data: learning, bitwise resume, scales, classes, predictions from a checkpoint alone."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import yaml

from tests.commands import ROOT
from tests.resume import VALIDATION_END, assert_resume_is_bitwise
from tests.trainers import quiet_trainer
from zoo.__main__ import main
from zoo.datamodules.synthetic_configs import SyntheticConfigs
from zoo.datamodules.text_regression import TextRegression
from zoo.errors import UserError
from zoo.mini_rlm import MiniRLM
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import Row, collate, text_rows

SIZES = {"vocab_size": 99, "dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}
KINDS = {"lstm": {}, "transformer": {"pooling": "cls"}, "mlp": {"n_features": 4}}
quiet = partial(quiet_trainer, limit_val_batches=0)


def module(encoder="lstm", **options):
    torch.manual_seed(0)
    return MiniRLM(**{"encoder": encoder, **SIZES, **KINDS[encoder], **options})


def data(encoder="lstm", **options):
    return SyntheticConfigs(**{"n_rows": 40, "batch_size": 8, "features": encoder == "mlp", **options})


@pytest.mark.parametrize("encoder", KINDS)
def test_overfits_one_batch(encoder):
    model, rows = module(encoder, lr=2e-2, warmup_steps=5, weight_decay=0.0), data(encoder, n_rows=20)
    trainer = quiet(max_steps=80, overfit_batches=1)
    trainer.fit(model, rows)
    batch = collate([rows.dataset("train")[i] for i in range(8)])
    error = (model.eval().estimate(batch) - batch.targets).abs()
    assert error.median() < 0.1 * rows.targets("train").std()


@pytest.mark.parametrize("options", [{}, {"encoder": "transformer", "pooling": "cls"}, {"n_classes": 3}])
def test_predict_takes_texts(options):
    tokenizer = load_tokenizer("characters")
    model = module(**{"vocab_size": None, "tokenizer": tokenizer, "dropout": 0.5, "max_seq_len": 12, **options})
    model.target_scale.fit(np.array([[1.0], [2.0], [4.0]]))
    texts = ["layers: 1", "lr", "layers: 20"]
    expected = model.eval().estimate(collate(text_rows(texts, None, tokenizer)))  # (3, 1)
    model.train()
    model.model.dropout.eval()  # a mode that must remain
    for size in (1, 2, 256):
        torch.testing.assert_close(model.predict(texts, batch_size=size), expected)
    assert model.training
    assert not model.model.dropout.training
    assert model.predict([]).shape == (0, 1)
    for texts, sentence in (("lr", "put it in a list"), (["a", ""], "text 1 has no token"), ([3], "not a")):
        with pytest.raises(UserError, match=sentence):
            model.predict(texts)
    if options.get("encoder") == "transformer":
        with pytest.raises(UserError, match="text 0 needs 13 positions, but the model has max_seq_len 12"):
            model.predict(["x" * 12])
    with pytest.raises(TypeError, match=r"call predict\(texts\)"):
        model.estimate(["lr"])


def test_predict_refuses_models_that_read_no_texts():
    with pytest.raises(UserError, match="encoder mlp reads the numbers of a table"):
        module("mlp").predict(["lr"])
    with pytest.raises(UserError, match="without a tokenizer"):
        module().predict(["lr"])


@pytest.mark.parametrize(("encoder", "devices"), [("lstm", 1), ("transformer", 1), ("mlp", 1), ("transformer", 2)])
def test_resume_is_bitwise(encoder, devices, tmp_path):
    assert_resume_is_bitwise(
        lambda: module(encoder, dropout=0.1, warmup_steps=2), lambda: data(encoder, batch_size=8 // devices),
        tmp_path, max_steps=8, max_epochs=-1, devices=devices, every=4, val_check_interval=2,
        check_val_every_n_epoch=None, hooks=(VALIDATION_END,),
    )  # fmt: skip


def test_scales_are_fitted_to_training_rows_and_stored_in_checkpoints(tmp_path):
    model, rows = module("mlp", target_scale="standard"), data("mlp")
    trainer = quiet(max_steps=1)
    trainer.fit(model, rows)
    expected = rows.configs("train")
    np.testing.assert_allclose(model.feature_scale.centre, expected.mean(0), rtol=1e-6)
    np.testing.assert_allclose(model.target_scale.centre, rows.targets("train").mean(0))
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    again = MiniRLM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    batch = collate([rows.dataset("test")[i] for i in range(3)])
    assert torch.equal(again.eval().estimate(batch), model.eval().estimate(batch))


@pytest.mark.parametrize("encoder", KINDS)
def test_estimate_does_not_depend_on_the_batch(encoder):
    model, rows = module(encoder).eval(), data(encoder)
    model.fit_scales(rows.targets("train"), rows.features("train"))
    test = [rows.dataset("test")[i] for i in range(8)]
    together = model.estimate(collate(test))  # (8, 1)
    for row, expected in zip(test, together, strict=True):
        alone = model.estimate(collate([row]))
        assert alone.shape == (1, 1)  # the original script's squeeze() dropped the axis of a batch of one
        torch.testing.assert_close(alone[0], expected, rtol=1e-4, atol=1e-4)


def test_configs_train_for_hundreds_of_updates():
    for name in ("mini_rlm.yaml", "tiny/mini_rlm.yaml"):
        settings = yaml.safe_load((ROOT / "configs" / name).read_text())
        assert settings["trainer"]["max_steps"] >= 300
        assert settings["trainer"]["gradient_clip_val"] == 1.0


def test_mlp_interpolates_three_rows_of_servers(tmp_path):
    """Three rows of CPU, RAM and DISK, and a fourth between the last two; linear interpolation gives 6.8."""
    rows = "CPU,RAM,DISK,efficiency\n8,32,1000,2.5\n16,64,2000,4.7\n32,128,4000,8.9\n"
    for name in ("train.csv", "valid.csv"):
        (tmp_path / name).write_text(rows)
    servers = TextRegression(
        str(tmp_path), tokenizer="characters", target_columns="efficiency", features=True, batch_size=3
    )
    torch.manual_seed(0)
    sizes = {"n_features": 3, "dim": 64, "n_layers": 1}
    model = MiniRLM("mlp", target_scale="standard", loss="mse", lr=0.01, warmup_steps=1, **sizes)
    trainer = quiet(max_steps=200, limit_val_batches=1, val_check_interval=200, check_val_every_n_epoch=None)
    trainer.fit(model, servers)
    assert trainer.callback_metrics["val_mae"] < 0.01
    fourth = Row(tokens=[1], targets=(float("nan"),), index=0, text="", features=(24.0, 96.0, 3000.0))
    assert model.eval().estimate(collate([fourth])).item() == pytest.approx(6.8, abs=0.1)


def test_several_objectives(tmp_path):
    lines = [json.dumps({"x": f"a{i}", "p": i, "q": -100 * i}) for i in range(30)]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    options = {"text_column": "x", "target_columns": "p,q", "tokenizer": "characters", "batch_size": 8}
    two = TextRegression(str(tmp_path / "two.jsonl"), **options)
    with pytest.raises(ValueError, match="the data has 2 target columns, but the model n_objectives 1"):
        quiet(max_steps=1).fit(module(), two)
    model = module(n_objectives=2)
    trainer = quiet(max_steps=1, limit_val_batches=1, val_check_interval=1, check_val_every_n_epoch=None)
    trainer.fit(model, two)
    assert model.target_scale.centre.shape == (2,)
    [[row, *_]] = trainer.predict(model, two)[:1]
    assert len(row["prediction"]) == len(row["target"]) == 2


def test_data_that_does_not_fit_the_model_is_refused():
    with pytest.raises(ValueError, match="the data gives 0 numbers for a text, but the model has n_features 4"):
        quiet(max_steps=1).fit(module("mlp"), data())
    with pytest.raises(ValueError, match=r"data\.max_input_len 128 needs 129 positions, .* has max_seq_len 128"):
        module("transformer", max_seq_len=128).check_data(data())
    with pytest.raises(ValueError, match="encoder mlp reads no tokens"):
        module("mlp", freeze_embeddings=True)
    with pytest.raises(ValueError, match="loss must be one of huber, mse, not 'mae'"):
        module(loss="mae")


def test_trains_on_bpe_tokens():
    rows = data(tokenizer="bpe", bpe_vocab_size=300)
    quiet(max_steps=1).fit(module(vocab_size=rows.vocab_size), rows)
    assert rows.lengths("train").max() < 40 < min(map(len, rows.texts("train")))


# ---- classes


def moods(tmp_path, extra_lines=""):
    words = ["awful", "so so", "great"]
    lines = [json.dumps({"text": f"{words[i % 3]} {i}", "mood": i % 3}) for i in range(60)] + [extra_lines]
    (tmp_path / "moods.jsonl").write_text("\n".join(lines))
    return TextRegression(
        str(tmp_path / "moods.jsonl"), text_column="text", target_columns="mood", tokenizer="characters", batch_size=8
    )


def test_classification(tmp_path):
    model, texts = module(n_classes=3, lr=1e-2, warmup_steps=5), moods(tmp_path)
    trainer = quiet(max_steps=60, limit_val_batches=None, val_check_interval=60, check_val_every_n_epoch=None)
    trainer.fit(model, texts)
    assert trainer.callback_metrics["val_accuracy"] == 1
    assert "val_mae" not in trainer.callback_metrics
    row = trainer.predict(model, texts)[0][0]
    assert row["prediction"] == int(row["target"])
    assert sum(row["probabilities"]) == pytest.approx(1)
    assert len(row["probabilities"]) == 3


@pytest.mark.parametrize("invalid", [3, 1.5, -1])
def test_a_target_out_of_the_classes_is_refused(invalid, tmp_path):
    texts = moods(tmp_path, "\n".join([json.dumps({"text": "?", "mood": invalid})] * 30))
    with pytest.raises(ValueError, match=f"a target is {invalid}, but n_classes 3 means one of 0 ... 2"):
        quiet(max_steps=1).fit(module(n_classes=3), texts)
    with pytest.raises(ValueError, match="n_classes needs one target column, not 2"):
        module(n_classes=3, n_objectives=2)
    with pytest.raises(ValueError, match="n_classes must be 0 or at least 2, not 1"):  # its loss would always be 0
        module(n_classes=1)


# ---- embeddings


def test_pretrained_embeddings_are_loaded_frozen_and_stored(tmp_path):
    matrix = torch.randn(99, 16)
    torch.save(matrix, tmp_path / "e.pt")
    model = module(embeddings=str(tmp_path / "e.pt"), freeze_embeddings=True)
    trainer = quiet(max_steps=2)
    trainer.fit(model, data())
    assert torch.equal(model.model.embedding.weight, matrix)  # frozen
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    (tmp_path / "e.pt").unlink()
    again = MiniRLM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert torch.equal(again.model.embedding.weight, matrix)


# ---- the command line


def test_fit_then_predict_and_test_from_the_checkpoint_alone(tmp_path, capfd):
    out = tmp_path / "run"
    argv = [
        "fit", f"--config={ROOT / 'configs' / 'tiny' / 'mini_rlm.yaml'}", f"--output_dir={out}", "--model.dim=16",
        "--model.hidden_dim=16", "--model.n_layers=1", "--data.n_rows=100", "--data.batch_size=8",
        "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    assert main(argv) == 0, capfd.readouterr().err
    alone = [f"--ckpt_path={out / 'best.ckpt'}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["predict", *alone, "--plots.ranking=max", "--plots.intervals=true"]) == 0, capfd.readouterr().err
    assert {"predictions-ranking.png", "predictions-intervals.png"} <= {file.name for file in out.iterdir()}
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(20))
    assert rows[0].keys() == {"index", "input", "prediction", "target"}
    assert main(["test", *alone, "--data.test_on=layers"]) == 0, capfd.readouterr().err
    assert "test_spearman" in capfd.readouterr().out
    mine = tmp_path / "mine.csv"  # the user's configurations, without scores
    mine.write_text("lr,batch_size,layers,dropout\n0.01,32,4,0.25\n")
    argv = ["predict", *alone, f"--data_dir={mine}", f"--predictions.path={tmp_path / 'mine.jsonl'}"]
    assert main(argv) == 0, capfd.readouterr().err
    [row] = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert row["input"] == '{"lr": 0.01, "batch_size": 32, "layers": 4, "dropout": 0.25}'
    assert "target" not in row
