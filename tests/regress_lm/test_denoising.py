"""Span denoising: corruption, training steps, restored state, wrong inputs."""

from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from zoo.errors import UserError
from zoo.optim import OptimizerConfig
from zoo.regress_lm import Example, RegressLM
from zoo.regress_lm.denoising import Denoising, DenoisingConfig, check_state
from zoo.regress_lm.span_corruption import Corrupted, corrupt, count_spans

SMALL = {"dim": 16, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
WORDS = ["good", "fine", "nice", "great", "happy", "bad", "awful", "poor", "sad", "dull"]


def restore(corrupted: Corrupted, vocab_size: int) -> list[int]:
    """The text's tokens: `corrupt` inverted."""
    spans: dict[int, list[int]] = {}
    for token in corrupted.targets:
        if token >= vocab_size:
            spans[token] = span = []
        else:
            span.append(token)
    return [token for part in corrupted.inputs for token in spans.get(part, [part])]


def sentences(n: int, seed: int = 0, length: int = 7) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, length)) for _ in range(n)]


# ---- corruption


def test_the_example_of_the_paper_is_restored():
    """Figure 2: Thank you <0> me to your party <1> week; <0> for inviting <1> last."""
    corrupted = Corrupted([0, 1, 50, 4, 5, 6, 7, 51, 9], [50, 2, 3, 51, 8])
    assert restore(corrupted, 50) == list(range(10))


@pytest.mark.parametrize(
    ("length", "share", "mean_span", "expected"),
    [(100, 0.15, 3, (15, 5)), (20, 0.15, 3, (3, 1)), (2, 0.15, 3, (1, 1)), (2, 0.99, 1, (1, 1)), (10, 0.9, 1, (9, 2))],
)
def test_numbers_of_corrupted_tokens_and_spans(length, share, mean_span, expected):
    assert count_spans(length, share, mean_span) == expected


def test_corruption_is_invertible_and_has_the_requested_share_and_span_length():
    generator = torch.Generator().manual_seed(0)
    for length in range(2, 40):
        for share in (0.05, 0.15, 0.5, 0.9):
            for mean_span in (1.0, 3.0, 8.0):
                text = torch.randint(50, (length,), generator=generator).tolist()
                inputs, targets = corrupt(text, 50, generator, share, mean_span)
                assert restore(Corrupted(inputs, targets), 50) == text
                n_corrupted, n_spans = count_spans(length, share, mean_span)
                sentinels = [50 + i for i in range(n_spans)]
                assert [token for token in inputs if token >= 50] == sentinels
                assert [token for token in targets if token >= 50] == sentinels
                assert (len(inputs), len(targets)) == (length - n_corrupted + n_spans, n_corrupted + n_spans)
                # Spans are neither empty nor next to each other.
                for ids in (inputs, [*targets, 50]):
                    assert not any(a >= 50 and b >= 50 for a, b in pairwise(ids))


def test_every_token_is_corrupted_with_about_the_same_probability():
    generator = torch.Generator().manual_seed(0)
    counts = np.zeros(40)
    for _ in range(4000):
        for token in corrupt(range(40), 40, generator).targets:
            if token < 40:
                counts[token] += 1
    shares = counts / 4000
    assert shares.mean() == pytest.approx(6 / 40)
    assert shares[3:-3].std() < 0.01
    assert shares.min() > 0.04  # the ends are in fewer spans


# ---- training steps


def denoising(seed: int = 0, **settings) -> Denoising:
    model = RegressLM.from_scratch(**SMALL)
    texts = [list(text.encode()) for text in sentences(30)]
    config = DenoisingConfig(**{"steps": 8, "batch_size": 7, "seed": seed} | settings)
    return Denoising(model.model.encoder, texts, OptimizerConfig(lr=3e-3), config)


def test_the_loss_is_that_of_the_network_applied_to_each_text():
    run = denoising()
    losses, n = 0.0, 0
    for text in run.batch(0):
        ids = torch.tensor([text.targets]) + 1
        logits = run.network(torch.tensor([text.inputs]), ids)
        losses += nn.functional.cross_entropy(logits[0], ids[0], reduction="sum").item()
        n += len(text.targets)
    assert run.train_step() == pytest.approx(losses / n, rel=1e-5)


