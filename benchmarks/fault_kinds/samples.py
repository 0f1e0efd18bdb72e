"""Small valid inputs of every kind, which the cases damage or mutate. All are equal whenever they are made."""

import functools
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.fault_kinds.runs import Scenario, uninterrupted
from zoo.llama import Llama, LlamaConfig, save_checkpoint
from zoo.tokenizers.hugging_face import train_bpe

TEXT = "The quick brown fox\njumps over the lazy dog.\n" * 60
ROWS = [{"x": f"item {i} of {i % 7}", "y": i * 1.5 - 20, "z": i % 3} for i in range(30)]
SMALL = {"vocab_size": 32, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_seq_len": 32}


def made_once(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """A function that writes the same files as `write`, which is called once in each process."""

    @functools.cache
    def contents() -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            return {file.name: file.read_bytes() for file in Path(folder).iterdir()}

    @functools.wraps(write)
    def copy(folder: Path) -> None:
        for name, data in contents().items():
            (folder / name).write_bytes(data)

    return copy


@functools.cache
def llama() -> Llama:
    torch.manual_seed(0)
    return Llama(LlamaConfig(**SMALL)).eval()  # type: ignore[arg-type]


def llama2c_pt() -> dict[str, Any]:
    """The content of a llama2.c `.pt` file."""
    from zoo.llama.checkpoints.names import split_projections

    model = llama()
    return {"model_args": dict(SMALL), "model": split_projections(model.state_dict(), model.config), "iter_num": 3}


@made_once
def write_pt(folder: Path) -> None:
    torch.save(llama2c_pt(), folder / "model.pt")


@made_once
def write_bin(folder: Path) -> None:
    save_checkpoint(llama(), folder / "model.bin", "llama2c")


@made_once
def write_hugging_face(folder: Path) -> None:
    save_checkpoint(llama(), folder, "hf")


@made_once
def write_shards(folder: Path) -> None:
    """A Hugging Face folder of two shards and their index."""
    write_hugging_face(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json with its two configuration files."""
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>", "add_bos_token": True}))
    special = {"bos_token": {"content": "<|endoftext|>", "lstrip": False}, "eos_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


@functools.cache
def tokenizer_json() -> str:
    return str(train_bpe([TEXT], 300).state()["model"])


def write_llama2c_tokenizer(folder: Path) -> None:
    """A tok*.bin of llama2.c: three special tokens, 256 bytes, and the letters."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256)), b" ", b"a", b"b", b"ab"]
    entries = b"".join(struct.pack("<fI", float(-i), len(piece)) + piece for i, piece in enumerate(pieces))
    (folder / "tok263.bin").write_bytes(struct.pack("<I", max(map(len, pieces))) + entries)


@made_once
def write_gpt2(folder: Path) -> None:
    """GPT-2's two files."""
    model = json.loads(tokenizer_json())["model"]
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")


def write_text(folder: Path) -> None:
    (folder / "fox.txt").write_text(TEXT)


def write_csv(folder: Path) -> None:
    lines = [",".join(ROWS[0]), *(",".join(map(str, row.values())) for row in ROWS)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")


def write_json_lines(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_yaml(folder: Path) -> None:
    (folder / "rows.yaml").write_text("".join(f"- {{x: {r['x']}, y: {r['y']}, z: {r['z']}}}\n" for r in ROWS))


def trained_run(shared: Path) -> Path:
    """The folder of a finished run of a small Llama."""
    return uninterrupted(Scenario("llama", "max_steps"), shared) / "run"
