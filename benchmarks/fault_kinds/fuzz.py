"""Mutated inputs of every kind: loaded, or refused with one sentence that names the file or the argument."""

import functools
import json
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.fault_kinds import samples
from benchmarks.fault_kinds.cases import Kind, Outcome, outcome_of
from benchmarks.fault_kinds.mutations import mutate, mutate_bytes, mutate_text, odd_value
from zoo.cli.arguments import read_arguments
from zoo.cli.checkpoint_info import read_checkpoint_info
from zoo.cli.config_names import config_files
from zoo.datamodules import TextRegression
from zoo.datamodules.sources.labels import read_labels
from zoo.llama import LlamaLM, load_checkpoint
from zoo.regress_lm.number_formats import number_tokenizer
from zoo.tokenizers import from_state, load_tokenizer
from zoo.tokenizers.hugging_face import HuggingFaceTokenizer

# A mutated input: what reads it, and the names of which one must be in the message of a refusal.
Mutated = tuple[Callable[[], Any], Sequence[str]]
TENSORS = (
    torch.zeros(0), torch.zeros(()), torch.zeros(3), torch.zeros(2, 2, 2), torch.ones(16, 16, dtype=torch.int64),
    torch.zeros(16, 16, dtype=torch.complex64), torch.full((16,), math.nan), torch.zeros(1).expand(10**9),
    torch.zeros(16, 16, dtype=torch.bfloat16), torch.zeros(16, 16).to_sparse(), torch.empty(16, 16, device="meta"),
)  # fmt: skip


PROMPTS = tuple(  # what can be copied to a device
    t for t in TENSORS if t.device.type == "cpu" and t.layout == torch.strided and t.numel() < 10**6
)


def _save(content: Any, file: Path) -> bool:
    """Write a mutated content with torch.save; False if it cannot be written, so that there is nothing to read."""
    try:
        torch.save(content, file)
    except (RuntimeError, RecursionError, NotImplementedError):
        return False
    return True


def _write_json(content: Any, rng: Random, file: Path) -> None:
    """Write a mutated copy of a value as JSON, or mutated JSON text."""
    if rng.random() < 0.8:
        file.write_text(json.dumps(mutate(content, rng)))
    elif rng.random() < 0.5:
        file.write_text(mutate_text(json.dumps(content), rng), encoding="utf-8", errors="surrogatepass")
    else:
        file.write_bytes(mutate_bytes(json.dumps(content).encode(), rng))


def _nothing() -> None:
    """The call for a mutated input that could not be written: it does nothing."""


# ---- files of weights


def pt(rng: Random, folder: Path) -> Mutated:
    """Structure of llama2.c's .pt: settings and tensors."""
    file = folder / "model.pt"
    content = mutate(samples.llama2c_pt(), rng, TENSORS)
    return (lambda: load_checkpoint(file)) if _save(content, file) else _nothing, [str(file)]


@functools.cache
def _own_checkpoint(shared: Path) -> dict[str, Any]:
    return torch.load(samples.trained_run(shared) / "last.ckpt", weights_only=True)


def checkpoint(rng: Random, folder: Path) -> Mutated:
    """Structure of a checkpoint of the zoo, with its tokenizer, settings and states of data and callbacks."""
    file = folder / "last.ckpt"
    content = mutate(_own_checkpoint(folder.parent), rng, TENSORS)
    if not _save(content, file):
        return _nothing, []
    readers: list[Callable[[], Any]] = [
        lambda: read_checkpoint_info(str(file)),
        lambda: load_checkpoint(file),
        lambda: LlamaLM.load_from_checkpoint(file),
        lambda: load_tokenizer(file).encode("a fox"),
    ]
    reader = rng.choice(readers)
    # Errors of single settings or tensors name these; Lightning passes no path on.
    return reader, [] if reader is readers[2] else [str(file)]


def llama2c_bin(rng: Random, folder: Path) -> Mutated:
    """Header and length of a .bin."""
    file = folder / "model.bin"
    samples.write_bin(folder)
    data = file.read_bytes()
    header = list(struct.unpack_from("<7i", data))
    if rng.random() < 0.7:
        i = rng.randrange(7)
        header[i] = rng.choice([0, 1, -1, 2**31 - 1, -(2**31), -header[i], header[i] + 1, header[i] * 2, 2**20])
        data = struct.pack("<7i", *header) + data[28:]
    else:
        data = mutate_bytes(data, rng)
    file.write_bytes(data)
    return lambda: load_checkpoint(file), [str(file)]


