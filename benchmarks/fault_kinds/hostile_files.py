"""Writers of hostile files: pickled code, YAML bombs, huge declared sizes, zip bombs, devices.

Payloads would create the file `executed` in the working directory.
"""

import gzip
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.fault_kinds import samples
from zoo.llama import save_checkpoint


class Payload:
    """An object whose unpickling runs a command."""

    def __init__(self, function: Any = os.system, *arguments: Any) -> None:
        self.call = (function, arguments or ("touch executed",))

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


def checkpoint(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Writes `evil.ckpt`, a changed checkpoint of a trained Llama, with its config.yaml."""

    def write(folder: Path) -> None:
        run = samples.trained_run(folder.parent)
        content = torch.load(run / "last.ckpt", weights_only=True)
        change(content)
        torch.save(content, folder / "evil.ckpt")
        (folder / "config.yaml").write_bytes((run / "config.yaml").read_bytes())

    return write


def module_named_in_checkpoint(folder: Path) -> None:
    """A checkpoint that names a class in a module of the working directory, which must not be imported."""
    write_module(folder)
    checkpoint(lambda c: c.update(zoo={"model": "payload.Model"}))(folder)


def write_module(folder: Path) -> None:
    (folder / "payload.py").write_text("open('executed', 'w')\nclass Model: pass\nclass LlamaLM: pass\n")


def hyper_parameter(name: str, value: Any, group: str = "hyper_parameters") -> Callable[[Path], None]:
    return checkpoint(lambda content: content[group].update({name: value}))


def text_file(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def pickle_file(name: str, content: Any, protocol: int = 2) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(content, protocol))


def torch_file(name: str, content: Any, legacy: bool = False) -> Callable[[Path], object]:
    return lambda folder: torch.save(content, folder / name, _use_new_zipfile_serialization=not legacy)


def bin_file(*header: int) -> Callable[[Path], object]:
    """Writes a .bin that ends after its header: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, context."""
    return text_file("evil.bin", struct.pack("<7i", *header))


def pt_file(**settings: Any) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        content = samples.llama2c_pt()
        torch.save({**content, "model_args": content["model_args"] | settings}, folder / "evil.pt")

    return write


def hf_folder(**settings: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_checkpoint(samples.llama(), folder / "hf")
        config = json.loads((folder / "hf" / "config.json").read_text())
        (folder / "hf" / "config.json").write_text(json.dumps(config | settings))

    return write


def safetensors_folder(header: bytes, size: int | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_checkpoint(samples.llama(), folder / "hf")
        length = struct.pack("<Q", len(header) if size is None else size)
        (folder / "hf" / "model.safetensors").write_bytes(length + header)

    return write


def gpt2_files(vocabulary: dict[str, Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        samples.write_gpt2(folder)
        vocab = json.loads((folder / "vocab.json").read_text())
        (folder / "vocab.json").write_text(json.dumps(vocab | vocabulary))

    return write


def zip_bomb(folder: Path) -> None:
    """A checkpoint whose data.pkl grows from 1 MB to 1 GB."""
    with zipfile.ZipFile(folder / "evil.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as entry:
            for _ in range(1024):
                entry.write(bytes(2**20))
        archive.writestr("archive/version", "3\n")


def gzip_bomb(folder: Path) -> None:
    with gzip.open(folder / "rows.csv", "wb", compresslevel=1) as file:
        for _ in range(256):
            file.write(bytes(2**20))


def link(name: str, target: str) -> Callable[[Path], object]:
    return lambda folder: os.symlink(target, folder / name)


def fifo(name: str) -> Callable[[Path], object]:
    return lambda folder: os.mkfifo(folder / name)


def aliases(levels: int, width: int) -> str:
    """YAML of a few lines whose aliases expand to width ** levels values."""
    lines = ["a0: &a0 [" + ", ".join(["x"] * width) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * width) + "]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def merge_keys(levels: int) -> str:
    """YAML mappings that merge two copies of the one before."""
    lines = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


YAML_TEXTS = {
    "dashes": "- " * 30_000,
    "open brackets": "[" * 30_000,
    "open braces": "{a: " * 30_000,
    "nested aliases": aliases(12, 10),
    "merge keys": merge_keys(40),
    "a recursive alias": "model: &a\n  init_args: *a\n",
    "a recursive list": "model: &a [*a]\n",
    "an anchor of itself as a key": "? &a [*a]\n: 1\n",
    "an object tag": "!!python/object/apply:os.system ['touch executed']\n",
    "an object tag as a value": "model: !!python/object/new:os.system ['touch executed']\n",
    "a binary tag": "model: !!binary '====='\n",
    "an integer of a million digits": "trainer: {max_steps: " + "9" * 1_000_000 + "}\n",
    "a huge exponent": "trainer: {max_steps: 1e999999999999}\n",
    "base-60 numbers": "trainer: {max_steps: " + ":".join(["59"] * 5000) + "}\n",
    "deep indentation": "".join(" " * i + f"k{i}:\n" for i in range(3000)),
    "UTF-16 without text": b"\xff\xfe\x00\xd8",
    "Latin-1": b"model: \xe9\n",
    "NUL bytes": bytes(100),
}
DEEP_JSON = "[" * 100_000 + "]" * 100_000
PICKLES: dict[str, Any] = {
    "os.system": Payload(),
    "eval": Payload(eval, "open('executed', 'w')"),
    "exec": Payload(exec, "open('executed', 'w')"),
    "a nested object": {"state_dict": {"a": [Payload()]}, "hyper_parameters": {}},
    "torch.load of another file": Payload(torch.load, "fox.txt"),
}
