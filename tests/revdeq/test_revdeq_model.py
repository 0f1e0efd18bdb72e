"""RevDEQ: gradients, causality, batch invariance, cached decoding, convergence."""

import subprocess
import sys

import pytest
import torch

from zoo.errors import UserError
from zoo.generation.decoders import left_pad
from zoo.layers.linear_nll import IGNORED
from zoo.revdeq import RevDEQ, RevDEQConfig, RevDEQLM
from zoo.revdeq.decoder import Decoder

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "mlp_layers": 1}
KINDS = [
    {},
    {"block": "post_norm", "positions": "rotary", "num_layers": 2},
    {"tie_embeddings": True, "mlp_layers": 2, "positions": "rotary"},
]


def build(**options):
    torch.manual_seed(0)
    return RevDEQ(RevDEQConfig(**{**SIZES, "max_position_embeddings": 24, **options}))


def tokens(*shape):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(3))


def gradients(**options):
    model, text = build(**options).double(), tokens(3, 13)
    torch.manual_seed(1)  # of the dropout masks
    loss = model.loss(text[:, :-1], text[:, 1:])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


# An inverted step of beta 1/2 amplifies rounding by up to (2 + L)^2, L the Lipschitz constant of f at its states. For
# L = 0 that is 4^N eps: 3e-14 for N = 4, 7e-12 for N = 8. The bounds leave a factor of 35 and 14 for L. They need a
# continuous f: a cast to fp32 inside it (as rotary embedding once had) makes jumps of 6e-8 where a value crosses a
# rounding boundary, and which values do depends on the CPU's kernels.
@pytest.mark.parametrize("kind", [*KINDS, {"dropout": 0.3}])
@pytest.mark.parametrize(("steps", "bound"), [(4, 1e-12), (8, 1e-10)])
def test_reversible_gradients_equal_unrolled(kind, steps, bound):
    kind = {**kind, "num_fixed_point_iterations": steps}
    expected, got = (gradients(**kind, backward=backward) for backward in ("unroll", "reversible"))
    assert (got - expected).norm() / expected.norm() <= bound


