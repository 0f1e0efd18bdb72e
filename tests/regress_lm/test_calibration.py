"""Calibrated distributions: temperatures, conformal quantiles, and both in fit, validate, test and predict."""

import json
import math

import numpy as np
import pytest
import torch

from tests.regress_lm.test_regress_lm_decode import build
from tests.regress_lm.test_regress_lm_module import QUIET, fit
from zoo.cli.command_line import ZooCLI
from zoo.errors import UserError
from zoo.regress_lm import Example, ExampleInput, RegressLM
from zoo.regress_lm.calibration import (
    LEVELS,
    TEMPERATURES,
    check_stored,
    fit_offsets,
    fit_temperatures,
    move_samples,
    spread_of,
)
from zoo.regress_lm.decoding import log_prob, log_probs_by_temperature, sample
from zoo.regress_lm.estimates import coverage, crps, quantiles
from zoo.regress_lm.number_tokenizers import IEEEFloatTokenizer, NormalizedTokenizer
from zoo.regress_lm.vocabulary import NumberVocabulary
from zoo.training.batches import collate

TEXTS = torch.randint(1, 30, (3, 6), generator=torch.Generator().manual_seed(1))
EVERY_2 = "--trainer.val_check_interval=2"


# ---- temperatures


def test_temperature_of_each_token_is_recovered():
    """Digits drawn at temperatures .5 and 3 of the model's logits: those are fitted, and give the same distribution."""
    vocabulary = NumberVocabulary(NormalizedTokenizer(length=2))
    true = NumberVocabulary(vocabulary.tokenizer, 1, None, [0.5, 3.0])
    model = build(vocabulary)
    ids = sample(model, true, TEXTS, None, 2000).ids.flatten(0, 1)
    texts = TEXTS.repeat_interleave(2000, 0)
    with torch.no_grad():
        logits = model(texts, ids)
    sums = log_probs_by_temperature(logits, vocabulary, ids, TEMPERATURES).sum(0)  # (G, 2)
    fitted = fit_temperatures(sums)
    assert fitted == pytest.approx([0.5, 3.0], rel=0.13)
    at_one = log_prob(model, vocabulary, texts, None, ids).sum()
    place = int((TEMPERATURES - 1).abs().argmin())
    assert sums[place].sum().item() == pytest.approx(at_one.item(), rel=1e-2)
    assert log_prob(model, true, texts, None, ids).sum() > at_one + 100


def test_temperature_stays_near_1_without_information():
    assert fit_temperatures(torch.zeros(61, 2)) == pytest.approx([1, 1], abs=0.05)
    assert fit_temperatures(torch.full((61, 2), math.nan)) == [1, 1]


# ---- conformal offsets


def simulated(n, seed, spread=0.3):
    """Targets of standard deviation `scale`, samples with 30% of it around a wrong centre: (samples, targets)."""
    random = np.random.default_rng(seed)
    scale = np.exp(random.normal(size=(n, 2)))
    targets = scale * random.normal(size=(n, 2))
    samples = scale[:, None] * (0.2 + spread * random.normal(size=(n, 128, 2)))
    return torch.from_numpy(samples), torch.from_numpy(targets)


def test_conformal_intervals_hold_their_share_of_new_targets():
    """1000 + 4000 rows, two objectives: deviation of the share at most .012, so .035 is three deviations."""
    samples, targets = simulated(1000, 0)
    offsets = fit_offsets(quantiles(samples, LEVELS).numpy(), spread_of(samples).numpy(), targets.numpy())
    new, new_targets = simulated(4000, 1)
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    before = coverage(quantiles(new, levels).numpy(), new_targets.numpy())
    after = coverage(quantiles(move_samples(new, offsets), levels).numpy(), new_targets.numpy())
    assert before["90"] < 0.5
    assert after["50"] == pytest.approx(0.5, abs=0.035)
    assert after["90"] == pytest.approx(0.9, abs=0.025)


@pytest.mark.parametrize("n", [39, 66, 90])
def test_expected_share_of_few_validation_rows_is_the_nominal_one(n):
    """Uniform targets: the share inside an interval is its length. 1,500 fits, so that its deviation is .002."""
    random = np.random.default_rng(n)
    lengths = []
    for _ in range(1500):
        offsets = fit_offsets(np.zeros((n, 1, 19)), np.full((n, 1), 0.9), random.random((n, 1)))
        ends = np.array(offsets.values[0]) * (0.9 + offsets.floor[0])
        lengths.append((ends[14] - ends[4], ends[18] - ends[0]))
    assert (LEVELS[4], LEVELS[14]) == (0.25, 0.75)
    assert np.mean(lengths, 0) == pytest.approx([0.5, 0.9], abs=0.008)