def hf_config(rng: Random, folder: Path) -> Mutated:
    """config.json of a Hugging Face folder."""
    samples.write_hugging_face(folder)
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content["rope_scaling"] = rng.choice([None, {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16}])  # fmt: skip
    _write_json(content, rng, file)
    return lambda: load_checkpoint(folder), [str(folder)]


def safetensors(rng: Random, folder: Path) -> Mutated:
    """Header and bytes of a safetensors file."""
    samples.write_hugging_face(folder)
    file = folder / "model.safetensors"
    data = file.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    if rng.random() < 0.6:
        text = json.dumps(mutate(json.loads(data[8 : 8 + size]), rng)).encode()
        data = struct.pack("<Q", len(text)) + text + data[8 + size :]
    else:
        start = rng.choice([0, 0, size])  # in the length and the header, or in the numbers
        data = data[:start] + mutate_bytes(data[start : start + 2000], rng) + data[start + 2000 :]
    file.write_bytes(data)
    return lambda: load_checkpoint(folder), [str(folder)]


def index(rng: Random, folder: Path) -> Mutated:
    """Index of the shards of a Hugging Face folder."""
    samples.write_shards(folder)
    file = folder / "model.safetensors.index.json"
    _write_json(json.loads(file.read_text()), rng, file)
    return lambda: load_checkpoint(folder), [str(folder)]


# ---- tokenizers


def tokenizer_json(rng: Random, folder: Path) -> Mutated:
    """tokenizer.json, its configuration files, and GPT-2's two files."""
    if rng.random() < 0.25:
        samples.write_gpt2(folder)
        file = folder / rng.choice(["vocab.json", "merges.txt"])
        if file.suffix == ".json":
            _write_json(json.loads(file.read_text()), rng, file)
        else:
            file.write_bytes(mutate_bytes(file.read_bytes(), rng))
    else:
        samples.write_tokenizer(folder)
        file = folder / rng.choice(["tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"])
        _write_json(json.loads(file.read_text()), rng, file)
    return lambda: _use(load_tokenizer(folder)), [str(folder)]


def llama2c_tokenizer(rng: Random, folder: Path) -> Mutated:
    """llama2.c's tok*.bin."""
    samples.write_llama2c_tokenizer(folder)
    file = folder / "tok263.bin"
    file.write_bytes(mutate_bytes(file.read_bytes(), rng))
    return lambda: _use(load_tokenizer(file)), [str(file)]


def _use(tokenizer: Any) -> None:
    """Encode and decode a text, which must not fail once a tokenizer is loaded."""
    ids = tokenizer.encode("The quick fox, ab", eos=True)
    assert all(0 <= i < tokenizer.vocab_size for i in ids), "an id is outside the vocabulary"
    tokenizer.decode(ids)


def tokenizer_state(rng: Random, folder: Path) -> Mutated:
    """State of a tokenizer that a checkpoint stores."""
    samples.write_llama2c_tokenizer(folder)
    states: list[dict[str, Any]] = [
        dict(HuggingFaceTokenizer(samples.tokenizer_json(), 0, 0).state()),
        dict(load_tokenizer(folder / "tok263.bin").state()),
        dict(load_tokenizer("bytes").state()),
        {"kind": "sentencepiece", "model": "AAAA"},
    ]
    state = mutate(rng.choice(states), rng)
    return lambda: _use(from_state(state)), []


# ---- settings and arguments


def labels(rng: Random, folder: Path) -> Mutated:
    """label_names as a JSON file, as text, and as a value."""
    given = rng.choice([["bad", "good"], {"0": "bad", "1": "good"}, {"-1": "bad", "1": "good", "2": "good"}])
    form = rng.randrange(3)
    if form == 0:
        file = folder / "labels.json"
        _write_json(given, rng, file)
        return lambda: read_labels(str(file)), [str(file)]
    if form == 1:
        text = mutate_text(json.dumps(given), rng)
        return lambda: read_labels(text), ["label_names"]
    value = mutate(given, rng)
    return lambda: read_labels(value), ["label_names", ".json"]