@pytest.mark.parametrize("steps", [4, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reversible_gradients_equal_unrolled_under_autocast(dtype, steps):
    got = {}
    for backward in ("unroll", "reversible"):
        model, text = build(backward=backward, dropout=0.2, num_fixed_point_iterations=steps), tokens(3, 13)
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype):
            loss = model.loss(text[:, :-1], text[:, 1:])
        got[backward] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert (got["reversible"] - got["unroll"]).norm() / got["unroll"].norm() <= 1e-6


def test_dropout_has_one_mask_per_pass_and_none_in_evaluation():
    model = build(dropout=0.5)
    text = tokens(2, 8)
    torch.manual_seed(0)
    first = model(text)[0]
    assert not torch.equal(first, model(text)[0])
    torch.manual_seed(0)
    assert torch.equal(first, model(text)[0])
    model.eval()
    assert torch.equal(model(text)[0], model(text)[0])


@pytest.mark.parametrize("kind", [*KINDS, {"backward": "phantom"}, {"backward": "implicit", "solver": "anderson"}])
def test_training_and_evaluation_give_the_same_logits(kind):
    model, text = build(**kind), tokens(3, 9)
    trained = model.train()(text)[0]
    with torch.no_grad():
        evaluated = model.eval()(text)[0]
    torch.testing.assert_close(evaluated, trained, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_is_causal(kind):
    model, text = build(**kind).eval(), tokens(2, 12)
    other = text.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 50
    assert torch.equal(model(text)[0][:, :7], model(other)[0][:, :7])
    assert not torch.equal(model(text)[0][:, 7:], model(other)[0][:, 7:])


@torch.no_grad()
def test_tolerance_leaks_the_future():
    """The reason why a fixed number of steps is the default."""
    model, text = build(block="post_norm").eval(), tokens(1, 12).repeat(9, 1)
    text[:, 7:] = (text[:, 7:] + torch.arange(9)[:, None]) % 50  # nine continuations of the same beginning
    tol = model.solve(text).residual.mean().item()
    z = model.solve(text, tol=tol, max_steps=30).z[:, :7]
    assert (z - z[0]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_the_batch(kind):
    model, text = build(**kind).eval(), tokens(4, 11)
    together = model(text)[0]
    for row in range(4):
        torch.testing.assert_close(model(text[row : row + 1])[0][0], together[row], rtol=0, atol=1e-5)


@torch.no_grad()
def test_post_norm_block_converges_and_paper_block_does_not():
    text, residuals = tokens(4, 16), {}
    for block in ("paper", "post_norm"):
        model = build(block=block).eval()
        residuals[block] = [model.solve(text, max_steps=n).residual.mean().item() for n in (2, 8, 32)]
    first, second, third = residuals["post_norm"]
    assert third < second / 10 < first / 100
    assert residuals["paper"][2] > 0.02


def test_defaults_have_94_million_parameters():
    with torch.device("meta"):
        model = RevDEQ(RevDEQConfig())
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 94


@pytest.mark.parametrize("solver", ["plain", "anderson", "broyden"])
def test_one_iteration_of_every_solver_reads_the_tokens(solver):
    options = {"num_fixed_point_iterations": 1, "backward": "implicit", "solver": solver}
    model, text = build(**options).eval(), tokens(2, 5)
    logits = model(text)[0]
    assert logits.std(1).min() > 1e-3  # over positions
    assert torch.equal(model.generate(text, 4, temperature=0), uncached(model, text, 4))


def test_flops_count_every_evaluation_of_the_cell():
    model = build(num_fixed_point_iterations=3)
    cell = sum(p.numel() for p in model.cell.parameters())
    assert model.flops_per_token(16) == 6 * (6 * cell + 12 * 32 * 16) + 6 * 50 * 32


# ---- generation


def uncached(model, text, n):
    """Greedy continuation without a cache; beyond the context from its last half."""
    context, window = model.config.max_seq_len, text
    with torch.no_grad():
        for _ in range(n):
            if window.shape[1] > context:
                window = window[:, -(context // 2) :]
            token = model(window)[0][:, -1].argmax(-1)[:, None]
            window, text = torch.cat([window, token], 1), torch.cat([text, token], 1)
    return text


@pytest.mark.parametrize(
    "kind",
    [
        *KINDS,
        {"backward": "implicit", "solver": "plain"},
        {"backward": "implicit", "solver": "broyden"},
        {"fixed_point_tol": 0.3, "block": "post_norm"},
    ],
)
def test_cached_tokens_equal_uncached_also_beyond_the_context(kind):
    model, text = build(**kind).eval(), tokens(2, 5)
    assert torch.equal(model.generate(text, 40, temperature=0), uncached(model, text, 40))


@pytest.mark.parametrize("kind", KINDS)
def test_cached_logits_equal_uncached(kind):
    model, text = build(**kind).double().eval(), tokens(2, 12)
    decoder = Decoder(model, 2, 12)
    with torch.inference_mode():
        logits = [decoder.prefill(text[:, :4]), *(decoder.step(text[:, i]) for i in range(4, 12))]
        torch.testing.assert_close(torch.stack(logits, 1).double(), model(text)[0][:, 3:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_prompts_continue_as_each_alone(kind):
    model = build(**kind).eval()
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13]]
    text, lengths = left_pad(prompts)
    together = model.generate(text, 60, temperature=0, lengths=lengths)
    assert together.shape == (3, 67)
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), 60, temperature=0)[0, len(prompt) :]
        same = 60 if row == 0 else 24 - 7 + 1  # until the longest row reaches the end of the context
        assert torch.equal(together[row, 7 : 7 + same], alone[:same])


def test_warm_start_needs_one_cache_slot_and_gives_the_same_logits():
    kind = {"block": "post_norm", "num_fixed_point_iterations": 60}
    cold, warm = build(**kind).eval(), build(**kind, warm_start=True, fixed_point_tol=1e-6).eval()
    text = tokens(2, 14)
    decoder = Decoder(warm, 2, 14)
    assert len(decoder.cache.layers) == 1
    with torch.inference_mode():
        logits = [decoder.prefill(text[:, :4]), *(decoder.step(text[:, i]) for i in range(4, 14))]
        torch.testing.assert_close(torch.stack(logits, 1), cold(text)[0][:, 3:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", ["reversible", "plain", "anderson", "broyden"])
@pytest.mark.parametrize("options", [{}, {"warm_start": True}, {"positions": "rotary"}], ids=str)
@torch.inference_mode()
def test_padding_and_other_rows_do_not_change_a_row_that_ends_by_tolerance(options, solver):
    backward = "reversible" if solver == "reversible" else "implicit"
    kind = {"block": "post_norm", "fixed_point_tol": 1e-2, "num_fixed_point_iterations": 30, "backward": backward}
    model = build(**kind, solver=solver, **options).eval()
    lengths = torch.tensor([3, 8, 1])
    text = tokens(3, 12)
    decoder = Decoder(model, 3, 12)
    together = [decoder.prefill(text[:, :8], 8 - lengths), *map(decoder.step, text[:, 8:].T)]
    for row, length in enumerate(lengths.tolist()):
        decoder, own = Decoder(model, 1, 12), text[row : row + 1]
        alone = [decoder.prefill(own[:, 8 - length : 8]), *map(decoder.step, own[:, 8:].T)]
        torch.testing.assert_close(torch.stack(together)[:, row], torch.cat(alone), rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", ["reversible", "plain", "anderson", "broyden"])
@pytest.mark.parametrize("options", [{}, {"fixed_point_tol": 0.1}, {"fixed_point_tol": 0.05, "dropout": 0.2}], ids=str)
def test_padding_after_the_scored_tokens_does_not_change_a_score(options, solver):
    backward = "reversible" if solver == "reversible" else "implicit"
    kind = {"block": "post_norm", "num_fixed_point_iterations": 12, "backward": backward, "solver": solver}
    module = RevDEQLM(**SIZES, **kind, **options).eval()
    text = tokens(3, 13)
    inputs, targets = text[:, :-1].clone(), text[:, 1:].clone()
    lengths = [5, 12, 1]
    for row, length in enumerate(lengths):
        inputs[row, length:], targets[row, length:] = 0, IGNORED
    targets[:2, :2] = IGNORED  # scored by another window: part of the iteration
    scores = module.predict_step((inputs, targets), 0)
    for row, length in enumerate(lengths):
        own = inputs[row : row + 1, :length], targets[row : row + 1, :length]
        [alone] = module.predict_step(own, 0)
        assert scores[row]["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        padded = inputs[row : row + 1], targets[row : row + 1]
        losses, gradients = [], []
        for pair in (own, padded):
            loss = module.model.loss(*pair)
            losses.append(loss.item())
            gradients.append(torch.autograd.grad(loss, module.model.output_weight)[0])
        assert losses == pytest.approx([alone["loss"]] * 2, abs=1e-5)
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_bf16_decoding_is_close_and_keeps_the_training_mode():
    model, text = build().train(), tokens(2, 9)
    low, high = (Decoder(model, 2, 9, precision) for precision in ("bf16", "fp32"))
    logits = [torch.stack([decoder.prefill(text[:, :8]), decoder.step(text[:, 8])]) for decoder in (low, high)]
    assert 0 < (logits[0] - logits[1]).norm() / logits[1].norm() < 0.03
    assert all(module.training for module in model.modules())


def test_decoding_is_not_compiled():
    model, calls = build(), []
    model.cell.compile(backend=lambda graph, inputs: calls.append(graph) or graph.forward)
    model.generate(tokens(1, 3), 4)
    assert not calls
    model(tokens(1, 3))
    assert calls


# ---- errors


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hidden_size": 30}, "hidden_size 30 is not a multiple of num_heads 4"),
        ({"hidden_size": 12, "positions": "rotary"}, "hidden_size / num_heads must be even, not 3"),
        ({"num_fixed_point_iterations": 0}, "num_fixed_point_iterations must be at least 1, not 0"),
        ({"beta": 1.0}, "beta must be in"),
        ({"fixed_point_tol": 1e-3, "backward": "unroll"}, "a tolerance excludes backward=unroll"),
        ({"warm_start": True}, "warm_start needs a fixed_point_tol"),
        ({"warm_start": True, "fixed_point_tol": 1e-3}, "warm_start needs a block whose iteration converges"),
        ({"keep_every": 0}, "keep_every must be at least 1, or null, not 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"block": "pre"}, "block must be one of paper, post_norm, not 'pre'"),
    ],
)
def test_wrong_settings_raise_user_error(options, sentence):
    with pytest.raises(UserError, match=sentence):
        RevDEQConfig(**{**SIZES, **options})


def test_text_longer_than_the_context_raises_user_error():
    with pytest.raises(UserError, match="25 tokens are more than the model's context of 24"):
        build()(tokens(1, 25))


def test_unknown_precision_raises_user_error():
    with pytest.raises(UserError, match="precision must be one of fp32, bf16, not 'int4'"):
        Decoder(build(), 1, 4, "int4")


def test_network_imports_without_lightning():
    program = "import sys; import zoo.revdeq.model, zoo.revdeq.decoder; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