def test_moved_quantiles_are_quantile_plus_offset_times_spread():
    samples, targets = simulated(300, 0)
    samples = samples[:, :99]  # levels .01 to .99: every entry of LEVELS is a sample
    offsets = fit_offsets(quantiles(samples, LEVELS).numpy(), spread_of(samples).numpy(), targets.numpy())
    scale = spread_of(samples) + torch.tensor(offsets.floor)
    before, median = quantiles(samples, LEVELS), quantiles(samples, (0.5,))
    expected = before + torch.tensor(offsets.values) * scale.unsqueeze(-1)
    is_lower = torch.tensor(LEVELS) < 0.5
    expected = torch.where(is_lower, expected.minimum(median), expected.maximum(median))
    torch.testing.assert_close(quantiles(move_samples(samples, offsets), LEVELS), expected.sort(-1).values)
    assert (expected[..., 0] < before[..., 0]).double().mean() > 0.9
    unchanged = samples[:3].clone()
    unchanged[:, 5] = math.inf
    assert torch.equal(move_samples(unchanged, offsets), unchanged)


def test_offsets_of_few_or_unusable_rows():
    for n in (38, 39):
        samples, targets = simulated(n, 0)
        offsets = fit_offsets(quantiles(samples, LEVELS).numpy(), spread_of(samples).numpy(), targets.numpy())
        assert (offsets is None) == (n == 38)
    assert fit_offsets(np.full((50, 1, 19), np.nan), np.zeros((50, 1)), np.zeros((50, 1))) is None
    exact = fit_offsets(np.ones((50, 1, 19)), np.zeros((50, 1)), np.ones((50, 1)))
    assert exact.values == [[0.0] * 19]


# ---- estimates


