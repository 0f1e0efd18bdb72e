"""The Python API of RegressLM: fine-tuning, sampling, probabilities, saving and loading."""

import math
import warnings

import numpy as np
import pytest
import torch

from zoo.errors import UserError
from zoo.regress_lm import Example, ExampleInput, RegressLM
from zoo.regress_lm.estimates import summary
from zoo.tokenizers import load_tokenizer, train_words

SMALL = {"dim": 32, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}


@pytest.fixture
def small() -> RegressLM:
    return RegressLM.from_scratch(max_input_len=64, **SMALL)


def words(n: int) -> list[Example]:
    """Texts whose number is their count of "a"."""
    return [Example(x="a" * (i % 5) + "b" * (i % 3 + 1), y=float(i % 5)) for i in range(n)]


def loss(model: RegressLM, examples: list[Example]) -> float:
    [batch] = model.batches(examples, len(examples))
    return model.losses(batch).mean().item()


def test_readme_example_learns_two_examples(small):
    small.fine_tune([Example(x="hello", y=0.3), Example(x="world", y=-0.3)], max_epochs=40, lr=3e-3, progress=False)
    samples1, samples2 = small.sample([ExampleInput(x="hello"), ExampleInput(x="world")], num_samples=128)
    assert samples1.shape == samples2.shape == (128,)
    assert samples1.dtype == np.float64
    assert np.median(samples1) == 0.3
    assert np.median(samples2) == -0.3


def test_default_weights_warn_once_before_they_are_fine_tuned():
    pretrained = RegressLM.from_default(max_input_len=8)
    assert pretrained.model.config.max_input_len == 8
    with pytest.warns(UserWarning, match=r"the weights of from_default\(\) know random tables only"):
        first = pretrained.sample([ExampleInput(x="a: 1")], 4, seed=0)
    assert np.array_equal(pretrained.sample([ExampleInput(x="a: 1")], 4, seed=0), first)  # warnings are errors here
    tuned = RegressLM.from_default(max_input_len=8)
    tuned.fine_tune([Example(x="a: 1", y=1.0), Example(x="a: 2", y=2.0)], max_epochs=1, progress=False)
    tuned.quantiles([ExampleInput(x="a: 1")], 4, seed=0)


def test_unknown_arguments_are_refused(small):
    with pytest.raises(TypeError, match="max_input_length"):
        RegressLM.from_scratch(max_input_length=2048)


def test_fine_tune_learns_and_restores_the_best_weights(small):
    losses = small.fine_tune(words(64), words(15), max_epochs=30, batch_size=16, lr=3e-3, progress=False)
    assert losses[-1] < 0.3 * losses[0]
    assert not small.training
    assert loss(small, words(15)) == pytest.approx(min(losses), rel=1e-5)


def test_fine_tune_stops_after_patience_and_restores_the_best_weights(small):
    never_seen = [Example(x="b", y=7.0)]
    losses = small.fine_tune(words(20), never_seen, max_epochs=50, lr=1e-2, patience=5, progress=False)
    assert len(losses) < 50
    assert len(losses) - 1 - int(np.argmin(losses)) == 5
    assert loss(small, never_seen) == pytest.approx(min(losses), rel=1e-5)


def test_fine_tune_holds_out_a_tenth_by_default(small, monkeypatch):
    seen = {True: set(), False: set()}
    own = RegressLM.losses

    def losses(self, batch):
        seen[self.training].update(batch.index.tolist())
        return own(self, batch)

    monkeypatch.setattr(RegressLM, "losses", losses)
    small.fine_tune(words(40), max_epochs=2, batch_size=8, progress=False)
    assert len(seen[False]) == 4
    assert len(seen[True]) == 36
    assert not seen[True] & seen[False]


def test_fine_tune_is_determined_by_its_seed(monkeypatch):
    drawn = []
    for seed in (3, 3, 4):
        model = RegressLM.from_scratch(max_input_len=64, dropout=0.1, seed=1, **SMALL)
        before = torch.random.get_rng_state()
        monkeypatch.setenv("PL_GLOBAL_SEED", str(len(drawn)))  # must have no effect
        model.fine_tune(words(32), seed=seed, max_epochs=2, batch_size=8, lora_rank=2, progress=False)
        assert torch.equal(before, torch.random.get_rng_state())
        drawn.append(model.sample([ExampleInput("aab")], num_samples=50, seed=0)[0])
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_samples_do_not_depend_on_the_other_inputs(small):
    texts = [ExampleInput("a"), ExampleInput("a much longer text")]
    together = small.sample(texts, num_samples=20, seed=5)
    assert np.array_equal(together[0], small.sample(texts[:1], num_samples=20, seed=5)[0])


