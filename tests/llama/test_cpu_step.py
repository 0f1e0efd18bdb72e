"""The decoding steps for a CPU, in C, and for a GPU against the network; compiling, caching and loading the library."""

import os

import pytest
import torch

from zoo.generation.decoders import left_pad
from zoo.generation.sampling import generate
from zoo.llama import Llama, LlamaConfig
from zoo.llama import decoder as decoder_module
from zoo.llama.cpu_step import CompilerMissing, library
from zoo.llama.decoder import LlamaDecoder

# (dim, heads, key-value heads, hidden, vocabulary, tied, batch): sizes above, at and below the width of a vector.
SHAPES = [
    (32, 4, 2, 96, 50, True, 1),
    (36, 6, 2, 50, 37, False, 3),
    (8, 4, 1, 5, 11, True, 5),
    (64, 1, 1, 172, 512, False, 8),
    (6, 3, 3, 1, 3, True, 2),
    (320, 5, 5, 700, 1031, True, 4),
]


@pytest.fixture(scope="module", autouse=True)
def _needs_a_compiler():
    try:
        library.load_library()
    except CompilerMissing as error:
        pytest.skip(f"step.c cannot be compiled: {error}")


def build(shape, context=40):
    dim, heads, kv_heads, hidden, vocab, tied, _ = shape
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, dim=dim, n_layers=2, n_heads=heads, n_kv_heads=kv_heads, hidden_dim=hidden,
        max_seq_len=context, tie_embeddings=tied,
    )  # fmt: skip
    model = Llama(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.15)
    return model


def decoder_of(kind, model, batch, max_len, precision, monkeypatch):
    """A decoder with the step for "cpu", or with that for a "gpu", on a CPU and not compiled."""
    decoder = LlamaDecoder(model, batch, max_len, precision, compile=kind == "cpu")
    if kind == "gpu":
        monkeypatch.setattr(decoder_module, "_compiler", lambda: decoder_module._static_step)
        decoder.compile = True
        decoder._copy_weights()
    else:
        assert decoder.cpu_step is not None
    return decoder


def logits_of(decoder, tokens, prompt):
    """Logits (B, T - prompt + 1, V) after the prompt and after each further token."""
    return torch.stack([decoder.prefill(tokens[:, :prompt]), *(decoder.step(t) for t in tokens[:, prompt:].T)], 1)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("prompt", [1, 23, 40])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_steps_equal_the_network_up_to_the_end_of_the_context(shape, prompt, kind, monkeypatch):
    model, batch = build(shape), shape[-1]
    tokens = torch.randint(model.config.vocab_size, (batch, 40))
    expected = model(tokens)[0][:, prompt - 1 :]
    got = logits_of(decoder_of(kind, model, batch, 40, "fp32", monkeypatch), tokens, prompt)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_rounded_weights_equal_a_network_of_rounded_weights(shape, precision, kind, monkeypatch):
    def rounded(matrix):  # (n, m), with a factor for each output
        if precision == "bf16":
            return matrix.bfloat16().float()
        scale = matrix.abs().amax(0) / 127
        return (matrix / scale).round() * scale

    if kind == "gpu" and precision == "bf16" and shape[-1] > 1:
        pytest.skip("the GPU's step rounds its inputs too where it multiplies several rows")
    model, batch = build(shape), shape[-1]
    tokens = torch.randint(model.config.vocab_size, (batch, 24))
    reference = LlamaDecoder(model, batch, 24)
    exact = logits_of(reference, tokens, 5)[:, 1:]
    reference.matrices = [[rounded(matrix) for matrix in kind] for kind in reference.matrices]
    reference.output = rounded(reference.output[0]), None
    expected = logits_of(reference, tokens, 5)[:, 1:]
    got = logits_of(decoder_of(kind, model, batch, 24, precision, monkeypatch), tokens, 5)[:, 1:]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert 0 < (got - exact).norm() / exact.norm() < 0.1


