"""The shared layers against their equations, written out plainly."""

import math

import pytest
import torch
import torch.nn.functional as F

from zoo.layers import Attention, FeedForward, KVCache, RMSNorm, RotaryEmbedding


def test_rms_norm_is_its_equation():
    norm, x = RMSNorm(8, eps=1e-3), torch.randn(2, 3, 8)
    torch.nn.init.normal_(norm.weight)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_of_half_precision_is_rounded_once_before_the_weight():
    norm, x = RMSNorm(64).bfloat16(), torch.randn(4, 64).bfloat16()
    torch.nn.init.normal_(norm.weight)
    wide = x.float()
    rounded = (wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()).bfloat16()
    assert torch.equal(norm(x), rounded * norm.weight)


def test_rotary_turns_adjacent_pairs_as_complex_numbers():
    query, key = torch.randn(2, 5, 4, 6), torch.randn(2, 5, 2, 6)
    rotated = RotaryEmbedding(6, 16, theta=100.0)(query, key, start=3)
    angles = torch.outer(torch.arange(3.0, 8.0), 100.0 ** (-torch.arange(0, 6, 2) / 6))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    for before, after in zip((query, key), rotated, strict=True):
        expected = torch.view_as_real(torch.view_as_complex(before.unflatten(-1, (3, 2))) * turn).flatten(-2)
        torch.testing.assert_close(after, expected)


def test_rotary_takes_a_start_for_each_row():
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
    scores = [
        (rotary(query, key, start + 5)[0] * rotary(query, key, start)[1]).sum() for start in (0, 7, 20)
    ]
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3))


def test_rotary_tables_stay_fp32_and_end_in_a_sentence():
    rotary = RotaryEmbedding(8, 4).half()
    assert rotary.cos.dtype == torch.float32
    assert rotary(*[torch.randn(1, 4, 1, 8).half()] * 2)[0].dtype == torch.float16
    with pytest.raises(ValueError, match="position 4 lies beyond the rotary table of 4"):
        rotary(*[torch.randn(1, 2, 1, 8)] * 2, start=3)
    with pytest.raises(ValueError, match="must be even, not 7"):
        RotaryEmbedding(7, 4)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_attention_is_its_equation_with_shared_kv_heads(n_kv_heads):
    layer, rotary, x = Attention(16, 4, n_kv_heads), RotaryEmbedding(4, 8), torch.randn(2, 6, 16)
    query, key, value = layer.wqkv(x).view(2, 6, -1, 4).split((4, n_kv_heads, n_kv_heads), 2)
    query, key = rotary(query, key)
    key, value = (t.repeat_interleave(4 // n_kv_heads, 2) for t in (key, value))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(4)
    scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf)
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2) @ layer.wo.weight.T
    torch.testing.assert_close(layer(x, rotary), expected)


def test_feed_forward_is_its_equation():
    layer, x = FeedForward(6, 10), torch.randn(3, 6)
    w1, w3 = layer.w13.weight.split(10)
    torch.testing.assert_close(layer(x), (F.silu(x @ w1.T) * (x @ w3.T)) @ layer.w2.weight.T)


def test_a_full_cache_refuses():
    cache = KVCache(1, 1, 1, 4, 2)
    with pytest.raises(ValueError, match="5 positions do not fit a key-value cache of 4"):
        cache.extend(0, 3, *torch.zeros(2, 1, 1, 2, 2))