def test_sample_shows_a_progress_line_that_counts_the_texts(small, capsys):
    texts = [ExampleInput("a" * n) for n in range(1, 6)]
    silent = small.sample(texts, num_samples=2, seed=0, batch_size=2)
    assert capsys.readouterr().err == ""
    shown = small.sample(texts, num_samples=2, seed=0, batch_size=2, progress=True)
    assert np.array_equal(silent, shown)
    assert "sampling: text 5 of 5, 100 %" in capsys.readouterr().err


def test_low_rank_updates_are_merged_into_weights_of_the_same_names(small):
    names, embedding = set(small.state_dict()), small.model.encoder.embedding.weight.clone()
    losses = small.fine_tune(words(64), words(15), lora_rank=4, max_epochs=15, lr=1e-2, batch_size=16, progress=False)
    assert losses[-1] < losses[0]
    assert set(small.state_dict()) == names
    assert all(p.requires_grad for p in small.parameters())
    assert torch.equal(small.model.encoder.embedding.weight, embedding)
    assert loss(small, words(15)) == pytest.approx(min(losses), rel=1e-4)


def test_several_objectives_are_drawn_and_scored_together():
    model = RegressLM.from_scratch(max_input_len=64, n_objectives=2, number_format="p10", **SMALL)
    examples = [Example(x="a", y=[1.0, -2.0]), Example(x="b", y=(3.5, 40.0))]
    model.fine_tune(examples, max_epochs=60, lr=5e-3, progress=False)
    a, b = model.sample([ExampleInput("a"), ExampleInput("b")], num_samples=9, temperature=0)
    assert a.shape == (9, 2)
    assert a.tolist() == [[1.0, -2.0]] * 9
    assert b.tolist() == [[3.5, 40.0]] * 9
    assert model.log_prob([Example("a", [1.0, -2.0]), Example("a", [3.5, 40.0])]).diff().item() < -1
    with pytest.raises(ValueError, match="example 1 has 3 numbers, but the model 2 objectives"):
        model.fine_tune([Example("a", [1.0, 2.0]), Example("b", [1.0, 2.0, 3.0])])


@pytest.mark.parametrize("number_format", ["normalized", "ieee"])
def test_examples_with_fewer_numbers_are_scored_on_those_they_have(number_format):
    model = RegressLM.from_scratch(64, n_objectives=2, number_format=number_format, number_digits=1, seed=3, **SMALL)
    # The probability of the first number is the sum over all pairs that start with it.
    digits = np.arange(10) / 10 if number_format == "normalized" else None
    if digits is not None:
        pairs = model.log_prob([Example("abc", [0.3, second]) for second in digits])
        assert model.log_prob([Example("abc", 0.3)]).item() == pytest.approx(pairs.logsumexp(0).item(), abs=1e-6)
    # The loss is the mean over the first number's tokens, also next to a row with both numbers.
    examples = [Example("abc", [0.3]), Example("d", [0.5, 0.2])]
    [batch] = model.batches(examples, 2)
    each = model.vocabulary.tokenizer.num_tokens
    logits = model.model(batch.tokens, batch.numbers, batch.padding_mask)
    of_tokens = torch.nn.functional.cross_entropy(logits.mT, batch.numbers, reduction="none")
    expected = [of_tokens[0, :each].mean().item(), of_tokens[1].mean().item()]
    assert model.losses(batch).tolist() == pytest.approx(expected, abs=1e-6)
    assert not batch.numbers[0, each:].any()


@pytest.mark.filterwarnings("ignore:all 10 training targets of objective 2 are 0.7")
def test_fine_tuning_learns_from_examples_with_fewer_numbers():
    model = RegressLM.from_scratch(64, n_objectives=2, number_format="normalized", number_digits=1, **SMALL)
    examples = [Example("a", [0.2, 0.7]), Example("b", [0.4])] * 10
    model.fine_tune(examples, examples, max_epochs=30, lr=5e-3, batch_size=5, progress=False)
    a, b = model.sample([ExampleInput("a"), ExampleInput("b")], num_samples=5, temperature=0)
    assert a.tolist() == [[0.2, 0.7]] * 5
    assert b[:, 0].tolist() == [0.4] * 5
    special = RegressLM.from_scratch(64, n_objectives=2, special_values=True, **SMALL)
    with pytest.raises(UserError, match="1 numbers, but the model 2 objectives; special_values=True needs all"):
        special.log_prob([Example("a", 1.0)])
    for wrong in ([math.nan, 0.5], [0.5, math.inf], [0.5, math.nan]):
        with pytest.raises(UserError, match="only special_values=True allows this"):
            model.log_prob([Example("a", wrong)])