def test_quantiles_are_numpys_weibull_quantiles_without_nan():
    samples = torch.randn(4, 19, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.quantile(samples.numpy(), LEVELS, axis=1, method="weibull").transpose(1, 2, 0)
    np.testing.assert_allclose(quantiles(samples, LEVELS).numpy(), expected)
    with_nan = torch.cat((samples, torch.full((4, 3, 2), math.nan)), 1)
    torch.testing.assert_close(quantiles(with_nan, LEVELS), quantiles(samples, LEVELS))
    infinite = torch.tensor([-math.inf, -math.inf, 1.0, 2.0, math.inf]).view(1, 5, 1)
    assert quantiles(infinite, (0.05, 0.25, 0.5, 0.9)).flatten().tolist() == [-math.inf, -math.inf, 1, math.inf]
    assert quantiles(torch.full((1, 3, 1), math.nan), (0.5,)).isnan().all()


@pytest.mark.parametrize("n_samples", [19, 32, 128])
def test_interval_of_perfect_samples_holds_90_percent_for_every_number_of_samples(n_samples):
    """20,000 rows: four deviations of the share are .009."""
    random = torch.Generator().manual_seed(n_samples)
    draws = torch.randn(20_000, n_samples + 1, 1, dtype=torch.float64, generator=random)
    samples, targets = draws[:, 1:], draws[:, 0]
    shares = coverage(quantiles(samples, (0.05, 0.25, 0.5, 0.75, 0.95)).numpy(), targets.numpy())
    assert shares["50"] == pytest.approx(0.5, abs=0.014)
    assert shares["90"] == pytest.approx(0.9, abs=0.009)
    # For a standard normal distribution the expectation of the CRPS is 1 / sqrt(pi), for every number of samples.
    assert crps(samples, targets).mean().item() == pytest.approx(1 / math.sqrt(math.pi), abs=0.012)


# ---- fit, validate, test, predict


def table(folder):
    """A folder with 60 rows each for training, validation and test."""
    (folder / "data").mkdir()
    for name in ("train", "valid", "test"):
        rows = "".join(f"x = {i},{(i * 37 % 60) / 50}\n" for i in range(60))
        (folder / "data" / f"{name}.csv").write_text("text,y\n" + rows)
    return folder / "data"


@pytest.mark.parametrize("kind", ["temperature", "conformal"])
def test_checkpoint_has_the_calibration_of_its_weights_and_validate_scores_as_fit(tmp_path, kind):
    run = tmp_path / "run"
    options = ["--model.num_samples=24", "--model.val_samples=24", f"--model.calibration={kind}"]
    cli = fit(table(tmp_path), run, *options, "--data.target_columns=y", EVERY_2)
    stored = torch.load(run / "last.ckpt", weights_only=True)["calibration"]
    assert len(stored["temperatures"]) == 7
    assert (stored["offsets"] is None) == (kind != "conformal")
    assert not cli.model.vocabulary.temperature.eq(1).all()
    # The validation of the fit and `zoo validate` score the same distribution with the same estimates.
    again = ZooCLI(["validate", f"--ckpt_path={run / 'last.ckpt'}", *QUIET]).trainer.callback_metrics
    for name in ("val_crps", "val_nll", "val_coverage_50", "val_coverage_90", "val_mae"):
        assert again[name].item() == pytest.approx(cli.trainer.callback_metrics[name].item(), rel=1e-6), name
    # The share of targets between the quantiles in the predictions is the coverage that is logged.
    evaluate = [f"--ckpt_path={run / 'last.ckpt'}", *QUIET]
    logged = ZooCLI(["test", *evaluate]).trainer.callback_metrics
    ZooCLI(["predict", *evaluate])
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    for low, high, name in (("0.25", "0.75", "test_coverage_50"), ("0.05", "0.95", "test_coverage_90")):
        inside = [row["quantiles"][low] <= row["target"] <= row["quantiles"][high] for row in rows]
        assert logged[name].item() == pytest.approx(np.mean(inside))


def test_options_switch_the_stored_calibration_off(tmp_path):
    fit(table(tmp_path), tmp_path / "run", "--data.target_columns=y", "--model.calibration=conformal", EVERY_2)
    path = tmp_path / "run" / "best.ckpt"
    model = RegressLM.load(path)
    assert model.offsets is not None
    assert model.vocabulary.count < model.vocabulary.unrestricted.count
    texts = [ExampleInput(f"x = {i}") for i in range(5)]
    assert np.abs(np.concatenate(model.sample(texts, 500, seed=0))).max() < 10  # the targets are 0 to 1.18
    plain = RegressLM.load_from_checkpoint(path, weights_only=True, calibration="none", unseen_exponents=True).eval()
    assert plain.vocabulary.temperature.eq(1).all()
    assert plain.vocabulary.magnitudes is None
    assert plain.offsets is not None
    assert np.abs(np.concatenate(plain.sample(texts, 500, seed=0))).max() > 100


def test_fine_tune_calibrates_on_rows_that_it_did_not_train_on(tmp_path):
    sizes = {"dim": 16, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1, "calibration": "conformal"}
    examples = [Example(f"x = {i}", i / 10) for i in range(1, 400)]
    model = RegressLM.from_scratch(max_input_len=32, num_samples=20, **sizes)
    model.fine_tune(examples[:10], max_epochs=1, progress=False)  # trained and validated on the same rows
    assert (model.temperatures, model.offsets) == (None, None)
    model.fine_tune(examples, max_epochs=1, progress=False)  # 39 rows for validation
    assert None not in (model.temperatures, model.offsets)
    assert model.log_prob([Example("x = 1", 123.0)]).item() == -math.inf
    path = tmp_path / "model.ckpt"
    model.save(path)
    loaded = RegressLM.load(path)
    assert torch.equal(loaded.log_prob(examples), model.log_prob(examples))
    assert loaded.offsets == model.offsets
    inputs = [ExampleInput(f"x = {i}") for i in range(8)]
    intervals = loaded.quantiles(inputs, 50, seed=3)
    assert intervals.shape == (8, 5)
    assert np.array_equal(intervals, model.quantiles(inputs, 50, seed=3))
    assert (np.diff(intervals) >= 0).all()
    assert intervals[:, 2] == pytest.approx(np.median(np.stack(model.sample(inputs, 50, seed=3)), 1))
    assert model.quantiles([]).shape == (0, 5)
    checkpoint = torch.load(path, weights_only=True)
    for name in ("calibration", "zoo_digest"):  # as written by an earlier version
        checkpoint.pop(name)
    torch.save(checkpoint, path)
    assert RegressLM.load(path).temperatures is None


def test_copies_of_a_row_calibrate_on_equal_samples():
    """Six texts with 20 targets each: offsets of the texts' quantiles, each 20 times."""
    vocabulary_sizes = {"dim": 16, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    model = RegressLM.from_scratch(max_input_len=32, num_samples=30, **vocabulary_sizes)
    texts = model.rows([Example(f"x = {i}", 0.0) for i in range(6)])
    random = np.random.default_rng(0)
    copies = [row._replace(targets=(y,)) for row in texts for y in random.normal(size=20).tolist()]
    model.calibrate([model.with_number_tokens(collate(copies[:50])), model.with_number_tokens(collate(copies[50:]))])
    samples, _ = model.draw_for_rows(collate(texts), 30)
    by_text = (quantiles(samples, LEVELS).numpy(), spread_of(samples).numpy())
    targets = np.array([row.targets for row in copies])
    assert model.offsets == fit_offsets(*(column.repeat(20, axis=0) for column in by_text), targets)


def test_no_process_calibrates_where_another_one_has_no_batches(monkeypatch):
    """Otherwise it would wait for the results of the other one without end."""
    model = RegressLM.from_scratch(max_input_len=8, dim=16, n_heads=2, calibration="temperature")
    batches = model.batches([Example("a", 1.0), Example("b", 2.0)], 2)
    model.calibrate(batches)
    assert model.temperatures is not None
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda number, op: number.fill_(0))
    model.calibrate(batches)
    assert model.temperatures is None


def test_small_table_with_synthetic_rows_is_calibrated_on_drawn_targets(tmp_path, monkeypatch):
    for name, value in (("N_TREES", 20), ("N_COMPARED_TREES", 10), ("MOST_FOLDS", 2)):
        monkeypatch.setattr(f"zoo.datamodules.teacher_models.{name}", value)
    random = np.random.default_rng(0)
    rows = "".join(f"{a:.2f},{3 * a + b:.2f}\n" for a, b in random.normal(size=(70, 2)))
    (tmp_path / "data.csv").write_text("a,y\n" + rows)
    options = ["--data.target_columns=y", "--data.synthetic_rows=100", "--model.num_samples=24", EVERY_2]
    model = fit(tmp_path / "data.csv", tmp_path / "run", *options).model
    assert model.offsets is not None  # of 7 validation rows
    rows = model.trainer.val_dataloaders.calibration_rows
    batch = collate(rows[:: len(rows) // 86])  # each of the 7 texts
    samples, log_prob = model.draw_for_rows(batch, 24)
    low, *_, high = model.summarize(samples, log_prob, batch.targets)["quantiles"].unbind(-1)
    assert ((low <= batch.targets) & (batch.targets <= high)).double().mean() > 0.85


def test_targets_with_unseen_exponents_have_a_finite_logged_nll(tmp_path):
    (tmp_path / "data").mkdir()
    for name, factor in (("train", 1), ("test", 1000)):
        rows = "".join(f"x = {i},{i * factor}\n" for i in range(1, 30))
        (tmp_path / "data" / f"{name}.csv").write_text("text,y\n" + rows)
    fit(
        tmp_path / "data", tmp_path / "run", "--data.text_column=text", "--data.target_columns=y", "--data.batch_size=4"
    )
    logged = ZooCLI(["test", f"--ckpt_path={tmp_path / 'run' / 'last.ckpt'}", *QUIET]).trainer.callback_metrics
    assert 0 < logged["test_nll"].item() < 100
    assert logged["test_coverage_90"] == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"temperatures": [1.0] * 6},
        {"temperatures": [0.0] * 7},
        {"temperatures": [math.nan] * 7},
        {"temperatures": 3},
        {"magnitudes": []},
        {"magnitudes": [[]]},
        {"magnitudes": [[[99] * 7]]},
        {"magnitudes": [[["x"] * 7]]},
        {"magnitudes": [[[1] * 6]]},
        {"magnitudes": [3]},
        {"offsets": [[0.0] * 18], "floor": [1.0]},
        {"offsets": [[0.0] * 19], "floor": None},
        {"offsets": 3, "floor": [1.0]},
        {"more": 1},
    ],
)
def test_damaged_calibration_is_refused(damage):
    stored = {"magnitudes": None, "temperatures": None, "offsets": None, "floor": None}
    assert check_stored(stored, 7, 1, 13) == stored
    with pytest.raises(UserError, match="calibration of numbers is damaged"):
        check_stored(stored | damage, 7, 1, 13)
    for wrong in (None, [], "x"):
        with pytest.raises(UserError, match="damaged"):
            check_stored(wrong, 7, 1, 13)


def test_magnitudes_that_cannot_be_generated_are_refused():
    with pytest.raises(UserError, match="do not fit the number format"):
        NumberVocabulary(IEEEFloatTokenizer(), 1, [[(3, 3, 3, -1, -1, -1, -1)]])