@torch.inference_mode()
def test_padding_columns_do_not_change_a_row():
    """Also next to a row without padding, and after a second prompt in the same cache."""
    model = build(SHAPES[0], context=64)
    tokens, padding = torch.randint(50, (3, 50)), torch.tensor([0, 33, 16])
    decoder = LlamaDecoder(model, 3, 64, compile=True)
    for _ in range(2):
        decoder.prefill(tokens[:, :40], padding)
        got = torch.stack([decoder.step(column) for column in tokens[:, 40:].T], 1)
        for row, start in enumerate(padding.tolist()):
            expected = model(tokens[row : row + 1, start:])[0][:, -10:]
            torch.testing.assert_close(got[row : row + 1], expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_threads_do_not_change_the_logits(monkeypatch):
    model = build(SHAPES[-1])
    tokens = torch.randint(1031, (4, 12))
    logits = []
    for threads in (1, 3):
        monkeypatch.setattr("zoo.llama.cpu_step.step._threads", lambda threads=threads: threads)
        decoder = LlamaDecoder(model, 4, 12, compile=True)
        assert decoder.cpu_step.decoder.threads == threads
        logits.append(logits_of(decoder, tokens, 2))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.inference_mode()
def test_network_in_another_dtype_decodes_in_fp32(dtype):
    model, exact = build(SHAPES[0]).to(dtype), build(SHAPES[0]).to(dtype).float()
    tokens = torch.randint(50, (1, 20))
    got = logits_of(LlamaDecoder(model, 1, 20, compile=True), tokens, 1)
    torch.testing.assert_close(got, exact(tokens)[0], rtol=1e-5, atol=1e-4)


@torch.inference_mode()
def test_what_would_be_outside_memory_is_an_index_error():
    model = build(SHAPES[0])
    decoder = LlamaDecoder(model, 1, 3, compile=True)
    for padding in (torch.tensor([-1]), torch.tensor([3]), torch.tensor([0, 0])):
        with pytest.raises(IndexError, match="numbers of padding columns must be 1, each from 0 to 2"):
            decoder.cpu_step.start(decoder.cache.layers, 2, padding)
    decoder.prefill(torch.tensor([[1, 2]]))
    for tokens in ([-1], [50], [1, 2], [[1]]):
        with pytest.raises(IndexError, match="tokens must be 1, each from 0 to 49"):
            decoder.step(torch.tensor(tokens))
    decoder.step(torch.tensor([1]))
    with pytest.raises(IndexError, match="a cache of 3 columns is full"):
        decoder.step(torch.tensor([1]))
    assert LlamaDecoder(model, 1, 1000, compile=True).cpu_step.max_len == 40  # the rows of the rotary table
    with pytest.raises(TypeError, match="dense tensors on the CPU"):
        decoder.cpu_step._pointer(torch.zeros(3, device="meta"), torch.float32)


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("default", [torch.float64, torch.float16, torch.bfloat16])
def test_defaults_of_torch_change_no_tokens(default, precision, compile):
    model, (tokens, lengths) = build(SHAPES[0]), left_pad([[1, 2, 3], [4]])
    options = {"precision": precision, "compile": compile, "seed": 1, "lengths": lengths}
    expected = [generate(model, tokens, 20, temperature=t, **options) for t in (0, 1)]
    torch.set_default_dtype(default)
    try:
        assert all(map(torch.equal, [generate(model, tokens, 20, temperature=t, **options) for t in (0, 1)], expected))
        with torch.device("meta"):
            assert torch.equal(generate(model, tokens, 20, temperature=1, **options), expected[1])
        if compile:
            decoder = decoder_of("gpu", model, 2, 30, precision, pytest.MonkeyPatch())
            assert logits_of(decoder, tokens.repeat(1, 3), 5).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@torch.inference_mode()
def test_nan_weights_give_nan():
    model = build(SHAPES[0])
    model.layers[0].attention.wqkv.weight[:] = torch.nan
    assert logits_of(LlamaDecoder(model, 1, 4, compile=True), torch.tensor([[1, 2, 3]]), 1).isnan().all()


def test_library_leaves_subnormal_numbers_alone():
    library.load_library()
    assert (torch.tensor([1e-40]) * torch.tensor([0.5])).item() > 0


def test_library_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    library.load_library.__wrapped__()
    [path] = (tmp_path / "libraries").glob("*.so")
    assert (tmp_path / "libraries").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(library, "_compile", None)
    library.load_library.__wrapped__()
    assert [path] == list((tmp_path / "libraries").glob("*.so"))


def test_damaged_library_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    library.load_library.__wrapped__()
    [path] = (tmp_path / "libraries").glob("*.so")
    content = path.read_bytes()
    for damaged in (b"", content[:9000], content[:-1] + bytes([content[-1] ^ 1])):
        path.unlink()  # the file that is mapped already must not change
        path.write_bytes(damaged)
        library.load_library.__wrapped__()
        assert library._is_complete(path)
    path.unlink()
    path.mkdir()  # the library is then compiled into a temporary folder
    library.load_library.__wrapped__()


@pytest.mark.parametrize("cache", ["~no-such-user/c", "/proc/no/folder", "s3://bucket"])
def test_without_a_cache_folder_the_library_is_temporary(monkeypatch, cache):
    monkeypatch.setenv("ZOO_CACHE", cache)
    library.load_library.__wrapped__()


@pytest.mark.parametrize("fault", ["full disk", "no execution"])
def test_where_the_cache_folder_does_not_serve_the_library_is_temporary(tmp_path, monkeypatch, fault):
    cache, load = tmp_path / "cache", library.ctypes.CDLL
    monkeypatch.setenv("ZOO_CACHE", str(cache))
    if fault == "full disk":  # the compiler fails to write
        compiler = tmp_path / "compiler"
        command = library._compiler()[0]
        compiler.write_text(f'#!/bin/sh\ncase "$*" in *{cache}*) exit 1;; esac\nexec {command} "$@"\n')
        compiler.chmod(0o700)
        monkeypatch.setenv("CC", str(compiler))
    else:

        def refuse(path):
            if path.startswith(str(cache)):
                raise OSError("failed to map segment from shared object")
            return load(path)

        monkeypatch.setattr(library.ctypes, "CDLL", refuse)
    assert library.load_library.__wrapped__().decode_step
    assert not list(cache.rglob("*.so"))


def test_without_any_folder_there_is_no_library(monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", "/proc/no/folder")
    monkeypatch.setattr("tempfile.tempdir", "/proc/no/folder")
    with pytest.raises(CompilerMissing, match="No such file"):
        library.load_library.__wrapped__()


@pytest.mark.parametrize("shared", ["libraries", "."])
def test_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch, shared):
    cache = tmp_path / "cache"
    (cache / "libraries").mkdir(parents=True, mode=0o700)
    (cache / shared).chmod(0o777)
    monkeypatch.setenv("ZOO_CACHE", str(cache))
    library.load_library.__wrapped__()
    assert not list((cache / "libraries").iterdir())


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("PATH", "", r"no C compiler \(gcc, clang, cc\) is installed"),
        ("CC", "no-such-compiler -O1", r"\$CC is no-such-compiler, which is not installed: set it to a C compiler"),
        ("CC", "false", "false fails: no message"),
        ("CC", 'gcc "', r"\$CC is not a command: No closing quotation"),
    ],
)
def test_without_a_compiler_one_warning_and_eager_steps(tmp_path, monkeypatch, variable, value, reason):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr("zoo.llama.cpu_step.step.load_library", library.load_library.__wrapped__)
    model, tokens = build(SHAPES[0]), torch.tensor([[1, 2]])
    with pytest.warns(UserWarning, match=f"runs without --compile: {reason}") as caught:
        compiled = generate(model, tokens, 6, temperature=0, compile=True)
    assert len(caught) == 1
    assert torch.equal(compiled, generate(model, tokens, 6, temperature=0))
    assert not os.listdir(tmp_path / "libraries") if (tmp_path / "libraries").exists() else True