def config(rng: Random, folder: Path) -> Mutated:
    """Config files, as the command line first looks at them."""
    file = folder / "own.yaml"
    data = rng.choice(sorted(config_files().values())).read_bytes()
    for _ in range(rng.choice([1, 1, 2])):
        if rng.random() < 0.5:
            data = mutate_text(data.decode(errors="replace"), rng).encode("utf-8", "surrogatepass")
        else:
            data = mutate_bytes(data, rng)
    file.write_bytes(data)
    return lambda: read_arguments([f"--config={file}"]), [str(file)]


def number_format(rng: Random, folder: Path) -> Mutated:
    """Arguments of number_tokenizer(), and a number encoded with its result."""
    arguments = {"kind": rng.choice(["ieee", "p10", "normalized"]), "digits": rng.choice([None, 2, 4]),
        "exponent": rng.choice([None, 1, 2]), "special_values": rng.choice([False, True])}  # fmt: skip
    for name in rng.sample([*arguments], rng.choice([1, 1, 2])):
        arguments[name] = rng.choice([odd_value(rng), rng.randrange(-2, 40)])

    def call() -> None:
        tokenizer = number_tokenizer(**arguments)
        assert math.isfinite(tokenizer.from_tokens(tokenizer.to_tokens(0.5))), "0.5 is decoded as no number"

    return call, ["digits", "exponent", "special_values", "number_format", "length"]


def generation(rng: Random, folder: Path) -> Mutated:
    """Arguments of generate()."""
    arguments: dict[str, Any] = {"tokens": torch.tensor([[1, 2, 3], [4, 5, 6]]), "max_new_tokens": 3,
        "temperature": 1.0, "top_k": None, "top_p": None, "lengths": None, "stop": (), "pad": 0, "seed": 0,
        "slide": None, "precision": "fp32"}  # fmt: skip
    changed = rng.sample([*arguments], rng.choice([1, 1, 2]))
    for name in changed:
        arguments[name] = rng.choice(PROMPTS) if name in ("tokens", "lengths") else odd_value(rng)
    model = samples.llama()
    aliases = {"tokens": ["prompt", "token"], "lengths": ["length"], "stop": ["stop"]}
    return lambda: model.generate(**arguments), [word for name in changed for word in [name, *aliases.get(name, [])]]


# ---- rows


def rows(rng: Random, folder: Path) -> Mutated:
    """Tables of texts and numbers in every format."""
    write = rng.choice([samples.write_csv, samples.write_json_lines, samples.write_yaml])
    write(folder)
    [file] = folder.glob("rows.*")
    if rng.random() < 0.5 and file.suffix != ".csv":
        content = mutate(samples.ROWS, rng)
        if file.suffix == ".jsonl" and isinstance(content, list):
            file.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            file.write_text(json.dumps(content))  # which is YAML too
    elif rng.random() < 0.5:
        file.write_bytes(mutate_text(file.read_text(), rng).encode("utf-8", "surrogatepass"))
    else:
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))
    options: dict[str, Any] = {"text_column": "x"} if rng.random() < 0.5 else {"features": rng.random() < 0.3}
    options["bad_rows"] = rng.choice(["stop", "skip"])

    def call() -> None:
        data = TextRegression(str(file), target_columns=rng.choice(["y", "y,z"]), cache_dir=str(folder), **options)
        for split in ("train", "val", "predict"):
            data.dataset(split)

    return call, [str(file), "--data.", "target_columns"]


INPUTS: dict[str, tuple[Callable[[Random, Path], Mutated], int]] = {  # kind -> its mutation, number of cases
    "pt": (pt, 1000),
    "checkpoint": (checkpoint, 1000),
    "bin": (llama2c_bin, 1000),
    "hf-config": (hf_config, 1000),
    "safetensors": (safetensors, 1000),
    "index": (index, 1000),
    "tokenizer-json": (tokenizer_json, 1000),
    "tok-bin": (llama2c_tokenizer, 1000),
    "tokenizer-state": (tokenizer_state, 1000),
    "labels": (labels, 1000),
    "config": (config, 1000),
    "number-format": (number_format, 1000),
    "generation": (generation, 1000),
    "rows": (rows, 1000),
}


def _kind(name: str) -> Kind:
    change, cases = INPUTS[name]

    def try_input(index: int, rng: Random, folder: Path) -> Outcome:
        call, names = change(rng, folder)
        return outcome_of(call, names)

    about = (change.__doc__ or "").rstrip(".")
    return Kind(f"fuzz-{name}", f"mutated: {about}", try_input, cases=cases, quick=40, seconds=20)


FUZZ = {kind.name: kind for kind in map(_kind, INPUTS)}
