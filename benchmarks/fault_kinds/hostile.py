"""Files made to harm: pickled code, YAML bombs, huge declared sizes, devices, zip bombs; each read by a command.

The command must end with exit code 1 or 2 and one sentence, within the limits of time and memory, and no code from the
file may run: payloads would create the file `executed`.
"""

import gzip
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

from benchmarks.fault_kinds import samples
from benchmarks.fault_kinds.cases import Kind, Outcome, failure, wanted
from benchmarks.fault_kinds.processes import exit_code
from benchmarks.fault_kinds.runs import QUIET, start
from zoo.llama import save_checkpoint

FIT = ["fit", "--config=tiny/llama", "--data_dir=fox.txt", "--output_dir=out", "--trainer.max_steps=1", *QUIET,
       "--data.seq_len=16", "--data.batch_size=2"]  # fmt: skip
REGRESS = ["fit", "--config=tiny/mini_rlm", "--data=TextRegression", "--data.target_columns=y", "--output_dir=out",
           "--data.text_column=x", "--trainer.max_steps=1", *QUIET]  # fmt: skip
GENERATE = ["generate", "--prompt=a", "--max_new_tokens=2"]


class Hostile(NamedTuple):
    """A file and a command that reads it.

    Args:
        name: what the file does.
        write: writes it into a folder, next to the text `fox.txt`.
        argv: the words of the command.
        may_succeed: whether exit code 0 is right too, because the harmless part of the file can be used.
    """

    name: str
    write: Callable[[Path], object]
    argv: list[str]
    may_succeed: bool = False


class Payload:
    """An object whose unpickling runs a command."""

    def __init__(self, function: Any = os.system, *arguments: Any) -> None:
        self.call = (function, arguments or ("touch executed",))

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


