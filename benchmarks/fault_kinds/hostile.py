"""Files made to harm: pickled code, YAML bombs, huge declared sizes, devices, zip bombs; each read by a command.

The command must end with exit code 1 or 2 and one sentence, within the limits of time and memory, and no code from the
file may run: payloads would create the file `executed`.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks.commands import exit_code
from benchmarks.fault_kinds import samples
from benchmarks.fault_kinds.cases import Kind, Outcome, failure, wanted
from benchmarks.fault_kinds.hostile_files import (
    DEEP_JSON,
    PICKLES,
    YAML_TEXTS,
    Payload,
    bin_file,
    checkpoint,
    fifo,
    gpt2_files,
    gzip_bomb,
    hf_folder,
    hyper_parameter,
    link,
    module_named_in_checkpoint,
    pickle_file,
    pt_file,
    safetensors_folder,
    text_file,
    torch_file,
    write_module,
    zip_bomb,
)
from benchmarks.fault_kinds.runs import QUIET, start

FIT = ["fit", "--config=tiny/llama", "--data_dir=fox.txt", "--output_dir=out", "--trainer.max_steps=1", *QUIET,
       "--data.seq_len=16", "--data.batch_size=2"]  # fmt: skip
REGRESS = ["fit", "--config=tiny/mini_rlm", "--data=TextRegression", "--data.target_columns=y", "--output_dir=out",
           "--data.text_column=x", "--trainer.max_steps=1", *QUIET]  # fmt: skip
ROWS = "x,y\n" + "a,1\n" * 9
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


def _cases() -> list[Hostile]:
    cases: list[Hostile] = []
    # Pickled code, in both of torch's formats and as plain pickle, under every option that reads a file.
    for name, content in PICKLES.items():
        for form, write in (
            ("torch.save", torch_file("evil.ckpt", content)),
            ("torch.save before 2020", torch_file("evil.ckpt", content, legacy=True)),
            ("pickle", pickle_file("evil.ckpt", content)),
        ):
            cases.append(Hostile(f"pickle of {name} ({form})", write, [*GENERATE, "--ckpt_path=evil.ckpt"]))
    evil = torch_file("evil.ckpt", {"model": Payload(), "zoo": Payload(), "tokenizer": Payload()})
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
        Hostile("checkpoint that names a module of the working directory", module_named_in_checkpoint, by_checkpoint),
        Hostile("the same for fit", module_named_in_checkpoint, ["fit", "--ckpt_path=evil.ckpt"]),
        Hostile(
            "checkpoint that names a registered class in such a module",
            lambda f: (write_module(f), checkpoint(lambda c: c.update(zoo={"model": "payload.LlamaLM"}))(f)),
            by_checkpoint, True,
        ),
        Hostile(
            "checkpoint that names data in such a module",
            lambda f: (write_module(f), checkpoint(lambda c: c["zoo"].update(data="payload.Model"))(f)),
            by_checkpoint, True,
        ),
        Hostile(
            "checkpoint whose model is os.system", checkpoint(lambda c: c.update(zoo={"model": "os.system"})),
            by_checkpoint,
        ),
        Hostile(
            "checkpoint with _instantiator os.system", hyper_parameter("_instantiator", "os.system"),
            by_checkpoint, True,
        ),
        Hostile(
            "checkpoint with _class_path of a module",
            lambda f: (write_module(f), hyper_parameter("_class_path", "payload.Model")(f)),
            by_checkpoint, True,
        ),
        Hostile(
            "checkpoint with a class_path as a setting",
            hyper_parameter("lr", {"class_path": "os.system", "init_args": {"command": "touch executed"}}),
            by_checkpoint,
        ),
        Hostile(
            "checkpoint whose data has a class_path as a setting",
            hyper_parameter("data", {"class_path": "subprocess.Popen"}, "datamodule_hyper_parameters"),
            by_checkpoint,
        ),
    ]  # fmt: skip
    # YAML as a config, and as rows.
    for name, text in YAML_TEXTS.items():
        cases.append(Hostile(f"config of {name}", text_file("evil.yaml", text), ["fit", "--config=evil.yaml"]))
        cases.append(Hostile(f"rows of {name}", text_file("rows.yaml", text), [*REGRESS, "--data_dir=rows.yaml"]))
    cases += [
        Hostile("option of open brackets", lambda f: None, [*FIT, "--model=" + "{a: [" * 20_000]),
        Hostile("config next to a checkpoint: dashes", lambda f: (
            checkpoint(lambda c: None)(f), (f / "config.yaml").write_text("- " * 30_000)
        ), ["fit", "--ckpt_path=evil.ckpt"]),
        Hostile("deep JSON as rows", text_file("rows.json", DEEP_JSON), [*REGRESS, "--data_dir=rows.json"]),
        Hostile("deep JSON as labels", text_file("labels.json", DEEP_JSON), [
            "fit", "--config=tiny/llama_classifier", "--data.label_names=labels.json", "--output_dir=out"
        ]),
        Hostile("deep JSON as tokenizer", text_file("tokenizer.json", '{"model": ' + DEEP_JSON + "}"),
                [*FIT, "--data.tokenizer=tokenizer.json"]),
    ]  # fmt: skip
    # Sizes that a file declares and does not hold.
    billion, weights = 10**9, [*GENERATE, "--data.tokenizer=characters"]
    for name, write, file in (
        (".bin of 2^31 layers", bin_file(8, 8, 2**31 - 1, 1, 1, 32, 16), "evil.bin"),
        (".bin of 2^31 tokens", bin_file(8, 8, 1, 1, 1, 2**31 - 1, 16), "evil.bin"),
        (".bin of width 2^31", bin_file(2**31 - 2, 8, 1, 1, 1, 32, 16), "evil.bin"),
        (".bin of a context of 2^31", bin_file(8, 8, 1, 1, 1, 32, 2**31 - 1), "evil.bin"),
        (".bin of negative sizes", bin_file(-8, -8, -1, -1, -1, -32, -16), "evil.bin"),
        (".bin of zeros", text_file("evil.bin", bytes(28)), "evil.bin"),
        (".pt of 1e9 layers", pt_file(n_layers=billion), "evil.pt"),
        (".pt of a vocabulary of 1e12", pt_file(vocab_size=10**12), "evil.pt"),
        (".pt of a context of 1e12", pt_file(max_seq_len=10**12), "evil.pt"),
        (".pt of 1e30 heads", pt_file(n_heads=10**30), "evil.pt"),
        ("config.json of 1e9 layers", hf_folder(num_hidden_layers=billion), "hf"),
        ("config.json of a context of 1e12", hf_folder(max_position_embeddings=10**12), "hf"),
        ("config.json of a vocabulary of 1e12", hf_folder(vocab_size=10**12), "hf"),
        ("config.json with deep JSON", hf_folder(rope_parameters=json.loads("[" * 900 + "]" * 900)), "hf"),
        ("safetensors with a header of 2^63 bytes", safetensors_folder(b"{}", 2**63), "hf"),
        ("safetensors with a header of 2^40 bytes", safetensors_folder(b"{}", 2**40), "hf"),
        ("safetensors with deep JSON", safetensors_folder(DEEP_JSON.encode()), "hf"),
        ("safetensors with a tensor of 2^60 bytes", safetensors_folder(
            b'{"model.norm.weight":{"dtype":"F32","shape":[288230376151711744],"data_offsets":[0,1152921504606846976]}}'
        ), "hf"),
        ("checkpoint of 1e9 layers", hyper_parameter("n_layers", billion), "evil.ckpt"),
        ("checkpoint of a context of 1e12", hyper_parameter("max_seq_len", 10**12), "evil.ckpt"),
        ("checkpoint of width 1e9", hyper_parameter("dim", billion), "evil.ckpt"),
    ):  # fmt: skip
        cases.append(Hostile(name, write, [*weights, f"--ckpt_path={file}"]))
    cases += [
        Hostile("vocab.json with id 4294967294", gpt2_files({"zz": 4294967294}), [*FIT, "--data.tokenizer=vocab.json"]),
        Hostile("vocab.json with id 10^30", gpt2_files({"zz": 10**30}), [*FIT, "--data.tokenizer=vocab.json"]),
        Hostile("vocab.json with a negative id", gpt2_files({"zz": -5}), [*FIT, "--data.tokenizer=vocab.json"]),
        Hostile("tok.bin with a piece of 4 GB", text_file("tok.bin", struct.pack("<IfI", 4, 0.0, 2**32 - 1) + b"abc"),
                [*FIT, "--data.tokenizer=tok.bin"]),
        Hostile("number 1e999999999999999 in a row", text_file("rows.csv", ROWS + "a,1e999999999999999\n"),
                [*REGRESS, "--data_dir=rows.csv"]),
        Hostile("number 1e999999999999999 in a text", text_file("rows.csv", "x,y\n" + "a 1e999999999999999,1\n" * 9),
                [*REGRESS, "--data_dir=rows.csv", "--data.round_digits=3"], True),
        Hostile("number of a million digits in a row", text_file("rows.csv", ROWS + f"a,{'9' * 10**6}\n"),
                [*REGRESS, "--data_dir=rows.csv"]),
        Hostile("number of a million digits in JSON", text_file("rows.jsonl", '{"x": "a", "y": ' + "9" * 10**6 + "}\n"),
                [*REGRESS, "--data_dir=rows.jsonl"]),
        Hostile("CSV of 20,000 columns", text_file("rows.csv", ",".join(f"c{i}" for i in range(20_000)) + "\n"),
                [*REGRESS, "--data_dir=rows.csv"]),
        Hostile("CSV of 20,000 columns and a row", text_file(
            "rows.csv", ",".join(f"c{i}" for i in range(20_000)) + "\n" + ",".join(["1"] * 20_000) + "\n"
        ), [*REGRESS, "--data_dir=rows.csv"]),
        Hostile("CSV with an open quote of 20 MB", text_file("rows.csv", 'x,y\n"' + "a,\n" * 7_000_000),
                [*REGRESS, "--data_dir=rows.csv"]),
        Hostile("zip bomb as a checkpoint", zip_bomb, by_checkpoint),
        Hostile("gzip bomb as rows", gzip_bomb, [*REGRESS, "--data_dir=rows.csv"]),
    ]  # fmt: skip
    # Paths that are not regular files.
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
            Hostile(f"fifo as {option}", fifo("fifo.csv"), argv("fifo.csv")),
            Hostile(f"/dev/zero as {option}", lambda f: None, argv("/dev/zero")),
            Hostile(f"link to /dev/zero as {option}", link("zero.csv", "/dev/zero"), argv("zero.csv")),
            Hostile(f"link to itself as {option}", link("loop.csv", "loop.csv"), argv("loop.csv")),
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
    quick=16,
    seconds=20,
    gigabytes=4,
    case_name=lambda index: CASES[index % len(CASES)].name,
)
