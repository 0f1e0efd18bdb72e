"""Llama: equality with transformers' LlamaForCausalLM, causality, loss, compilation, export, invalid settings."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from zoo.llama import Llama, LlamaConfig, save_checkpoint
from zoo.optim import AdamW

TINY = {"vocab_size": 40, "dim": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 16}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def build(**changes):
    """A small random model, with weights so large that wrong arithmetic changes the logits visibly."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**(TINY | changes))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {"n_kv_heads": 2, "tie_embeddings": False},
        {"rope_scaling": LLAMA3, "rope_theta": 500.0, "max_seq_len": 256, "n_kv_heads": 1},
        {"hidden_dim": 48, "norm_eps": 1e-3},
    ],
    ids=["gqa-untied", "llama3-scaling", "sizes"],
)
def test_logits_equal_transformers(changes, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = build(**changes)
    save_checkpoint(model, tmp_path)
    peer = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(40, (2, model.config.max_seq_len))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], peer(tokens).logits, rtol=0, atol=1e-4)


def test_large_logits_differ_from_transformers_by_rounding_only(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    norm = transformers.models.llama.modeling_llama.LlamaRMSNorm
    sizes = {"dim": 256, "n_layers": 6, "n_heads": 8, "n_kv_heads": 4, "max_seq_len": 64}
    model = build(**sizes)
    with torch.no_grad():
        for matrix in (p for p in model.parameters() if p.ndim > 1):
            matrix.copy_((0.3 * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(1))).half())
    save_checkpoint(model, tmp_path)
    peer = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(40, (2, 64), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = peer(tokens).logits
        torch.testing.assert_close(model(tokens)[0], expected, rtol=0, atol=5e-5 * expected.abs().max().item())
        # transformers computes norms in fp32 in an fp64 model too, the zoo in fp64.
        monkeypatch.setattr(norm, "forward", lambda n, x: F.rms_norm(x, x.shape[-1:], n.weight, n.variance_epsilon))
        expected = peer.double()(tokens).logits
        torch.testing.assert_close(model.double()(tokens)[0], expected, rtol=0, atol=1e-10)
    assert expected.abs().max() > 15


def test_causality_and_batch_invariance_are_exact():
    model, tokens = build(), torch.randint(40, (3, 16))
    later, neighbours = tokens.clone(), tokens.clone()
    later[:, 9:] = torch.randint(40, (3, 7))
    neighbours[1:] = torch.randint(40, (2, 16))
    logits = model(tokens)[0]
    assert torch.equal(model(later)[0][:, :9], logits[:, :9])
    assert torch.equal(model(neighbours)[0][0], logits[0])


def test_logits_are_the_projected_hidden_states():
    model = build(tie_embeddings=False)
    logits, hidden = model(torch.randint(40, (2, 5)))
    assert logits.shape == (2, 5, 40)
    assert torch.equal(logits, F.linear(hidden, model.output.weight))


def test_loss_equals_cross_entropy_with_and_without_gradient_checkpointing():
    tokens, targets = torch.randint(40, (2, 16)), torch.randint(40, (2, 16))
    targets[0, :4] = -100
    model = build(n_kv_heads=2)
    expected = F.cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten())
    reference = torch.autograd.grad(expected, list(model.parameters()))
    for checkpointing in (False, True):
        model.config.gradient_checkpointing = checkpointing
        loss = model.loss(tokens, targets)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), reference)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_left_padding_changes_no_hidden_state(gradient_checkpointing):
    network = build(gradient_checkpointing=gradient_checkpointing)
    tokens = torch.randint(0, 30, (2, 7))
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), tokens], 1)
    hidden = network.hidden(padded, left_padding=torch.tensor([3, 3]))[:, 3:]
    assert torch.allclose(hidden, network.hidden(tokens), atol=1e-5)


def test_initial_loss_is_uniform_and_residual_branches_start_small():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=1000, dim=64, n_layers=8, n_heads=4))
    tokens = torch.randint(1000, (4, 64))
    assert model.loss(tokens, tokens.roll(-1, 1)).item() == pytest.approx(6.908, abs=0.05)
    assert model.layers[0].feed_forward.w2.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert model.layers[0].feed_forward.w13.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_overfits_one_batch():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**TINY, dropout=0.1))
    tokens = torch.randint(40, (4, 16))
    optimizer = AdamW(model.parameters(), lr=1e-2)
    model.eval()
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss < 0.2


def test_flops_count_multiplied_parameters():
    tied, untied = Llama(LlamaConfig(**TINY)), Llama(LlamaConfig(**TINY, tie_embeddings=False))
    size = sum(p.numel() for p in tied.parameters())
    assert tied.flops_per_token(16) == untied.flops_per_token(16) == 6 * size + 12 * 2 * 32 * 16


@pytest.mark.slow
def test_compiles_without_a_graph_break():
    model, tokens = build(), torch.randint(40, (2, 16))
    expected = model.loss(tokens, tokens)
    reference = torch.autograd.grad(expected, list(model.parameters()))
    loss = torch.compile(model.loss, fullgraph=True)(tokens, tokens)
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(gradients, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_heads": 5}, "dim 32 is not a multiple of n_heads 5"),
        ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"dim": 12}, "dim / n_heads = 3 is odd"),
        ({"n_layers": 0}, "n_layers must be at least 1, not 0"),
        ({"n_kv_heads": 0}, "n_kv_heads must be at least 1, or null"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"norm_eps": 0.0}, "must be positive"),
        ({"rope_scaling": {"factor": 2.0, "type": "linear"}}, "rope_scaling lacks low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"factor": 0}}, "factor in rope_scaling must be positive, not 0"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": "1"}}, "low_freq_factor in rope_scaling must be positive"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor of at least high_freq_factor"),
    ],
)
def test_invalid_settings_are_named(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        LlamaConfig(**(TINY | changes))


def test_more_tokens_than_the_context_is_an_error():
    with pytest.raises(ValueError, match="17 tokens are more than the model's context of 16"):
        build()(torch.zeros(1, 17, dtype=torch.long))


def test_import_does_not_load_lightning():
    code = "import sys, zoo.llama, zoo.llama.model, zoo.llama.decoder; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_torch_export_gives_the_same_logits():
    model, tokens = build(), torch.randint(40, (2, 16))
    exported = torch.export.export(model, (tokens,)).module()
    for actual, expected in zip(exported(tokens), model(tokens), strict=True):
        torch.testing.assert_close(actual, expected)
