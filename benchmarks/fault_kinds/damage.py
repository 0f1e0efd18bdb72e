"""Files cut at a random place, and files with one flipped bit: refused, or loaded with the values of the complete file.

A format without a checksum cannot tell a flipped bit in a number from another number; such cases are counted apart.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from benchmarks.commands import exit_code
from benchmarks.fault_kinds import samples
from benchmarks.fault_kinds.cases import Kind, Outcome, failure, outcome_of, wanted
from benchmarks.fault_kinds.mutations import flip_bit
from benchmarks.fault_kinds.runs import start, unequal
from zoo.datamodules import TextLM, TextRegression
from zoo.files.checkpoints import read_checkpoint
from zoo.llama import LlamaLM, load_checkpoint
from zoo.tokenizers import load_tokenizer


class Target(NamedTuple):
    """A file to damage.

    Args:
        write: writes the file, and those that it needs, into a folder; it may look into the folder of shared files.
        file: pattern of the file's name; of several files a random one is damaged.
        load: loads it from the folder.
        has_checksum: whether another value must never be loaded.
        must_be_complete: whether a cut file must never be loaded.
    """

    write: Callable[[Path], object]
    file: str
    load: Callable[[Path], Any]
    has_checksum: bool = False
    must_be_complete: bool = True


def _copy_checkpoint(folder: Path) -> None:
    run = samples.trained_run(folder.parent)
    for name in ("last.ckpt", "config.yaml"):
        shutil.copy(run / name, folder / name)


def _run_command(folder: Path) -> str:
    """The output of `zoo generate`, which depends on all weights; raises with its message if it fails."""
    argv = ["generate", "--ckpt_path=last.ckpt", "--prompt=The ", "--max_new_tokens=12", "--temperature=1"]
    code = exit_code(start(argv, folder, "generate"))
    errors = (folder / "generate.err").read_text(errors="replace")
    if code != 0:
        if code not in (1, 2) or "Traceback" in errors or len(errors.strip().splitlines()) != 1:
            raise RuntimeError(f"exit code {code}, {len(errors.splitlines())} lines: {errors.strip()[-200:]}")
        raise OSError(errors.strip())
    return (folder / "generate.out").read_text(errors="replace")


def _packed_tokens(folder: Path) -> list[np.ndarray]:
    data = TextLM(str(folder / "fox.txt"), seq_len=16, cache_dir=str(folder / "cache"))
    return [np.array(data.tokens(split)) for split in ("train", "val")] + [np.array(data.stats("train")["words"])]


def _write_packed(folder: Path) -> None:
    samples.write_text(folder)
    _packed_tokens(folder)


def _rows(folder: Path) -> Any:
    [file] = folder.glob("rows.*")
    data = TextRegression(str(file), text_column="x", target_columns="y", cache_dir=str(folder / "cache"))
    return [data.texts(split) + data.targets(split).tolist() for split in ("train", "val")]


def _encode(file: Path) -> list[int]:
    return load_tokenizer(file).encode("a fox, ab ba")


TARGETS: dict[str, Target] = {
    "checkpoint": Target(_copy_checkpoint, "last.ckpt", lambda f: load_checkpoint(f / "last.ckpt").state_dict(), True),
    "checkpoint, all parts": Target(_copy_checkpoint, "last.ckpt", lambda f: read_checkpoint(f / "last.ckpt"), True),
    "checkpoint, load_from_checkpoint": Target(
        _copy_checkpoint, "last.ckpt", lambda f: LlamaLM.load_from_checkpoint(f / "last.ckpt").state_dict(), True
    ),
    "checkpoint, zoo generate": Target(_copy_checkpoint, "last.ckpt", _run_command, True),
    ".bin": Target(samples.write_bin, "model.bin", lambda f: load_checkpoint(f / "model.bin").state_dict()),
    ".pt": Target(samples.write_pt, "model.pt", lambda f: load_checkpoint(f / "model.pt").state_dict()),
    "safetensors": Target(samples.write_hugging_face, "model.safetensors", lambda f: load_checkpoint(f).state_dict()),
    "shards and index": Target(samples.write_shards, "model*", lambda f: load_checkpoint(f).state_dict()),
    "text cache": Target(_write_packed, "cache/tokens/*/*.*", _packed_tokens, True),
    # The format does not store the number of tokens: a file cut between two tokens is a valid, smaller vocabulary.
    "tok*.bin": Target(
        samples.write_llama2c_tokenizer, "tok263.bin", lambda f: _encode(f / "tok263.bin"), must_be_complete=False
    ),
    "tokenizer.json": Target(samples.write_tokenizer, "tokenizer.json", lambda f: _encode(f / "tokenizer.json")),
    "CSV": Target(samples.write_csv, "rows.csv", _rows, must_be_complete=False),
    "JSON lines": Target(samples.write_json_lines, "rows.jsonl", _rows, must_be_complete=False),
    "YAML": Target(samples.write_yaml, "rows.yaml", _rows, must_be_complete=False),
}


def target_name(index: int) -> str:
    return [*TARGETS][index % len(TARGETS)]


def _damage(index: int, rng: Random, folder: Path, change: Callable[[bytes, Random], bytes], is_cut: bool) -> Outcome:
    """Write the file, load it, damage it, load it again and compare."""
    name = target_name(index)
    target = TARGETS[name]
    target.write(folder)
    expected = target.load(folder)
    files = sorted(file for file in folder.glob(target.file) if file.is_file() and file.stat().st_size)
    file = rng.choice([f for f in files if f.suffix != ".lock"])
    before = file.read_bytes()
    damaged = change(before, rng)
    file.write_bytes(damaged)
    loaded: list[Any] = []
    names = [str(file), file.name, str(folder)] if name != "text cache" else []
    outcome = outcome_of(lambda: loaded.append(target.load(folder)), names)
    place = f"cut to {len(damaged)} of {len(before)} bytes" if is_cut else f"bit of byte {_changed(before, damaged)}"
    about = f"{name} {file.name}, {place}"
    if not outcome.is_wanted:
        return failure(f"{about}: {outcome.what}")
    if not loaded:
        return wanted("refused")
    if _same(expected, loaded[0]):
        return wanted("loaded unchanged")
    if target.has_checksum or (is_cut and target.must_be_complete):
        return failure(f"{about}: it was loaded with other values")
    return wanted("loaded, no checksum in the format")


def _same(expected: Any, got: Any) -> bool:
    if isinstance(expected, list) and expected and isinstance(expected[0], np.ndarray):
        return all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))
    return not unequal(_plain(expected), _plain(got), "it")


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value


def _changed(before: bytes, after: bytes) -> int:
    return next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)


def try_truncation(index: int, rng: Random, folder: Path) -> Outcome:
    """Cut a file at a random place; short and nearly complete ones are as likely as others."""

    def cut(data: bytes, rng: Random) -> bytes:
        size, few = len(data), rng.randrange(min(64, len(data)))
        return data[: rng.choice([rng.randrange(size), few, size - 1 - few])]

    return _damage(index, rng, folder, cut, is_cut=True)


def try_flip(index: int, rng: Random, folder: Path) -> Outcome:
    """Flip one bit of a file."""
    return _damage(index, rng, folder, flip_bit, is_cut=False)


TRUNCATIONS = Kind(
    "truncations",
    "a file cut at a random place (checkpoint, .bin, .pt, safetensors, index, text cache, tokenizer, table): refused "
    "or loaded unchanged; a table may lose its last rows",
    try_truncation,
    cases=280,
    quick=28,
    seconds=60,
    gigabytes=4,
    case_name=target_name,
)
FLIPS = Kind(
    "bit-flips",
    "one flipped bit of such a file: refused or loaded unchanged; a format without a checksum may give other values",
    try_flip,
    cases=420,
    quick=28,
    seconds=60,
    gigabytes=4,
    case_name=target_name,
)
