"""Targets that a model cannot tell apart: which are recognised, and the option that the warning names."""

import re
import warnings

import numpy as np
import pytest
from lightning import Trainer
from torch.utils.data import DataLoader

from zoo.datamodules import TextRegression
from zoo.mini_rlm import MiniRLM
from zoo.regress_lm import RegressLM
from zoo.regress_lm.number_formats import finer_format, number_tokenizer
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import Row, collate
from zoo.training.distinct_targets import find_merged, warn_of_constant

TINY, TIMES = np.linspace(1e-14, 4e-13, 400), 1.7e9 + np.arange(400.0)


def rounded(values, kind):
    tokenizer = number_tokenizer(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenizer.decode(tokenizer.encode(values[:, None]))


@pytest.mark.parametrize(
    ("values", "kind", "after", "options"),
    [
        (TINY, "ieee", 1, "--model.number_exponent 2"),
        (TINY, "p10", 1, "--model.number_exponent 20"),
        (TINY, "normalized", 1, "--model.number_digits 15"),
        (TIMES, "ieee", 1, "--model.number_digits 10"),
        (TIMES, "p10", 1, "--model.number_digits 10"),
        (TIMES, "normalized", 1, "--model.number_format ieee --model.number_digits 10"),
        (np.linspace(100, 101, 1000), "ieee", 11, "--model.number_digits 5"),
        (np.r_[np.linspace(1e-15, 1e-14, 50), np.linspace(0.1, 1, 50)], "ieee", 51, "--model.number_exponent 2"),
        (np.linspace(1, 9, 300) * 1e200, "ieee", 1, "--model.number_exponent 3"),
    ],
)
def test_merged_targets_and_the_option_that_helps(values, kind, after, options):
    [merged] = find_merged(values[:, None], rounded(values, kind))
    assert (merged.before, merged.after) == (len(values), after)
    assert finer_format(merged.quantiles, kind) == options


@pytest.mark.parametrize(
    "values",
    [np.linspace(0, 1, 100_000), np.arange(-3000.0, 3001), np.random.default_rng(0).normal(size=3000), np.ones(9),
     np.array([np.nan, 1.0, 2.0]), np.linspace(900, 1000, 1000), np.geomspace(1e-9, 1e9, 1000)],
    ids=range(7),
)  # fmt: skip
def test_ordinary_targets_are_told_apart(values):
    finite = np.where(np.isfinite(values), values, 0)
    assert find_merged(values[:, None], rounded(finite, "ieee")) == []


def loader_of(targets):
    rows = [Row([97, 98], tuple(target), i, "ab") for i, target in enumerate(targets)]
    return DataLoader(rows, batch_size=4, collate_fn=collate)


def warnings_of_a_fit(module, loader, tmp_path):
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader)
    return [text for warning in caught if re.search("distinct|beyond the range", text := str(warning.message))]


def test_regress_lm_warns_at_the_start_of_a_fit(tmp_path):
    sizes = {"dim": 16, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    model = RegressLM(tokenizer=load_tokenizer("bytes"), n_objectives=2, **sizes)
    targets = np.stack([np.arange(400.0), TIMES], 1)
    assert warnings_of_a_fit(model, loader_of(targets), tmp_path) == [
        "the 400 distinct training targets of objective 2 become 1 distinct value (0.25 %) as number tokens, so that "
        "the model cannot tell them apart: set --model.number_digits 10"
    ]


def test_mini_rlm_warns_at_the_start_of_a_fit(tmp_path):
    def fit(scale):
        model = MiniRLM(tokenizer=load_tokenizer("bytes"), target_scale=scale, dim=8, hidden_dim=8, loss="huber")
        return warnings_of_a_fit(model, loader_of(TIMES[:, None]), tmp_path)

    assert fit("asinh") == []
    assert fit("raw") == [
        "the 400 distinct training targets become 4 distinct values (1 %) with target_scale raw in fp32, so that the "
        "model cannot tell them apart: set --model.target_scale asinh"
    ]


def test_a_constant_target_is_named():
    targets = np.array([[3.0, 1.0]] * 9 + [[3.0, 2.0], [np.nan, 2.0]])
    with pytest.warns(UserWarning, match=r"all 10 training targets of objective 1 are 3: the model can learn nothing"):
        warn_of_constant(targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_constant(targets[:, 1:])
        warn_of_constant(targets[:9])  # too few rows


def test_warnings_count_the_rows_of_the_data_only(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b,y\n" + "".join(f"{i},{i % 7},{1.7e9 + i}\n" for i in range(60)))
    options = {"target_columns": "y", "synthetic_rows": 50, "val_fraction": 0, "test_fraction": 0, "batch_size": 8}
    data = TextRegression(str(path), augment_copies=2, jitter=0.1, target_jitter=0.1, teacher="fast", **options)
    sizes = {"dim": 16, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    assert len(data.dataset("train")) > 180  # with copies and synthetic rows
    for model in (
        RegressLM(tokenizer=data.tokenizer, max_input_len=data.max_input_len, **sizes),
        RegressLM(tokenizer=data.tokenizer, max_input_len=data.max_input_len, number_format="normalized", **sizes),
        MiniRLM(tokenizer=data.tokenizer, vocab_size=data.vocab_size, target_scale="raw", dim=8, hidden_dim=8),
    ):
        texts = warnings_of_a_fit(model, data.train_dataloader(), tmp_path)
        counts = [text.partition(" become")[0] for text in texts if "distinct" in text]
        assert counts == ["the 60 distinct training targets"]
        clamped = [text[:24] for text in texts if "beyond the range" in text]
        assert clamped == (["60 of 60 numbers are bey"] if model.hparams.get("number_format") == "normalized" else [])