def test_exact_mean_is_the_limit_of_sample_means():
    model = RegressLM.from_scratch(max_input_len=8, number_format="normalized", number_digits=2, seed=2, **SMALL)
    exact = model.exact_mean([ExampleInput("a"), ExampleInput("bc")])
    drawn = model.sample([ExampleInput("a"), ExampleInput("bc")], num_samples=20_000, seed=0)
    for i in range(2):
        assert exact[i, 0] == pytest.approx(drawn[i].mean(), abs=4 * drawn[i].std() / math.sqrt(20_000))
    model = RegressLM.from_scratch(max_input_len=8, number_format="p10", number_digits=8, **SMALL)
    with pytest.raises(ValueError, match="too many to enumerate"):
        model.exact_mean([ExampleInput("a")])


def test_special_values_need_special_values_true(small):
    for bad in ([Example("a", 1.0), Example("a", math.nan)], [Example("a", 1.0), Example("a", math.inf)]):
        with pytest.raises(ValueError, match=r"example 1 has (nan|inf) for a number"):
            small.fine_tune(bad, progress=False)
        with pytest.raises(ValueError, match=r"example 1 has (nan|inf) for a number"):
            small.fine_tune([Example("a", 1.0)], bad, progress=False)
    model = RegressLM.from_scratch(max_input_len=8, special_values=True, **SMALL)
    model.fine_tune([Example("a", math.inf), Example("b", 2.0)], max_epochs=60, lr=5e-3, progress=False)
    a, b = model.sample([ExampleInput("a"), ExampleInput("b")], num_samples=5, temperature=0)
    assert np.isposinf(a).all()
    assert (b == 2.0).all()


def test_bad_examples_are_refused_by_number(small):
    with pytest.raises(ValueError, match="no examples"):
        small.fine_tune([])
    with pytest.raises(ValueError, match="no validation examples"):
        small.fine_tune([Example("a", 1.0)], [])
    with pytest.raises(ValueError, match="example 1 has no text"):
        small.sample([ExampleInput("a"), ExampleInput("")], num_samples=1)
    with pytest.raises(ValueError, match="example 0 has 65 tokens, beyond max_input_len 64"):
        small.log_prob([Example("a" * 65, 1.0)])
    with pytest.warns(UserWarning, match="clamp|nearest number") as caught:
        small.fine_tune([Example("a", 1e30)], max_epochs=1, progress=False)
    said = "\n".join(str(one.message) for one in caught)
    assert "clamp" in said
    assert "loss and nll are those of the nearest number" in said


def test_fine_tune_checks_its_options_before_it_changes_the_model():
    model = RegressLM.from_default(max_input_len=64)
    tokens, examples = model.tokenizer.fingerprint, [Example("rooms: 3, city: Bonn", 1.0)] * 4
    for options, message in (
        ({"max_epochs": 0}, "max_epochs must be at least 1"),
        ({"epochs": 3}, r"fine_tune has no argument 'epochs'; did you mean max_epochs\?"),
        ({"batchsize": 3}, "did you mean batch_size"),
        ({"lr": -1.0}, "lr must be"),
        ({"weight_decay": math.nan}, "weight_decay must be"),
        ({"validation_examples": []}, "no validation examples"),
    ):
        with pytest.raises(UserError, match=message):
            model.fine_tune(examples, progress=False, **options)
        assert not model.is_adapted
        assert model.tokenizer.fingerprint == tokens
    model.fine_tune(examples, max_epochs=1, progress=False)
    assert model.is_adapted
    assert "Bonn" in model.tokenizer.tokens


def test_weights_by_name(tmp_path):
    model = RegressLM.load("zoo:regress-lm")
    assert model.hparams["dim"] == RegressLM.from_default(max_input_len=8).hparams["dim"]
    with pytest.raises(UserError, match="the zoo has no weights zoo:regress; did you mean zoo:regress-lm"):
        RegressLM.load("zoo:regress")
    with pytest.raises(UserError, match="from_default has the tokenizer of zoo:regress-lm: drop tokenizer"):
        RegressLM.from_default(tokenizer="bytes")


