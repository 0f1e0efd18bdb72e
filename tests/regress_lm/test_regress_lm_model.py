"""The encoder-decoder: parity with upstream, padding, causality, gradients, memory, compilation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.regress_lm.make_golden import draw
from zoo.errors import UserError
from zoo.regress_lm import RegressLM
from zoo.regress_lm.model import EncoderDecoder, RegressLMConfig
from zoo.regress_lm.upstream_weights import load_upstream

# Outputs of upstream's model with the weights of `draw`, written by make_golden.py.
GOLDEN = json.loads((Path(__file__).parent / "golden_model.json").read_text())
PREFIX = "encoder_decoder."


def upstream_state(golden):
    """A state dict with upstream's names and shapes, position tables included, and the golden weights."""
    state = {}
    for name, shape in golden["shapes"].items():
        state[name] = torch.from_numpy(draw(name.removeprefix(PREFIX), tuple(shape)))
    return state


def build(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "number_vocab_size": 13, "number_len": 7, "dim": 32, "max_input_len": 40}
    return EncoderDecoder(RegressLMConfig(**sizes | changes)).eval()


@pytest.fixture
def texts():
    """Tokens (4, 12) of rows with lengths 12, 5, 1 and 9; their padding mask; and number tokens (4, 7)."""
    generator = torch.Generator().manual_seed(1)
    padding_mask = torch.arange(12) < torch.tensor([12, 5, 1, 9])[:, None]
    tokens = torch.randint(30, (4, 12), generator=generator) * padding_mask
    return tokens, padding_mask, torch.randint(1, 13, (4, 7), generator=generator)


def test_gradient_checkpointing_changes_neither_logits_nor_gradients(texts):
    """Recomputed layers draw the same dropout, also in the first layer, which projects the vocabulary."""
    tokens, padding_mask, numbers = texts
    results = []
    for recomputes in (False, True):
        model = build(gradient_checkpointing=recomputes, residual_dropout=0.2).train()
        torch.manual_seed(3)
        logits = model(tokens, numbers, padding_mask)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("golden", GOLDEN, ids=["ieee", "two-objectives", "two-encoder-heads"])
def test_golden_logits_and_losses_match_upstream(golden):
    model = load_upstream(upstream_state(golden), max_input_len=24).eval()
    tokens, numbers = torch.tensor(golden["tokens"]), torch.tensor(golden["numbers"])
    assert model.config.number_len == numbers.shape[1]
    with torch.no_grad():
        logits = model(tokens, numbers, tokens != 0)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(logits, torch.tensor(golden["logits"]), **close)
    counts = numbers != 0  # both losses exclude separators
    log_probs = -F.cross_entropy(logits.mT, numbers, reduction="none", ignore_index=0)
    torch.testing.assert_close(log_probs.sum(1), torch.tensor(golden["log_probs"]), rtol=0, atol=2e-5)
    torch.testing.assert_close(-log_probs.sum(1) / counts.sum(1), torch.tensor(golden["losses"]), **close)
    z_loss = 0.01 * (logits.logsumexp(-1).square() * counts).sum(1)  # upstream adds a sum to an average
    torch.testing.assert_close(z_loss, torch.tensor(golden["z_losses"]), **close)


def test_upstream_weights_load_with_or_without_prefix_and_from_files(tmp_path):
    state = upstream_state(GOLDEN[0])
    bare = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    torch.save({"model_state": state, "global_step": 3}, tmp_path / "trainer.pt")
    torch.save(bare, tmp_path / "bare.pt")
    expected = load_upstream(state, max_input_len=24).state_dict()
    for source in (bare, tmp_path / "trainer.pt", str(tmp_path / "bare.pt")):
        for name, tensor in load_upstream(source, max_input_len=24).state_dict().items():
            assert torch.equal(tensor, expected[name])
    assert expected.keys() == {name for name in bare if not name.endswith(("pe", "inv_freq"))}


def test_the_number_of_encoder_heads_is_that_of_the_weights():
    """No other shape depends on it: with 8 heads these weights would load and give other numbers."""
    state = upstream_state(GOLDEN[2])
    model = load_upstream(state, max_input_len=24)
    assert (model.config.n_heads, model.config.encoder_heads) == (8, 2)
    name = f"{PREFIX}encoder.rotary_pos_emb.inv_freq"
    for rotary in (torch.ones(3), torch.ones(32), torch.ones(0), torch.ones(2, 4), torch.tensor(1.0)):
        with pytest.raises(UserError, match="does not divide the width 32 into heads"):
            load_upstream(state | {name: rotary})
    with pytest.raises(UserError, match="the encoder has 2 heads, not n_encoder_heads 4"):
        load_upstream(state, n_encoder_heads=4)
    del state[name]  # then the number is a setting
    assert load_upstream(state, n_heads=4).config.encoder_heads == 4