def _checkpoint(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Writes `evil.ckpt`, a changed checkpoint of a trained Llama, with its config.yaml."""

    def write(folder: Path) -> None:
        run = samples.trained_run(folder.parent)
        content = torch.load(run / "last.ckpt", weights_only=True)
        change(content)
        torch.save(content, folder / "evil.ckpt")
        (folder / "config.yaml").write_bytes((run / "config.yaml").read_bytes())

    return write


def _module_named_in_checkpoint(folder: Path) -> None:
    """A checkpoint that names a class in a module of the working directory, which must not be imported."""
    _write_module(folder)
    _checkpoint(lambda c: c.update(zoo={"model": "payload.Model"}))(folder)


def _write_module(folder: Path) -> None:
    (folder / "payload.py").write_text("open('executed', 'w')\nclass Model: pass\nclass LlamaLM: pass\n")


def _hyper_parameter(name: str, value: Any, group: str = "hyper_parameters") -> Callable[[Path], None]:
    return _checkpoint(lambda content: content[group].update({name: value}))


def _text(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def _pickle(name: str, content: Any, protocol: int = 2) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(content, protocol))


def _torch(name: str, content: Any, legacy: bool = False) -> Callable[[Path], object]:
    return lambda folder: torch.save(content, folder / name, _use_new_zipfile_serialization=not legacy)


def _bin(dim: int, hidden: int, layers: int, heads: int, kv: int, vocab: int, context: int) -> Callable[[Path], object]:
    return _text("evil.bin", struct.pack("<7i", dim, hidden, layers, heads, kv, vocab, context))


def _llama2c_pt(**settings: Any) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        content = samples.llama2c_pt()
        torch.save({**content, "model_args": content["model_args"] | settings}, folder / "evil.pt")

    return write


def _hugging_face(**settings: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_checkpoint(samples.llama(), folder / "hf")
        config = json.loads((folder / "hf" / "config.json").read_text())
        (folder / "hf" / "config.json").write_text(json.dumps(config | settings))

    return write


def _safetensors(header: bytes, size: int | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_checkpoint(samples.llama(), folder / "hf")
        length = struct.pack("<Q", len(header) if size is None else size)
        (folder / "hf" / "model.safetensors").write_bytes(length + header)

    return write


def _gpt2(vocabulary: dict[str, Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        samples.write_gpt2(folder)
        vocab = json.loads((folder / "vocab.json").read_text())
        (folder / "vocab.json").write_text(json.dumps(vocab | vocabulary))

    return write


def _zip_bomb(folder: Path) -> None:
    """A checkpoint whose data.pkl grows from 1 MB to 1 GB."""
    with zipfile.ZipFile(folder / "evil.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as entry:
            for _ in range(1024):
                entry.write(bytes(2**20))
        archive.writestr("archive/version", "3\n")


def _gzip_bomb(folder: Path) -> None:
    with gzip.open(folder / "rows.csv", "wb", compresslevel=1) as file:
        for _ in range(256):
            file.write(bytes(2**20))


def _link(name: str, target: str) -> Callable[[Path], object]:
    return lambda folder: os.symlink(target, folder / name)


def _fifo(name: str) -> Callable[[Path], object]:
    return lambda folder: os.mkfifo(folder / name)


def _aliases(levels: int, width: int) -> str:
    """YAML of a few lines whose aliases expand to width ** levels values."""
    lines = ["a0: &a0 [" + ", ".join(["x"] * width) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * width) + "]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def _merge_keys(levels: int) -> str:
    """YAML mappings that merge two copies of the one before."""
    lines = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


_YAML = {
    "dashes": "- " * 30_000,
    "open brackets": "[" * 30_000,
    "open braces": "{a: " * 30_000,
    "nested aliases": _aliases(12, 10),
    "merge keys": _merge_keys(40),
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
_DEEP_JSON = "[" * 100_000 + "]" * 100_000
_PICKLES: dict[str, Any] = {
    "os.system": Payload(),
    "eval": Payload(eval, "open('executed', 'w')"),
    "exec": Payload(exec, "open('executed', 'w')"),
    "a nested object": {"state_dict": {"a": [Payload()]}, "hyper_parameters": {}},
    "torch.load of another file": Payload(torch.load, "fox.txt"),
}


def _cases() -> list[Hostile]:
    cases: list[Hostile] = []
    # Pickled code, in both of torch's formats and as plain pickle, under every option that reads a file.
    for name, content in _PICKLES.items():
        for form, write in (
            ("torch.save", _torch("evil.ckpt", content)),
            ("torch.save before 2020", _torch("evil.ckpt", content, legacy=True)),
            ("pickle", _pickle("evil.ckpt", content)),
        ):
            cases.append(Hostile(f"pickle of {name} ({form})", write, [*GENERATE, "--ckpt_path=evil.ckpt"]))
    evil = _torch("evil.ckpt", {"model": Payload(), "zoo": Payload(), "tokenizer": Payload()})
    for option, argv in {
        "fit --ckpt_path": [*FIT, "--ckpt_path=evil.ckpt"],
        "fit --model.weights": [*FIT, "--model.weights=evil.ckpt"],
        "fit --data.tokenizer": [*FIT, "--data.tokenizer=evil.ckpt"],
        "validate": ["validate", "--ckpt_path=evil.ckpt"],
        "predict": ["predict", "--ckpt_path=evil.ckpt"],
        "export": ["export", "--ckpt_path=evil.ckpt"],
    }.items():
        cases.append(Hostile(f"pickle of os.system, read by {option}", evil, argv))
    # Names of classes and functions within checkpoints.
    by_checkpoint = [*GENERATE, "--ckpt_path=evil.ckpt"]
    cases += [
        Hostile("checkpoint that names a module of the working directory", _module_named_in_checkpoint, by_checkpoint),
        Hostile("the same for fit", _module_named_in_checkpoint, ["fit", "--ckpt_path=evil.ckpt"]),
        Hostile(
            "checkpoint that names a registered class in such a module",
            lambda f: (_write_module(f), _checkpoint(lambda c: c.update(zoo={"model": "payload.LlamaLM"}))(f)),
            by_checkpoint, True,
        ),
        Hostile(
            "checkpoint that names data in such a module",
            lambda f: (_write_module(f), _checkpoint(lambda c: c["zoo"].update(data="payload.Model"))(f)),
            by_checkpoint, True,
        ),
        Hostile(
            "checkpoint whose model is os.system", _checkpoint(lambda c: c.update(zoo={"model": "os.system"})),
            by_checkpoint,
        ),
        Hostile(
            "checkpoint with _instantiator os.system", _hyper_parameter("_instantiator", "os.system"),
            by_checkpoint, True,
        ),
        Hostile(
            "checkpoint with _class_path of a module",
            lambda f: (_write_module(f), _hyper_parameter("_class_path", "payload.Model")(f)),
            by_checkpoint, True,
        ),
        Hostile(
            "checkpoint with a class_path as a setting",
            _hyper_parameter("lr", {"class_path": "os.system", "init_args": {"command": "touch executed"}}),
            by_checkpoint,
        ),
        Hostile(
            "checkpoint whose data has a class_path as a setting",
            _hyper_parameter("data", {"class_path": "subprocess.Popen"}, "datamodule_hyper_parameters"),
            by_checkpoint,
        ),
    ]  # fmt: skip
    # YAML as a config, and as rows.
    for name, text in _YAML.items():
        cases.append(Hostile(f"config of {name}", _text("evil.yaml", text), ["fit", "--config=evil.yaml"]))
        cases.append(Hostile(f"rows of {name}", _text("rows.yaml", text), [*REGRESS, "--data_dir=rows.yaml"]))
    cases += [
        Hostile("option of open brackets", lambda f: None, [*FIT, "--model=" + "{a: [" * 20_000]),
        Hostile("config next to a checkpoint: dashes", lambda f: (
            _checkpoint(lambda c: None)(f), (f / "config.yaml").write_text("- " * 30_000)
        ), ["fit", "--ckpt_path=evil.ckpt"]),
        Hostile("deep JSON as rows", _text("rows.json", _DEEP_JSON), [*REGRESS, "--data_dir=rows.json"]),
        Hostile("deep JSON as labels", _text("labels.json", _DEEP_JSON), [
            "fit", "--config=tiny/llama_classifier", "--data.label_names=labels.json", "--output_dir=out"
        ]),
        Hostile("deep JSON as tokenizer", _text("tokenizer.json", '{"model": ' + _DEEP_JSON + "}"),
                [*FIT, "--data.tokenizer=tokenizer.json"]),
    ]  # fmt: skip
    # Sizes that a file declares and does not hold.
    billion, weights = 10**9, [*GENERATE, "--data.tokenizer=characters"]
    for name, write, file in (
        (".bin of 2^31 layers", _bin(8, 8, 2**31 - 1, 1, 1, 32, 16), "evil.bin"),
        (".bin of 2^31 tokens", _bin(8, 8, 1, 1, 1, 2**31 - 1, 16), "evil.bin"),
        (".bin of width 2^31", _bin(2**31 - 2, 8, 1, 1, 1, 32, 16), "evil.bin"),
        (".bin of a context of 2^31", _bin(8, 8, 1, 1, 1, 32, 2**31 - 1), "evil.bin"),
        (".bin of negative sizes", _bin(-8, -8, -1, -1, -1, -32, -16), "evil.bin"),
        (".bin of zeros", _text("evil.bin", bytes(28)), "evil.bin"),
        (".pt of 1e9 layers", _llama2c_pt(n_layers=billion), "evil.pt"),
        (".pt of a vocabulary of 1e12", _llama2c_pt(vocab_size=10**12), "evil.pt"),
        (".pt of a context of 1e12", _llama2c_pt(max_seq_len=10**12), "evil.pt"),
        (".pt of 1e30 heads", _llama2c_pt(n_heads=10**30), "evil.pt"),
        ("config.json of 1e9 layers", _hugging_face(num_hidden_layers=billion), "hf"),
        ("config.json of a context of 1e12", _hugging_face(max_position_embeddings=10**12), "hf"),
        ("config.json of a vocabulary of 1e12", _hugging_face(vocab_size=10**12), "hf"),
        ("config.json with deep JSON", _hugging_face(rope_parameters=json.loads("[" * 900 + "]" * 900)), "hf"),
        ("safetensors with a header of 2^63 bytes", _safetensors(b"{}", 2**63), "hf"),
        ("safetensors with a header of 2^40 bytes", _safetensors(b"{}", 2**40), "hf"),
        ("safetensors with deep JSON", _safetensors(_DEEP_JSON.encode()), "hf"),
        ("safetensors with a tensor of 2^60 bytes", _safetensors(
            b'{"model.norm.weight":{"dtype":"F32","shape":[288230376151711744],"data_offsets":[0,1152921504606846976]}}'
        ), "hf"),
        ("checkpoint of 1e9 layers", _hyper_parameter("n_layers", billion), "evil.ckpt"),
        ("checkpoint of a context of 1e12", _hyper_parameter("max_seq_len", 10**12), "evil.ckpt"),
        ("checkpoint of width 1e9", _hyper_parameter("dim", billion), "evil.ckpt"),
    ):  # fmt: skip
        cases.append(Hostile(name, write, [*weights, f"--ckpt_path={file}"]))
    cases += [
        Hostile("vocab.json with id 4294967294", _gpt2({"zz": 4294967294}), [*FIT, "--data.tokenizer=vocab.json"]),
        Hostile("vocab.json with id 10^30", _gpt2({"zz": 10**30}), [*FIT, "--data.tokenizer=vocab.json"]),
        Hostile("vocab.json with a negative id", _gpt2({"zz": -5}), [*FIT, "--data.tokenizer=vocab.json"]),
        Hostile("tok.bin with a piece of 4 GB", _text("tok.bin", struct.pack("<IfI", 4, 0.0, 2**32 - 1) + b"abc"),
                [*FIT, "--data.tokenizer=tok.bin"]),
        Hostile("number 1e999999999999999 in a row", _text("rows.csv", "x,y\n" + "a,1\n" * 9 + "a,1e999999999999999\n"),
                [*REGRESS, "--data_dir=rows.csv"]),
        Hostile("number 1e999999999999999 in a text", _text("rows.csv", "x,y\n" + "a 1e999999999999999,1\n" * 9),
                [*REGRESS, "--data_dir=rows.csv", "--data.round_digits=3"], True),
        Hostile("number of a million digits in a row", _text("rows.csv", "x,y\n" + "a,1\n" * 9 + f"a,{'9' * 10**6}\n"),
                [*REGRESS, "--data_dir=rows.csv"]),
        Hostile("number of a million digits in JSON", _text("rows.jsonl", '{"x": "a", "y": ' + "9" * 10**6 + "}\n"),
                [*REGRESS, "--data_dir=rows.jsonl"]),
        Hostile("CSV of 20,000 columns", _text("rows.csv", ",".join(f"c{i}" for i in range(20_000)) + "\n"),
                [*REGRESS, "--data_dir=rows.csv"]),
        Hostile("CSV of 20,000 columns and a row", _text(
            "rows.csv", ",".join(f"c{i}" for i in range(20_000)) + "\n" + ",".join(["1"] * 20_000) + "\n"
        ), [*REGRESS, "--data_dir=rows.csv"]),
        Hostile("CSV with an open quote of 20 MB", _text("rows.csv", 'x,y\n"' + "a,\n" * 7_000_000),
                [*REGRESS, "--data_dir=rows.csv"]),
        Hostile("zip bomb as a checkpoint", _zip_bomb, by_checkpoint),
        Hostile("gzip bomb as rows", _gzip_bomb, [*REGRESS, "--data_dir=rows.csv"]),
    ]  # fmt: skip
    # Paths that are no ordinary files.
    options = {
        "checkpoint": lambda path: [*GENERATE, f"--ckpt_path={path}"],
        "resumed checkpoint": lambda path: [*FIT, f"--ckpt_path={path}"],
        "weights": lambda path: [*FIT, f"--model.weights={path}"],
        "config": lambda path: ["fit", f"--config={path}"],
        "tokenizer": lambda path: [*FIT, f"--data.tokenizer={path}"],
        "text": lambda path: [*FIT[:2], *FIT[3:], f"--data_dir={path}"],
        "rows": lambda path: [*REGRESS, f"--data_dir={path}"],
    }
    for option, argv in options.items():
        cases += [
            Hostile(f"fifo as {option}", _fifo("fifo.csv"), argv("fifo.csv")),
            Hostile(f"/dev/zero as {option}", lambda f: None, argv("/dev/zero")),
            Hostile(f"link to /dev/zero as {option}", _link("zero.csv", "/dev/zero"), argv("zero.csv")),
            Hostile(f"link to itself as {option}", _link("loop.csv", "loop.csv"), argv("loop.csv")),
        ]
    return cases


CASES = _cases()


def try_hostile(index: int, rng: Random, folder: Path) -> Outcome:
    """Write a hostile file and run its command."""
    case = CASES[index % len(CASES)]
    samples.write_text(folder)
    case.write(folder)
    code = exit_code(start(case.argv, folder, "command"))
    errors = (folder / "command.err").read_text(errors="replace")
    lines = [line for line in errors.splitlines() if line.strip()]
    if (folder / "executed").exists():
        return failure(f"{case.name}: code from the file was executed")
    if code == 0 and case.may_succeed:
        return wanted("loaded without its code")
    if code not in (1, 2):
        how = "succeeded" if code == 0 else f"ended with {code}"
        return failure(f"{case.name}: the command {how} ({' '.join(lines[-1:])[:160]})")
    if "Traceback" in errors or len([line for line in lines if line.startswith("zoo: ")]) != 1 or len(lines) != 1:
        last = " ".join(lines[-1:])[:160]
        return failure(f"{case.name}: {len(lines)} lines instead of one sentence, the last: {last}")
    return wanted("refused")


HOSTILE = Kind(
    "hostile-files",
    "pickled code, YAML bombs, huge declared sizes, fifo, /dev/zero, zip bombs, with 4 GB of memory and 20 s: refused "
    "with one sentence, and no code runs",
    try_hostile,
    cases=len(CASES),
    quick=len(CASES) // 8,
    seconds=20,
    gigabytes=4,
    case_name=lambda index: CASES[index % len(CASES)].name,
)