def test_unknown_words_are_warned_of_and_a_last_word_is_read_without_its_comma():
    model = RegressLM.from_scratch(64, tokenizer=train_words(["a: 1, b: x, c: 7", "a: 2, b: y, c: 8"]), **SMALL)
    ids = model.tokenizer.tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full, cut, short, own = model.rows([ExampleInput(text) for text in FULL_AND_CUT])
    assert full.tokens[:4] == cut.tokens == [ids[word] for word in ("a:", "1,", "b:", "x,")]
    assert short.tokens == [ids["a:"], ids["2,"]]
    assert own.tokens[-1] == ids["7"]  # a word of its own is not changed
    with pytest.warns(UserWarning, match="in 1 of the 2 texts, such as 'z,': the model reads all of them as one"):
        model.sample([ExampleInput("a: 1, b: z, c: 7"), ExampleInput("a: 1")], 1)
    assert model.tokenizer.encode("a: 1, b: x c") == [ids["a:"], ids["1,"], ids["b:"], 0, 0]


FULL_AND_CUT = ("a: 1, b: x, c: 7", "a: 1, b: x", "a: 2", "c: 7")


def test_save_and_load_restore_the_model(small, tmp_path):
    small.save(tmp_path / "model.ckpt")
    again = RegressLM.load(tmp_path / "model.ckpt")
    inputs = [ExampleInput("some text")]
    assert np.array_equal(small.sample(inputs, 30, seed=1)[0], again.sample(inputs, 30, seed=1)[0])
    assert again.tokenizer.fingerprint == small.tokenizer.fingerprint
    assert torch.load(tmp_path / "model.ckpt", weights_only=True)["zoo"]["model"] == "RegressLM"


def test_an_adapted_model_is_saved_and_not_adapted_twice(tmp_path):
    model = RegressLM.from_scratch(max_input_len=8, lora_rank=2, **SMALL)
    model.save(tmp_path / "model.ckpt")
    again = RegressLM.load(tmp_path / "model.ckpt")
    [before], [after] = (m.sample([ExampleInput("a")], num_samples=9, seed=0) for m in (model, again))
    assert np.array_equal(before, after)
    with pytest.raises(ValueError, match="has low-rank updates already"):
        model.fine_tune(words(4), lora_rank=2, progress=False)


def test_infinities_among_the_samples_leave_quantiles_in_order():
    samples = torch.tensor([1.0, math.inf, math.inf, math.inf, math.nan, 2.0]).view(1, 6, 1)
    found = summary(samples, torch.zeros(1, 6))
    assert found["median"].item() == math.inf
    assert found["quantiles"].flatten().tolist() == sorted(found["quantiles"].flatten().tolist())


def test_any_tokenizer_of_the_zoo_will_do(zoo_data):
    for name in ("characters", str(zoo_data / "tokenizers" / "t5_spiece.model")):
        tokenizer = load_tokenizer(name)
        model = RegressLM.from_scratch(max_input_len=16, tokenizer=tokenizer, **SMALL)
        assert model.model.config.vocab_size == tokenizer.vocab_size
        assert model.sample([ExampleInput("hello")], num_samples=3)[0].shape == (3,)


def test_z_loss_is_averaged_over_tokens(small):
    [batch] = small.batches(words(3), 8)
    plain = small.losses(batch)
    logits = small.model(batch.tokens, batch.numbers, batch.padding_mask)
    small.hparams["z_loss"] = 0.1
    assert torch.allclose(small.losses(batch), plain + 0.1 * logits.logsumexp(-1).square().mean(1), atol=1e-5)


@pytest.mark.gpu
def test_fine_tune_and_sample_on_a_gpu():
    model = RegressLM.from_scratch(max_input_len=64, **SMALL)
    assert model.device.type == "cuda"
    model.fine_tune(words(64), words(15), max_epochs=90, batch_size=16, lr=3e-3, progress=False)
    assert model.device.type == "cuda"
    [samples] = model.sample([ExampleInput("aab")], num_samples=64)
    assert np.median(samples) == 2.0


def test_diverging_fine_tune_is_an_error_and_keeps_finite_weights():
    model = RegressLM.from_scratch(max_input_len=16, dim=16, n_heads=2)
    examples = [Example(x=str(i), y=float(i)) for i in range(8)]
    with pytest.raises(UserError, match="training has diverged"):
        model.fine_tune(examples, max_epochs=30, lr=1e30, progress=False)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(np.isfinite(samples).all() for samples in model.sample([ExampleInput(x="3")], num_samples=4))
