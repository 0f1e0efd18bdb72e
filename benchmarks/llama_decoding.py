"""Speed of decoding with a Llama, next to transformers and llama2.c, and the loss of weights in fewer bits."""

import functools
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.llama_pair import STORIES, Row, build, peer_of, row
from benchmarks.measure import in_turn
from zoo.llama import Llama, load_checkpoint, save_checkpoint
from zoo.llama.decoder import LlamaDecoder


def decode(shape: str, repeats: int, compile: bool, llama2c: Path | None = None, n: int = 200) -> list[Row]:
    """Greedy decoding of n tokens after one: tokens per second, and the limit set by memory bandwidth.

    With `llama2c`, its program `run` on the same weights is a second peer; reading the file is part of its time.
    """
    model = load_checkpoint(STORIES) if shape == "260K" and STORIES.exists() else build(shape)
    peer, prompt = peer_of(model.eval()).eval(), torch.tensor([[1]])
    peer.generation_config.eos_token_id = None

    def zoo_run(**options: Any) -> Callable[[], Tensor]:
        return lambda: model.generate(prompt, n, temperature=0, **options)

    def peer_run(**options: Any) -> Callable[[], Tensor]:
        return lambda: peer.generate(prompt, max_new_tokens=n, do_sample=False, pad_token_id=0, **options)

    candidates: dict[str, Callable[[], Any]] = {
        "peer, dynamic cache": peer_run(),
        "peer, static cache": peer_run(cache_implementation="static"),
        "eager fp32": zoo_run(),
        "eager bf16": zoo_run(precision="bf16"),
    }
    if compile:
        for precision in ("fp32", "bf16", "int8"):
            candidates[f"compiled {precision}"] = zoo_run(compile=True, precision=precision)
    folder = tempfile.TemporaryDirectory()
    if llama2c:
        command = llama2c_command(llama2c, model, Path(folder.name), n)
        candidates["llama2.c"] = lambda: subprocess.run(command, capture_output=True, check=True)
    assert torch.equal(zoo_run()(), peer_run()()) or shape != "260K", "the two models generate different tokens"
    matrices = LlamaDecoder(model, 1, n).matrices
    floats = sum(w.numel() for kind in matrices for w in kind) + model.output_weight.numel()
    # Bandwidth of one thread: the time to sum a tensor as large as the weights read per token.
    block = torch.ones(floats)
    candidates["read"] = lambda: [block.sum() for _ in range(10)]
    with torch.inference_mode():
        rate = {name: n / seconds for name, seconds in in_turn(candidates, repeats).items()}
    bandwidth = rate.pop("read") / n * 10 * floats * 4  # bytes a second
    folder.cleanup()
    best = max(value for name, value in rate.items() if name.startswith("peer"))
    rows = []
    if llama2c:
        c = rate.pop("llama2.c")
        ours = {name: value for name, value in rate.items() if not name.startswith("peer")}
        rows = [row(f"decode {shape}, {name}, llama2.c", value, c, "tokens/s") for name, value in ours.items()]
    for name, value in rate.items():
        if not name.startswith("peer"):
            floor = bandwidth / (floats * (2 if "bf16" in name else 1 if "int8" in name else 4))
            more = {"floor": round(floor), "share_of_floor": round(value / floor, 3), "GB_per_s": bandwidth / 1e9}
            rows.append(row(f"decode {shape}, {name}", value, best, "tokens/s", **more))
    return rows


def decode_batch(repeats: int, llama2c: Path | None, batch: int = 8, n: int = 200) -> list[Row]:
    """Greedy decoding of several rows of the 15M shape together: tokens per second of all rows.

    The peers are transformers, and as many processes of llama2.c as rows, on one core as the zoo's one thread.
    """
    model, prompts = build("15M").eval(), torch.ones(batch, 1, dtype=torch.long)
    peer = peer_of(model).eval()
    peer.generation_config.eos_token_id = None

    def peer_run(**options: Any) -> Callable[[], Tensor]:
        return lambda: peer.generate(prompts, max_new_tokens=n, do_sample=False, pad_token_id=0, **options)

    candidates: dict[str, Callable[[], Any]] = {
        "peer, dynamic cache": peer_run(),
        "peer, static cache": peer_run(cache_implementation="static"),
    }
    for precision in ("fp32", "bf16", "int8"):
        options: dict[str, Any] = {"temperature": 0, "compile": True, "precision": precision}
        candidates[precision] = functools.partial(model.generate, prompts, n, **options)
    with tempfile.TemporaryDirectory() as folder:
        if llama2c:
            command, cores = llama2c_command(llama2c, model, Path(folder), n), os.sched_getaffinity(0)

            def processes() -> None:
                os.sched_setaffinity(0, {min(cores)})  # inherited by the processes
                running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(batch)]
                os.sched_setaffinity(0, cores)
                assert not any(process.wait() for process in running)

            candidates["llama2.c"] = processes
        with torch.inference_mode():
            rate = {name: batch * n / seconds for name, seconds in in_turn(candidates, repeats).items()}
    rate["peer"] = max(value for name, value in rate.items() if name.startswith("peer"))
    peers = {"": "peer", f", {batch} x llama2.c": "llama2.c"}
    return [
        row(f"decode 15M, {batch} rows, compiled {precision}{suffix}", rate[precision], rate[name], "tokens/s")
        for suffix, name in peers.items()
        if name in rate
        for precision in ("fp32", "bf16", "int8")
    ]


def llama2c_command(program: Path, model: Llama, folder: Path, n: int) -> list[str | Path]:
    """The command that decodes n tokens greedily with llama2.c, whose files are written to a folder."""
    weights, vocabulary = folder / "model.bin", folder / "tokenizer.bin"
    save_checkpoint(model, weights, format="llama2c")
    write_vocabulary(vocabulary, model.config.vocab_size)
    return [program, weights, "-t", "0", "-n", str(n + 1), "-z", vocabulary]


def write_vocabulary(path: Path, size: int) -> None:
    """A tokenizer.bin of llama2.c with any `size` texts; what is printed is not read."""
    with path.open("wb") as file:
        file.write(struct.pack("i", 8))
        for id in range(size):
            text = f"{id} ".encode()
            file.write(struct.pack("fi", 0.0, len(text)) + text)


def precision(n: int = 250) -> list[Row]:
    """Nats per token of texts that stories260K draws in fp32, in fewer bits (ours) and in fp32 (peer)."""
    model = load_checkpoint(STORIES).eval()
    text = model.generate(torch.full((16, 1), 1), n, temperature=1.0, seed=0, stop=())

    @torch.inference_mode()
    def nats(precision: str) -> float:
        decoder = LlamaDecoder(model, len(text), n + 1, precision)
        logits = [decoder.prefill(text[:, :1]), *(decoder.step(column) for column in text[:, 1:-1].T)]
        return torch.nn.functional.cross_entropy(torch.stack(logits, 2), text[:, 1:]).item()

    exact = nats("fp32")
    return [row(f"nats per token 260K, {name}", nats(name), exact, "nats") for name in ("bf16", "int8")]