def test_the_compilers_error_is_shown_instead_of_its_warnings(tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    messages = [
        "In file included from step.c:8:",
        "cc1: warning: no -std",
        "math.h:2: Fatal Error: no stubs",
        "error: 2",
    ]
    compiler.write_text("#!/bin/sh\n" + "".join(f"echo '{line}' >&2\n" for line in messages) + "exit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    with pytest.raises(CompilerMissing, match=r"compiler fails: math\.h:2: Fatal Error: no stubs$"):
        library.load_library.__wrapped__()


def test_without_a_compiler_a_cached_library_of_the_same_source_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    library.load_library.__wrapped__()
    for name, value in {"CC": "false", "PATH": ""}.items():
        with monkeypatch.context() as context:
            context.setenv(name, value)
            assert library.load_library.__wrapped__().decode_step
    monkeypatch.setenv("CC", "no-such-compiler")
    assert library.load_library.__wrapped__().decode_step
    [path] = (tmp_path / "libraries").glob("*.so")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])  # a damaged one is not
    with pytest.raises(CompilerMissing):
        library.load_library.__wrapped__()
    path.write_bytes(content)
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-O2"))  # nor one of another source
    with pytest.raises(CompilerMissing):
        library.load_library.__wrapped__()


def test_failing_torch_compile_warns_once_and_continues_eagerly(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no Triton\nand a long story")

    model, tokens = build(SHAPES[0]), torch.randint(50, (1, 12))
    with torch.inference_mode():
        decoder = decoder_of("gpu", model, 1, 12, "fp32", monkeypatch)
        monkeypatch.setattr(decoder_module, "_compiler", lambda: fail)
        with pytest.warns(UserWarning, match="runs without --compile: no Triton$") as caught:
            got = logits_of(decoder, tokens, 4)
        assert len(caught) == 1
        torch.testing.assert_close(got, model(tokens)[0][:, 3:], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@torch.inference_mode()
def test_gpu_step_compiles_on_a_cpu():
    model, tokens = build(SHAPES[0]), torch.randint(50, (1, 9))
    decoder = LlamaDecoder(model, 1, 16)
    decoder.compile = True
    decoder._copy_weights()
    got = logits_of(decoder, tokens, 4)
    assert decoder.compile  # it did not fall back
    torch.testing.assert_close(got, model(tokens)[0][:, 3:], rtol=1e-5, atol=1e-5)
