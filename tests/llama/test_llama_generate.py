"""Generation with a Llama: llama2.c's story, cached and uncached decoding, ragged batches, sampling, options."""

import copy
import hashlib
from itertools import pairwise

import pytest
import torch

from zoo.generation.decoders import left_pad
from zoo.generation.sampling import generate, sample, stream_tokens
from zoo.layers import KVCache
from zoo.llama import Llama, LlamaConfig, load_checkpoint, save_checkpoint
from zoo.llama.decoder import LlamaDecoder

# sha256 of the ids "1,403,407,..." that llama2.c's run.c prints for stories260K with -t 0 -n 200.
STORY = "27f31a71c36379f0488bf5d85b79b460eab7bbcec70128f8520642b59864feb5"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=32)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model


def uncached(model, tokens, n):
    """Greedy continuation that evaluates all tokens for each new one."""
    with torch.no_grad():
        for _ in range(n):
            tokens = torch.cat([tokens, model(tokens)[0][:, -1].argmax(-1, keepdim=True)], 1)
    return tokens


@pytest.mark.parametrize("compile", [False, True])
def test_greedy_story_equals_llama2c(zoo_data, compile):
    model = load_checkpoint(zoo_data / "stories260K" / "stories260K.bin")
    ids = generate(model, torch.tensor([[1]]), 199, temperature=0, compile=compile)[0].tolist()
    assert hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest() == STORY