def test_weights_with_other_heads_than_the_models_are_refused(tmp_path):
    sizes = {"max_input_len": 24, "vocab_size": 99, "dim": 32}
    torch.save(upstream_state(GOLDEN[2]), tmp_path / "upstream.pt")
    RegressLM.from_scratch(24, dim=32, n_heads=4).save(tmp_path / "zoo.ckpt")
    for file, option in (
        ("upstream.pt", "8 heads in the decoder and 2 in the encoder.*set --model.n_heads 8 and --model.n_encoder_h"),
        ("zoo.ckpt", "set --model.n_heads 4$"),
    ):
        with pytest.raises(UserError, match=option):
            RegressLM(weights=str(tmp_path / file), **sizes)
    loaded = RegressLM(weights=str(tmp_path / "upstream.pt"), n_encoder_heads=2, **sizes).eval()
    golden, tokens = GOLDEN[2], torch.tensor(GOLDEN[2]["tokens"])
    with torch.no_grad():
        logits = loaded.model(tokens, torch.tensor(golden["numbers"]), tokens != 0)
    torch.testing.assert_close(logits, torch.tensor(golden["logits"]), rtol=0, atol=1e-5)
    RegressLM.from_scratch(24, dim=32, n_encoder_heads=2).save(tmp_path / "again.ckpt")
    assert RegressLM.load(tmp_path / "again.ckpt").model.config.encoder_heads == 2


