"""MiniRLM's network: independence of padding and batch, pooling, features; scales and embeddings."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zoo.mini_rlm import MiniRLMConfig, MiniRLMNetwork
from zoo.mini_rlm.embeddings import read_embeddings
from zoo.mini_rlm.scales import Scale
from zoo.training.batches import Row, collate

SIZES = {"vocab_size": 20, "dim": 16, "hidden_dim": 8, "n_heads": 2, "outputs": 2}
LENGTHS = (5, 1, 9, 3)
KINDS = [(e, p) for e in ("lstm", "transformer") for p in ("mean", "cls", "last")]


def network(encoder, pooling="mean", **options):
    torch.manual_seed(0)
    return MiniRLMNetwork(MiniRLMConfig(encoder=encoder, pooling=pooling, **{**SIZES, **options})).eval()


def texts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(20, (n,), generator=generator).tolist() for n in LENGTHS]


def batch(rows):
    made = collate([Row(ids, (0.0,), i, "") for i, ids in enumerate(rows)])
    return made.tokens, made.padding_mask


@pytest.mark.parametrize(("encoder", "pooling"), KINDS)
def test_a_row_does_not_depend_on_padding_or_on_its_batch(encoder, pooling):
    model, rows = network(encoder, pooling), texts()
    tokens, padding_mask = batch(rows)
    together = model(tokens, padding_mask)  # (4, 2)
    alone = torch.cat([model(*batch([row])) for row in rows])  # a batch of one is (1, 2): nothing is squeezed away
    assert together.shape == alone.shape == (4, 2)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    wider = nn.functional.pad(tokens, (0, 7), value=3), nn.functional.pad(padding_mask, (0, 7))
    torch.testing.assert_close(model(*wider), alone, rtol=1e-5, atol=1e-6)
    other_padding = tokens.masked_fill(~padding_mask, 19)
    assert torch.equal(model(other_padding, padding_mask), together)


@pytest.mark.parametrize(("encoder", "pooling"), KINDS)
def test_output_depends_on_every_token_and_its_position(encoder, pooling):
    model, [row, *_] = network(encoder, pooling), texts()
    answer = model(torch.tensor([row]))
    for i in range(len(row)):
        other = [*row[:i], (row[i] + 1) % 20, *row[i + 1 :]]
        assert not torch.allclose(model(torch.tensor([other])), answer, atol=1e-6), i
    assert not torch.allclose(model(torch.tensor([row[::-1]])), answer, atol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_last_pooling_takes_the_final_state_of_each_lstm_direction(bidirectional):
    model, rows = network("lstm", "last", bidirectional=bidirectional), texts()
    for row, got in zip(rows, model(*batch(rows)), strict=True):
        _, (hidden, _) = model.encoder.lstm(model.embedding(torch.tensor([row])))  # (2 layers x directions, 1, 8)
        top = hidden[-2:] if bidirectional else hidden[-1:]
        torch.testing.assert_close(model.head(torch.cat(list(top), dim=-1)), got[None], rtol=1e-5, atol=1e-6)


def test_a_text_is_never_truncated():
    """The original script truncated rows to 50 characters, before the dropout rate at their end."""
    model = network("transformer", max_seq_len=8)
    model(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="position 8 is beyond"):
        model(torch.zeros(1, 9, dtype=torch.long))
    long = torch.zeros(1, 300, dtype=torch.long)
    changed = long.clone()
    changed[0, -1] = 1
    for encoder in ("lstm", "transformer"):
        assert not torch.equal(network(encoder)(long), network(encoder)(changed))


def test_mlp_reads_features_only():
    model, features = network("mlp", n_features=3), torch.randn(4, 3)
    tokens, padding_mask = batch(texts())
    assert model(tokens, padding_mask, features).shape == (4, 2)
    assert torch.equal(model(tokens + 1, padding_mask, features), model(tokens, padding_mask, features))
    torch.testing.assert_close(model(tokens[:1], None, features[:1]), model(tokens, padding_mask, features)[:1])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"encoder": "gru"}, "encoder must be one of lstm, transformer, mlp, not 'gru'"),
        ({"pooling": "max"}, "pooling must be one of mean, cls, last, not 'max'"),
        ({"n_layers": 0}, "n_layers must be at least 1, not 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"encoder": "transformer", "dim": 20, "n_heads": 4}, "dim 20 is not a multiple of 2 n_heads = 8"),
        ({"pooling": "cls", "bidirectional": False}, "a forward LSTM has read nothing: set bidirectional"),
        ({"encoder": "mlp"}, "set n_features to how many there are"),
    ],
)
def test_contradictory_settings_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        MiniRLMConfig(**wrong)


@pytest.mark.parametrize(("pooling", "positions"), [("mean", 7), ("cls", 8)])  # the cls vector is one more position
def test_flops_are_six_n_per_token_plus_attention_and_the_readout_once(pooling, positions):
    model = network("transformer", pooling=pooling)
    encoder = sum(p.numel() for p in model.encoder.parameters())  # the embedding is looked up
    readout = sum(p.numel() for p in model.head.parameters())
    assert model.flops(7) == 6 * encoder * positions + 12 * 2 * 16 * positions**2 + 6 * readout
    model = network("mlp", n_features=3)
    assert model.flops(7) == 6 * sum(p.numel() for p in model.parameters())


# ---- scales


@pytest.mark.parametrize("kind", ["asinh", "standard", "raw"])
def test_scale_inverse_restores_values(kind):
    values = np.random.default_rng(0).standard_cauchy((500, 2)) * [1.0, 1e4]
    scale = Scale(2, kind)
    scale.fit(values)
    x = torch.from_numpy(values)
    torch.testing.assert_close(scale.inverse(scale(x)), x, rtol=1e-5, atol=1e-3)
    assert scale(x).dtype == torch.float32
    assert scale.inverse(scale(x)).dtype == torch.float64


@pytest.mark.parametrize("kind", ["asinh", "standard"])
def test_scale_of_very_large_and_very_small_columns(kind):
    values = np.random.default_rng(0).normal(7, 3, (400, 1))
    units = np.array([2.0**1000, 1.0, 2.0**-1000])
    exact, scale = Scale.fitted(values, kind), Scale.fitted(values * units, kind)
    for name in ("centre", "spread"):
        np.testing.assert_allclose(getattr(scale, name).numpy() / units, getattr(exact, name).expand(3), rtol=1e-13)


@pytest.mark.parametrize("kind", ["asinh", "standard"])
def test_scale_of_a_constant_column_has_the_spread_1(kind):
    values = np.full((10, 3), [5.0, 0.1, 2.0**1000 / 3])  # of the last two the computed mean differs by rounding
    scale = Scale.fitted(values, kind)
    assert torch.equal(scale.spread, torch.ones(3, dtype=torch.float64))
    assert torch.equal(scale(torch.from_numpy(values[0])), torch.zeros(3))


def test_scale_fits_its_column():
    values = np.random.default_rng(0).normal(7, 3, (4000, 1))
    for kind, width in (("standard", 1.0), ("asinh", 0.36)):
        scale = Scale(1, kind)
        scale.fit(values)
        z = scale(torch.from_numpy(values))
        assert abs(z.mean()) < 0.05
        assert z.std() == pytest.approx(width, abs=0.02)
    with pytest.raises(ValueError, match="a scale is one of asinh, standard, raw, not 'log'"):
        Scale(1, "log")


def test_scale_is_part_of_the_state_dict():
    scale, other = Scale(1, "asinh"), Scale(1, "asinh")
    scale.fit(np.arange(100.0)[:, None])
    other.load_state_dict(scale.state_dict())
    assert other.inverse(torch.zeros(1, 1)).item() == 49.5


# ---- embeddings


def test_embeddings_are_read_from_pt_and_safetensors(tmp_path):
    matrix = torch.randn(20, 16)
    torch.save(matrix, tmp_path / "alone.pt")
    torch.save({"bias": torch.zeros(3), "weight": matrix}, tmp_path / "dict.pt")
    save_file({"embedding": matrix}, tmp_path / "e.safetensors")
    for name in ("alone.pt", "dict.pt", "e.safetensors"):
        assert torch.equal(read_embeddings(tmp_path / name, (20, 16)), matrix)


def test_embeddings_that_do_not_fit_are_refused(tmp_path):
    torch.save(torch.zeros(20, 8), tmp_path / "narrow.pt")
    with pytest.raises(ValueError, match=r"one matrix \(20, 16\), .* holds \(20, 8\): set dim"):
        read_embeddings(tmp_path / "narrow.pt", (20, 16))
    torch.save(torch.zeros(20, 16).index_fill(0, torch.tensor([3]), torch.nan), tmp_path / "nan.pt")
    with pytest.raises(ValueError, match=r"nan\.pt: the tensor of shape \(20, 16\) is not finite"):
        read_embeddings(tmp_path / "nan.pt", (20, 16))
    torch.save(nn.Embedding(20, 16), tmp_path / "pickle.pt")  # a whole object would have to run code
    with pytest.raises(ValueError, match=r"pickle\.pt cannot be read as embeddings"):
        read_embeddings(tmp_path / "pickle.pt", (20, 16))
    with pytest.raises(FileNotFoundError, match=r"there are no embeddings at .*nowhere\.pt"):
        read_embeddings(tmp_path / "nowhere.pt", (20, 16))
