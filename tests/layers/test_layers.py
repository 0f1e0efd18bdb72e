"""Shared layers against their equations."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.pretended_cuda import pretend_cuda
from zoo.errors import UserError
from zoo.layers import Attention, FeedForward, KVCache, RMSNorm, RotaryEmbedding
from zoo.layers.attention import causal_mask
from zoo.layers.rotary import rotate, rotate_slices


def test_rms_norm_matches_its_equation():
    norm, x = RMSNorm(8, eps=1e-3), torch.randn(2, 3, 8)
    torch.nn.init.normal_(norm.weight)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_in_bf16_rounds_before_the_weight():
    norm, x = RMSNorm(64).bfloat16(), torch.randn(4, 64).bfloat16()
    torch.nn.init.normal_(norm.weight)
    fp32 = x.float()
    rounded = (fp32 / (fp32.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()).bfloat16()
    assert torch.equal(norm(x), rounded * norm.weight)


def test_rotary_rotates_adjacent_pairs():
    query, key = torch.randn(2, 5, 4, 6), torch.randn(2, 5, 2, 6)
    rotated = RotaryEmbedding(6, 16, theta=100.0)(query, key, start=3)
    angles = torch.outer(torch.arange(3.0, 8.0), 100.0 ** (-torch.arange(0, 6, 2) / 6))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    for before, after in zip((query, key), rotated, strict=True):
        expected = torch.view_as_real(torch.view_as_complex(before.unflatten(-1, (3, 2))) * turn).flatten(-2)
        torch.testing.assert_close(after, expected)


def test_rotary_accepts_a_start_per_row():
    rotary = RotaryEmbedding(6, 16)
    query, key = torch.randn(3, 2, 4, 6), torch.randn(3, 2, 2, 6)
    together = rotary(query, key, torch.tensor([5, 0, -4]))
    for row, start in enumerate((5, 0)):
        alone = rotary(query[row : row + 1], key[row : row + 1], start)
        assert all(torch.equal(t[row], a[0]) for t, a in zip(together, alone, strict=True))
    scalar = rotary(query, key, torch.tensor(5))
    assert all(torch.equal(s, i) for s, i in zip(scalar, rotary(query, key, 5), strict=True))


def test_rotary_scores_depend_on_distance_only():
    rotary = RotaryEmbedding(8, 32)
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    scores = [(rotary(query, key, start + 5)[0] * rotary(query, key, start)[1]).sum() for start in (0, 7, 20)]
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3))


def test_rotary_tables_stay_fp32_and_positions_are_checked():
    rotary = RotaryEmbedding(8, 4).half()
    assert rotary.cos.dtype == torch.float32
    assert rotary(*[torch.randn(1, 4, 1, 8).half()] * 2)[0].dtype == torch.float16
    with pytest.raises(UserError, match="position 4 is beyond the rotary table of 4"):
        rotary(*[torch.randn(1, 2, 1, 8)] * 2, start=3)
    with pytest.raises(UserError, match="must be even, not 7"):
        RotaryEmbedding(7, 4)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_attention_matches_its_equation_with_shared_kv_heads(n_kv_heads):
    layer, rotary, x = Attention(16, 4, n_kv_heads), RotaryEmbedding(4, 8), torch.randn(2, 6, 16)
    query, key, value = layer.wqkv(x).view(2, 6, -1, 4).split((4, n_kv_heads, n_kv_heads), 2)
    query, key = rotary(query, key)
    key, value = (t.repeat_interleave(4 // n_kv_heads, 2) for t in (key, value))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(4)
    scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf)
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2) @ layer.wo.weight.T
    torch.testing.assert_close(layer(x, rotary), expected)


def test_feed_forward_matches_its_equation():
    layer, x = FeedForward(6, 10), torch.randn(3, 6)
    w1, w3 = layer.w13.weight.split(10)
    torch.testing.assert_close(layer(x), (F.silu(x @ w1.T) * (x @ w3.T)) @ layer.w2.weight.T)


def test_full_cache_raises_user_error():
    cache = KVCache(1, 1, 1, 4, 2)
    with pytest.raises(UserError, match="5 positions do not fit a key-value cache of 4"):
        cache.extend(0, 3, *torch.zeros(2, 1, 1, 2, 2))


def test_rotary_in_fp64_keeps_fp64_precision():
    # The angles are fp32; a rotation keeps lengths to the precision of its cosine and sine, and is linear to fp64's.
    rotary, x = RotaryEmbedding(8, 16), torch.randn(1, 9, 2, 8, dtype=torch.float64)
    rotated, _ = rotary(x, x)
    assert rotated.dtype == torch.float64
    shifted, _ = rotary(x + 1e-10, x)
    expected, _ = rotary(torch.full_like(x, 1e-10), x)
    torch.testing.assert_close(shifted - rotated, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_attention_without_causality_sees_all_positions(n_kv_heads):
    layer, x = Attention(16, 4, n_kv_heads, causal=False), torch.randn(2, 6, 16)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])  # without positions only the set matters


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_causal_mask_equals_causal_attention(n_kv_heads):
    layer, x = Attention(16, 4, n_kv_heads), torch.randn(2, 6, 16)
    torch.testing.assert_close(layer(x, mask=causal_mask(0, 6)), layer(x))


def test_left_padding_does_not_change_a_row():
    layer, rotary, x = Attention(16, 4, 2), RotaryEmbedding(4, 16), torch.randn(1, 5, 16)
    padded = torch.cat([torch.randn(1, 3, 16), x], 1)
    left_padding = torch.tensor([3])
    with_padding = layer(padded, rotary, left_padding=left_padding, mask=causal_mask(0, 8, left_padding))
    torch.testing.assert_close(with_padding[:, 3:], layer(x, rotary))
    assert with_padding.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rotation_on_a_gpu_gives_the_same_bits(dtype):
    x = torch.randn(2, 5, 3, 8).to(dtype)
    angles = torch.randn(5, 1, 4)
    expected = rotate_slices(x, angles.cos(), angles.sin())
    with pretend_cuda():
        got = rotate(x.to("cuda"), angles.cos().to("cuda"), angles.sin().to("cuda"))
        assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_complex_and_real_products_rotate_alike(dtype):
    """Also views of larger tensors, and one whose pairs begin at odd addresses, which no complex number does."""
    angles = torch.randn(5, 1, 4)
    cos, sin = angles.cos(), angles.sin()
    wide = torch.randn(2, 5, 3, 20, dtype=dtype)
    for x in (wide[..., :8], wide[..., 7:15], wide[..., ::2][..., :8], wide[..., :8].transpose(0, 2).transpose(0, 2)):
        x = x.detach().requires_grad_()
        results = [f(x, cos, sin) for f in (rotate, rotate_slices)]
        torch.testing.assert_close(*results)
        assert results[0].dtype == dtype
        torch.testing.assert_close(*(torch.autograd.grad(r, x, torch.ones_like(r))[0] for r in results))