def test_weights_of_another_model_are_refused_in_one_sentence(tmp_path):
    state = upstream_state(GOLDEN[0])
    lacking = {name: tensor for name, tensor in state.items() if not name.endswith("encoder.norm.weight")}
    torch.save({"weights": state, "code": Path}, tmp_path / "code.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    for source, word in (
        (lacking, "encoder.norm.weight"),
        (state | {f"{PREFIX}generator.weight": torch.tensor([[torch.nan]])}, r"generator\.weight is not finite"),
        ({"lm_head.weight": torch.zeros(2, 2)}, "not the weights of a RegressLM"),
        (tmp_path / "code.pt", "pickled Python objects"),
        (tmp_path / "cut.pt", "damaged"),
    ):
        with pytest.raises(ValueError, match=word) as caught:
            load_upstream(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_upstream(tmp_path / "none.pt")


def test_a_row_does_not_depend_on_its_padding(texts):
    tokens, padding_mask, numbers = texts
    model = build()
    wide = F.pad(tokens, (0, 20), value=7)
    with torch.no_grad():
        together = model(tokens, numbers, padding_mask)
        widened = model(wide, numbers, F.pad(padding_mask, (0, 20)))
        torch.testing.assert_close(widened, together, rtol=0, atol=1e-5)
        for row, length in enumerate(padding_mask.sum(1)):
            alone = model(tokens[row : row + 1, :length], numbers[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_padding_has_zero_gradient_and_an_empty_text_no_nan(texts):
    tokens, padding_mask, numbers = texts
    padding_mask[2] = False
    model = build()
    tokens = tokens.masked_fill(~padding_mask, 29)  # an id in no text
    tokens[padding_mask] = tokens[padding_mask] % 29
    logits = model(tokens, numbers, padding_mask)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    gradient = model.encoder.embedding.weight.grad
    assert not gradient[29].any()
    assert gradient.isfinite().all()


def test_decoder_is_causal_and_depends_on_the_text(texts):
    tokens, padding_mask, numbers = texts
    model = build()
    later, other = numbers.clone(), tokens.clone()
    later[:, 4:] = 1
    other[:, 0] = (other[:, 0] + 1) % 30
    with torch.no_grad():
        logits = model(tokens, numbers, padding_mask)
        torch.testing.assert_close(model(tokens, later, padding_mask)[:, :5], logits[:, :5], rtol=0, atol=1e-6)
        torch.testing.assert_close(model(tokens, numbers[:, :3], padding_mask), logits[:, :3], rtol=0, atol=1e-6)
        assert (model(other, numbers, padding_mask) - logits).abs().amax((1, 2)).min() > 1e-3


def test_each_layer_draws_its_own_initial_weights():
    model = build(n_encoder_layers=3, n_decoder_layers=3)
    for layers in (model.encoder.layers, model.decoder.layers):
        for name, first in layers[0].named_parameters():
            if first.ndim == 2:
                assert not torch.equal(first, dict(layers[1].named_parameters())[name]), name


def test_parameter_count_at_upstream_sizes():
    config = RegressLMConfig(vocab_size=32100, number_vocab_size=13, number_len=7, dim=512)
    with torch.device("meta"):
        model = EncoderDecoder(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 31_162_381


def test_overfits_one_batch(texts):
    tokens, padding_mask, numbers = texts
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = F.cross_entropy(model(tokens, numbers, padding_mask).mT, numbers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_dropout_acts_in_training_only(texts):
    tokens, padding_mask, numbers = texts
    model = build(dropout=0.5)
    assert torch.equal(model(tokens, numbers, padding_mask), model(tokens, numbers, padding_mask))
    model.train()
    assert not torch.equal(model(tokens, numbers, padding_mask), model(tokens, numbers, padding_mask))


def test_bf16_follows_fp32(texts):
    tokens, padding_mask, numbers = texts
    model = build()
    with torch.no_grad():
        expected = model(tokens, numbers, padding_mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(tokens, numbers, padding_mask)
        low = model.bfloat16()(tokens, numbers, padding_mask)
    for logits in (mixed, low):
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.1)


def test_flops_equal_torchs_count(texts):
    """Without shortcuts: keys and values of every token are projected, and the first layer is like the others."""
    tokens, _, numbers = texts
    model = build(n_encoder_layers=1, n_decoder_layers=3, hidden_dim=64, vocab_size=100).train()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.decode(numbers, model.project_memory(model.encode(tokens)))[0].sum().backward()
    assert counter.get_total_flops() == len(tokens) * model.flops(tokens.shape[1])


def test_wrong_settings_and_long_texts_are_refused():
    for changes, word in (
        ({"dim": 36}, "dim 36"),
        ({"dropout": 1.0}, "dropout"),
        ({"n_encoder_layers": 0}, "n_encoder_layers"),
    ):
        with pytest.raises(ValueError, match=word):
            build(**changes)
    with pytest.raises(ValueError, match="41 tokens are more than the model's max_input_len of 40"):
        build()(torch.zeros(1, 41, dtype=torch.int64), torch.zeros(1, 7, dtype=torch.int64))


@pytest.mark.parametrize("padded", [False, True])
def test_shortcuts_give_the_same_logits_and_gradients(texts, padded):
    tokens, padding_mask, numbers = texts
    padding_mask = padding_mask if padded else None
    answers = []
    for vocab_size in (30, 100):  # fewer and more than there are tokens
        model = build(vocab_size=100, dim=64)
        model.encoder.embedding.num_embeddings = vocab_size
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
        if vocab_size == 30:
            logits = model(
                tokens, numbers, padding_mask
            )  # 56 queries, fewer than dim 64: the memory itself is attended to
        else:
            text = model.project_memory(model.encode(tokens, padding_mask))
            logits, _ = model.decode(F.pad(numbers[:, :-1], (1, 0)), text, padding_mask)
        F.cross_entropy(logits.mT, numbers).backward()
        answers.append((logits, {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-5)


def test_compiles_in_one_graph(texts):
    tokens, padding_mask, numbers = texts
    model = build()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for mask in (padding_mask, None):
        torch.testing.assert_close(compiled(tokens, numbers, mask), model(tokens, numbers, mask))


def test_padded_texts_keep_the_fused_kernel(texts):
    tokens, padding_mask, numbers = texts
    model = build()
    with torch.no_grad(), torch.profiler.profile() as profile:
        model(tokens, numbers, padding_mask)
    called = {event.key for event in profile.key_averages() if "scaled_dot_product" in event.key}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in called
    assert "aten::_scaled_dot_product_attention_math" not in called


MEMORY = """
import sys, torch
from pathlib import Path
from zoo.errors import UserError
from zoo.regress_lm import RegressLM
from zoo.regress_lm.model import EncoderDecoder, RegressLMConfig

def peak():
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")).split()[1])

torch.set_num_threads(1)
model = EncoderDecoder(RegressLMConfig(30, 13, 7, dim=32, n_heads=4, n_encoder_layers=1, max_input_len=8192)).eval()
tokens = torch.zeros(2, 8192, dtype=torch.int64)
padding_mask = torch.arange(8192) < torch.tensor([8192, 6000])[:, None]
with torch.no_grad():
    model.encode(tokens[:, :64], padding_mask[:, :64])
    before = peak()
    model.encode(tokens, padding_mask)
print((peak() - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_of_8192_padded_tokens_is_not_quadratic():
    """One attention matrix of two rows and four heads would take 2 GB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150