def test_two_processes_have_the_gradient_of_one():
    alone = denoising()
    loss, gradients = alone.train_step(), [p.grad.clone() for p in alone.network.parameters()]
    summed: list[torch.Tensor] = []
    for rank in range(2):
        seen = []
        denoising().train_step(rank, 2, lambda tensor, seen=seen: seen.append(tensor.clone()) or tensor)
        summed = [a + b for a, b in zip(summed, seen, strict=True)] if summed else seen
    assert summed[0].item() == pytest.approx(loss, rel=1e-5)
    norm = nn.utils.get_total_norm(summed[1:])
    clipped = [gradient * min(1.0, 1.0 / (norm + 1e-6)) for gradient in summed[1:]]
    for one, both in zip(gradients, clipped, strict=True):
        torch.testing.assert_close(one, both, rtol=1e-4, atol=1e-6)


def test_every_epoch_reads_all_texts_in_another_order():
    run = denoising(batch_size=10)
    epochs = [
        [tuple(restore(text, 256)) for step in steps for text in run.batch(step)] for steps in ([0, 1, 2], [3, 4, 5])
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(tuple(text.encode()) for text in sentences(30))
    assert epochs[0] != epochs[1]


def test_a_restored_run_is_bitwise_the_same():
    run, other = denoising(), denoising()
    for _ in range(4):
        run.train_step()
    state = deepcopy(run.state_dict())
    other.network.encoder.encoder.load_state_dict(run.network.encoder.encoder.state_dict())
    other.load_state_dict(state)
    for _ in range(4):
        assert run.train_step() == other.train_step()
    assert all(torch.equal(a, b) for a, b in zip(run.network.parameters(), other.network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": "0"}, "the texts to pretrain on have changed"),
        ({"batch_size": 6}, "a step of pretraining has 7 texts here and 6 in the checkpoint"),
        ({"head": {}}, "pretraining does not fit this model"),
        ({"optimizer": {}}, "pretraining does not fit this model"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "pretraining does not fit this model"),
        ({"step": -1}, "pretraining is damaged"),
        ({"step": "1"}, "pretraining is damaged"),
        ({"head": {"a": 1}}, "has values that are not finite"),
        ({"other": 1}, "pretraining is damaged"),
    ],
)
def test_a_state_that_cannot_continue_is_refused(change, message):
    run = denoising()
    with pytest.raises(UserError, match=message):
        run.load_state_dict(check_state(run.state_dict() | change))


def test_pretrain_encoder_trains_the_encoder_only():
    model = RegressLM.from_scratch(**SMALL, lr=1e-2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    losses = model.pretrain_encoder(sentences(60), steps=60, batch_size=16, progress=False)
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(losses) == 60
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert not model.training
    assert changed == {name for name in before if name.startswith("model.encoder.")}
    assert model.pretrain_encoder((text for text in sentences(9)), 1, progress=False) != losses[:1]
    model.fine_tune([Example(text, float(i)) for i, text in enumerate(sentences(8))], max_epochs=1, progress=False)


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "there are no texts of at least 2 tokens"),
        (["", "a"], {}, "there are no texts of at least 2 tokens"),
        ("good", {}, "texts must be a list of ExampleInput, not a str"),
        ([3], {}, r"texts\[0\] must be an ExampleInput, not a int"),
        (["good"], {"steps": 0}, "steps must be at least 1, not 0"),
        (["good"], {"batch_size": 0}, "batch_size must be at least 1"),
        (["good"], {"corrupted_share": 1.0}, "corrupted_share must be between 0 and 1"),
        (["good"], {"mean_span": 0.5}, "mean_span must be at least 1"),
        (["good"], {"seed": 0.5}, "seed must be a whole number"),
    ],
)
def test_wrong_arguments_are_named(texts, settings, message):
    with pytest.raises(UserError, match=message):
        RegressLM.from_scratch(**SMALL).pretrain_encoder(texts, **{"steps": 1, "progress": False} | settings)


def test_long_texts_are_divided():
    model = RegressLM.from_scratch(max_input_len=10, **SMALL)
    run = Denoising(model.model.encoder, [list(range(25)), [1]], OptimizerConfig(), DenoisingConfig(1))
    assert run.n_texts == 3
    assert sorted(len(restore(text, 256)) for text in run.batch(0)) == [5, 10, 10]