def test_greedy_story_equals_transformers(zoo_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = load_checkpoint(zoo_data / "stories260K" / "stories260K.bin")
    save_checkpoint(model, tmp_path)
    peer = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    tokens = generate(model, torch.tensor([[1]]), 199, temperature=0)
    with torch.no_grad():
        logits = peer(tokens).logits
        torch.testing.assert_close(logits, model(tokens)[0], rtol=0, atol=1e-4)
    assert torch.equal(logits[0, :-1].argmax(-1), tokens[0, 1:])


def test_prompt_in_chunks_equals_one_evaluation(model):
    tokens, config = torch.randint(50, (2, 32)), model.config
    cache = KVCache(config.n_layers, 2, config.kv_heads, 32, config.head_dim)
    with torch.no_grad():
        expected = model.hidden(tokens)
        starts = (0, 7, 8, 31, 32)
        chunks = [model.hidden(tokens[:, a:b], cache, start=a) for a, b in pairwise(starts)]
    torch.testing.assert_close(torch.cat(chunks, 1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compile", [False, True])
def test_cached_steps_equal_uncached_up_to_the_end_of_the_context(model, compile):
    tokens = torch.randint(50, (1, 32))
    with torch.inference_mode():
        expected = model(tokens)[0]
        decoder = LlamaDecoder(model, 1, 32, compile=compile)
        steps = [decoder.prefill(tokens[:, :5]), *(decoder.step(tokens[:, t]) for t in range(5, 32))]
    torch.testing.assert_close(torch.stack(steps, 1), expected[:, 4:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("compile", [False, True])
def test_ragged_batch_equals_each_prompt_alone(model, compile):
    prompts = [[1, 2, 3, 4, 5, 6, 7], [1], [9, 8, 7]]
    tokens, lengths = left_pad(prompts)
    together = generate(model, tokens, 12, temperature=0, lengths=lengths, compile=compile)
    for row, prompt in zip(together, prompts, strict=True):
        assert row[7 - len(prompt) :].tolist() == uncached(model, torch.tensor([prompt]), 12)[0].tolist()
    with torch.inference_mode():
        decoder = LlamaDecoder(model, 3, 8, compile=compile)
        ragged = [decoder.prefill(tokens, 7 - lengths), decoder.step(torch.tensor([3, 4, 5]))]
        for i, prompt in enumerate(prompts):
            alone = model(torch.tensor([[*prompt, 3 + i]]))[0][0, -2:]
            torch.testing.assert_close(torch.stack([r[i] for r in ragged]), alone, rtol=0, atol=1e-5)


def test_compiled_sampling_equals_eager_sampling(model):
    tokens, lengths = left_pad([[1, 2, 3], [4], [5, 6]])
    for options in ({}, {"top_k": 9}, {"top_p": 0.8, "temperature": 1.3}, {"stop": (7, 8), "pad": 2}):
        eager, compiled = (
            generate(model, tokens, 20, lengths=lengths, seed=3, compile=compile, **options)
            for compile in (False, True)
        )
        assert torch.equal(compiled, eager)


def test_bf16_weights_give_close_logits(model):
    tokens = torch.randint(50, (2, 6))
    with torch.inference_mode():
        decoder = LlamaDecoder(model, 2, 6, precision="bf16")
        decoder.prefill(tokens[:, :5])
        logits, expected = decoder.step(tokens[:, 5]), model(tokens)[0][:, -1]
    assert 0 < (logits - expected).norm() / expected.norm() < 0.02


def test_a_row_of_zeros_is_possible_in_int8(model):
    model = copy.deepcopy(model)
    torch.nn.init.zeros_(model.layers[0].attention.wo.weight)
    tokens = generate(model, torch.tensor([[1]]), 3, temperature=0, precision="int8")
    assert tokens.shape == (1, 4)
    decoder = LlamaDecoder(model, 1, 4, "int8")
    assert all(matrix.isfinite().all() for kind in decoder.matrices for matrix in kind)


def test_seed_determines_each_row_independently_of_the_others(model):
    def run(tokens, seed=3):
        return generate(model, torch.tensor(tokens), 20, seed=seed, top_p=0.9)

    a, b = run([[1, 2], [3, 4]]), run([[1, 2], [9, 9]])
    assert torch.equal(a, run([[1, 2], [3, 4]]))
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a, run([[1, 2], [3, 4]], seed=4))
    twins = run([[1, 2], [1, 2]])
    assert not torch.equal(twins[0], twins[1])
    torch.manual_seed(7)
    unseeded = run([[1, 2]], seed=None)
    torch.manual_seed(7)
    assert torch.equal(run([[1, 2]], seed=None), unseeded)


def test_sample_frequencies_equal_the_softmax():
    logits = torch.tensor([[1.0, -1.0, 0.5, -torch.inf, 2.0]])
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    draws = sample(logits.expand(10_000, -1), uniform, temperature=0.7)
    shares = torch.bincount(draws, minlength=5) / 10_000
    torch.testing.assert_close(shares, (logits[0] / 0.7).softmax(-1), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 2}, {4, 0}),
        ({"top_k": 99}, {0, 1, 2, 4}),
        ({"top_p": 0.6}, {4, 0}),  # .52, .19 | .19 ...: the second reaches .6
        ({"top_p": 1e-6}, {4}),
        ({"top_p": 1.0, "top_k": 1}, {4}),
        ({"top_k": 3, "top_p": 0.5}, {4}),  # renormalized among three, the first has .57
    ],
)
def test_top_k_and_top_p_limit_the_sampled_tokens(options, allowed):
    logits = torch.tensor([1.0, 0.0, 0.9, -torch.inf, 2.0]).expand(1000, -1)
    uniform = torch.arange(1000).double() / 1000
    assert set(sample(logits, uniform, **options).tolist()) == allowed


def test_top_p_of_a_large_vocabulary_equals_that_of_all_tokens_sorted():
    torch.manual_seed(0)
    logits, uniform = torch.randn(50, 3000) * 4, torch.rand(50, dtype=torch.float64)
    for top_p, temperature in ((0.5, 1.0), (0.9, 0.7), (0.999, 1.0), (0.9, 50.0)):  # the last needs most tokens
        probabilities, ids = (logits.double() / temperature).softmax(-1).sort(-1, descending=True)
        cumulative = probabilities.cumsum(-1)
        is_allowed = cumulative - probabilities < top_p
        total = (probabilities * is_allowed).sum(-1, keepdim=True)
        expected = ids.gather(1, (cumulative < (1 - uniform[:, None]) * total).sum(-1, keepdim=True))[:, 0]
        assert torch.equal(sample(logits, uniform, temperature, top_p=top_p), expected)


def test_sample_at_the_ends_of_the_unit_interval_has_positive_probability():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for options in ({}, {"top_k": 5}, {"top_p": 1.0}):
        assert set(sample(logits, ends, **options).tolist()) <= {1, 3}


def test_stop_tokens_end_rows_and_the_stream(model):
    tokens = torch.tensor([[1, 2], [3, 4]])
    free = generate(model, tokens, 12, temperature=0)[:, 2:]
    stop = {int(free[0, 2]), int(free[1, 5])}
    ended = generate(model, tokens, 12, temperature=0, stop=stop, pad=49)[:, 2:]
    ends = []
    for row, full in zip(ended.tolist(), free.tolist(), strict=True):
        end = next(i for i, token in enumerate(full) if token in stop)
        assert row[: end + 1] == full[: end + 1]
        assert set(row[end + 1 :]) <= {49}
        ends.append(end)
    assert ended.shape[1] == max(ends) + 1


def test_generate_concatenates_stream_tokens(model):
    tokens = torch.tensor([[1, 2], [3, 4]])
    steps = list(stream_tokens(model, tokens, 5, seed=0))
    assert all(step.shape == (2,) for step in steps)
    assert torch.equal(torch.stack(steps, 1), model.generate(tokens, 5, seed=0)[:, 2:])
    assert torch.equal(model.generate(tokens, 0), tokens)


def test_full_context_warns(model):
    tokens = torch.randint(50, (1, 30))
    with pytest.warns(UserWarning, match="context of 32 tokens is full: 3 of 9 tokens"):
        continued = generate(model, tokens, 9, temperature=0)
    assert continued.shape == (1, 33)  # the last token is not read, so it may exceed the context
    assert torch.equal(continued[:, :32], uncached(model, tokens, 2))


def test_prompt_longer_than_the_context_is_truncated_with_a_warning(model):
    tokens = torch.randint(50, (1, 40))
    with pytest.warns(UserWarning, match="a prompt of 40 tokens is longer than the context of 32: only its last 28"):
        continued = generate(model, tokens, 5, temperature=0)
    assert torch.equal(continued[:, :40], tokens)
    assert torch.equal(continued[:, 12:], uncached(model, tokens[:, -28:], 5))


def test_generation_ignores_dropout_and_autocast(model):
    dropping = Llama(LlamaConfig(**(vars(model.config) | {"dropout": 0.5}))).train()
    dropping.load_state_dict(model.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = generate(dropping, torch.tensor([[1, 2]]), 9, temperature=0)
    assert torch.equal(tokens, generate(model, torch.tensor([[1, 2]]), 9, temperature=0))
    assert all(module.training for module in dropping.modules())


@pytest.mark.parametrize(
    ("tokens", "options", "sentence"),
    [
        ([[]], {}, "with a token at least"),
        ([[50]], {}, "outside the model's vocabulary of 50"),
        ([[1]], {"temperature": -1.0}, "temperature must be"),
        ([[1]], {"top_k": 0}, "top_k must be at least 1"),
        ([[1]], {"top_p": 0.0}, r"top_p must be in"),
        ([[1]], {"precision": "int4"}, "precision must be one of fp32, bf16, int8"),
        ([[1, 2]], {"lengths": torch.tensor([3])}, "lengths must be 1 numbers from 1 to 2"),
    ],
)
def test_invalid_options_are_named(model, tokens, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate(model, torch.tensor(tokens, dtype=torch.long), 3, **options)
