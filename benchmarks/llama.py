"""Speed and memory of zoo.llama compared with transformers' LlamaForCausalLM, with equal weights in the same run.

Measured: decoding at batch sizes 1 and 8, also against llama2.c; nats per token with weights in fewer bits; a training
step, its peak memory, and AdamW against torch's; with CUDA also a training step of the 110M shape. Each figure is the
median of `--repeats` rounds in which the candidates alternate, so that load on the machine affects all of them;
transformers runs with its fastest settings. Rows are written to `--output` as JSON and printed as a table.
"""

import argparse
import functools
import gc
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import peak_flops, training_step, with_smaller_batches  # noqa: E402
from benchmarks.measure import facts, in_turn, store  # noqa: E402
from zoo.llama import Llama, LlamaConfig, load_checkpoint, save_checkpoint  # noqa: E402
from zoo.llama.decoder import LlamaDecoder  # noqa: E402
from zoo.optim import AdamW  # noqa: E402

STORIES = Path(os.environ.get("ZOO_DATA", ROOT.parent / "shared" / "data")) / "stories260K" / "stories260K.bin"
SHAPES = {
    "260K": {"vocab_size": 512, "dim": 64, "n_layers": 5, "n_heads": 8, "n_kv_heads": 4, "hidden_dim": 172},
    "15M": {"dim": 288, "n_layers": 6, "n_heads": 6, "max_seq_len": 256},
    "110M": {"dim": 768, "n_layers": 12, "n_heads": 12, "max_seq_len": 1024},
}
Row = dict[str, Any]


def build(shape: str) -> Llama:
    torch.manual_seed(0)
    return Llama(LlamaConfig(**SHAPES[shape]))


def peer_of(model: Llama) -> Any:
    """transformers' model with the weights of `model`."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(model, folder)
        return LlamaForCausalLM.from_pretrained(folder)


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
    """Greedy decoding of several rows of the 15M shape at once: tokens per second of all rows.

    The peers are transformers, and as many processes of llama2.c as rows, on one core as the zoo's one thread.
    """
    model, prompts = build("15M").eval(), torch.ones(batch, 1, dtype=torch.long)
    peer = peer_of(model).eval()
    peer.generation_config.eos_token_id = None
    candidates: dict[str, Callable[[], Any]] = {
        "peer": lambda: peer.generate(prompts, max_new_tokens=n, do_sample=False, pad_token_id=0)
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


def training(shape: str, batch: int, length: int) -> dict[str, Callable[[], Any]]:
    """A training step of either model, on equal weights and tokens: forward, backward and optimizer."""
    model = build(shape).train()
    peer = peer_of(model).train()
    tokens = torch.randint(model.config.vocab_size, (batch, length + 1))
    settings = {"lr": 1e-4, "weight_decay": 0.1}
    optimizer = AdamW(model.parameters(), **settings)
    # fused is the fastest of torch's three implementations, on a CPU and on a GPU.
    peer_optimizer = torch.optim.AdamW(peer.parameters(), fused=True, **settings)

    def zoo_step() -> None:
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()

    def peer_step() -> None:  # transformers shifts the labels
        peer(input_ids=tokens[:, :-1], labels=tokens[:, :-1], use_cache=False).loss.backward()
        peer_optimizer.step()
        peer_optimizer.zero_grad()

    return {"ours": zoo_step, "peer": peer_step}


def train(repeats: int) -> list[Row]:
    seconds = in_turn(training("15M", 8, 256), repeats)
    return [row("train step 15M, 8 x 256, fp32", seconds["ours"], seconds["peer"], "s")]


def memory(repeats: int) -> list[Row]:
    """Peak memory of three training steps, above that before the model was built, each in a separate process."""
    peaks = {}
    for name in ("ours", "peer"):
        command = [sys.executable, __file__, "--memory-of", name]
        peaks[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return [row("peak memory of training 15M, 8 x 256, fp32", peaks["ours"], peaks["peer"], "MB")]


def memory_of(name: str) -> None:
    """Print the peak memory in MB of three training steps of "ours" or "peer"."""
    import transformers  # noqa: F401 - imported in both processes, so that it affects neither difference

    def megabytes(kind: str) -> float:
        """This process's memory now (VmRSS) or at its peak (VmHWM); getrusage would include the parent's."""
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(kind))

    model = build("15M")
    tokens = torch.randint(model.config.vocab_size, (8, 256))
    if name == "ours":
        before = megabytes("VmRSS")
        optimizer: Any = AdamW(model.parameters())

        def loss() -> Tensor:
            return model.loss(tokens, tokens)
    else:
        peer = peer_of(model)
        del model
        gc.collect()
        before = megabytes("VmRSS")
        optimizer = torch.optim.AdamW(peer.parameters(), fused=True)

        def loss() -> Tensor:
            return peer(input_ids=tokens, labels=tokens, use_cache=False).loss

    for _ in range(3):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    print(megabytes("VmHWM") - before)


def adamw(repeats: int) -> list[Row]:
    """The optimizer's step on the parameters of the 15M shape."""

    def stepping(make: Callable[..., Any]) -> Callable[[], Any]:
        parameters = [torch.nn.Parameter(torch.randn_like(p)) for p in build("15M").parameters()]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer = make(parameters, lr=1e-4, weight_decay=0.1)
        return lambda: [optimizer.step() for _ in range(5)]

    seconds = in_turn(
        {
            "ours": stepping(AdamW),
            "ours plain": stepping(lambda p, **s: AdamW(p, fused=False, **s)),
            "foreach": stepping(lambda p, **s: torch.optim.AdamW(p, foreach=True, **s)),
            "fused": stepping(lambda p, **s: torch.optim.AdamW(p, fused=True, **s)),
        },
        repeats,
    )
    seconds = {name: value / 5 for name, value in seconds.items()}
    return [
        row(f"AdamW 15M, {candidate} / torch's {peer}", seconds[candidate], seconds[peer], "s")
        for candidate, peer in (("ours", "foreach"), ("ours", "fused"), ("ours plain", "foreach"))
    ]


def gpu_step(who: str, dtype: torch.dtype, repeats: int, batch: int, length: int) -> tuple[float, float, float]:
    """Tokens/s, peak MB and FLOP/s of a compiled training step of the 110M shape, of "ours" or "peer"."""
    torch._dynamo.reset()
    model = build("110M")
    flops = model.flops_per_token(length)
    network: Any = (model if who == "ours" else peer_of(model)).cuda()
    tokens = torch.randint(model.config.vocab_size, (batch, length), device="cuda")
    optimizer: Any
    if who == "ours":
        optimizer, loss = AdamW(network.parameters()), torch.compile(network.loss)
        arguments: dict[str, Any] = {"tokens": tokens, "targets": tokens.roll(-1, 1)}
    else:
        optimizer, forward = torch.optim.AdamW(network.parameters(), fused=True), torch.compile(network)
        arguments = {"input_ids": tokens, "labels": tokens, "use_cache": False}

        def loss(**arguments: Any) -> Tensor:
            return forward(**arguments).loss

    step = training_step(lambda: loss(**arguments), optimizer, dtype)
    for _ in range(3):
        step()
    torch.cuda.reset_peak_memory_stats()
    seconds = in_turn({who: lambda: [step() for _ in range(5)]}, repeats)[who] / 5
    rate = batch * length / seconds
    return rate, torch.cuda.max_memory_allocated() / 2**20, rate * flops


def gpu(repeats: int, batch: int = 32, length: int = 1024) -> list[Row]:
    """A compiled training step of the 110M shape, in both 16-bit types: tokens/s, MFU, peak memory."""
    rows = []
    name = torch.cuda.get_device_name()
    for dtype in (torch.float16, torch.bfloat16):
        peak = peak_flops(name, dtype)

        def both(size: int) -> dict[str, tuple[float, float, float]]:
            result = {}
            for who in ("ours", "peer"):
                result[who] = gpu_step(who, dtype, repeats, size, length)  # noqa: B023
                gc.collect()
                torch.cuda.empty_cache()
            return result

        try:
            result, sizes = with_smaller_batches(both, batch)
        except torch.cuda.OutOfMemoryError as error:
            print(f"train 110M, {dtype}: skipped: {error}")
            continue
        (speed, memory, flops), (peer_speed, peer_memory, peer_flops) = result["ours"], result["peer"]
        what = f"train 110M, {sizes['batch']} x {length}, {str(dtype).removeprefix('torch.')}, compiled, {name}"
        mfu = {"MFU": round(flops / peak, 3), "peer_MFU": round(peer_flops / peak, 3)}
        rows.append(row(what, speed, peer_speed, "tokens/s", **mfu, **sizes))
        rows.append(row(f"peak memory, {what}", memory, peer_memory, "MB", **sizes))
    return rows


def row(benchmark: str, value: float, peer: float, unit: str, **more: Any) -> Row:
    """A result row: the zoo's value, the peer's value and their ratio."""
    return {"benchmark": benchmark, "ours": value, "peer": peer, "ratio": value / peer, "unit": unit, **more}


def main() -> None:
    parts = {
        "decode-260K": lambda: decode("260K", args.repeats, args.compile, args.llama2c),
        "decode-15M": lambda: decode("15M", args.repeats, args.compile, args.llama2c),
        "decode-batch": lambda: decode_batch(args.repeats, args.llama2c),
        "precision": precision,
        "train": lambda: train(args.repeats),
        "memory": lambda: memory(args.repeats),
        "adamw": lambda: adamw(args.repeats),
        "gpu": lambda: gpu(args.repeats),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), help="parts to run (default: all)")
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds of each part (default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="with compiled decoding")
    parser.add_argument("--llama2c", type=Path, help="llama2.c's program run, built for this CPU: a second peer")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "llama.json", help="file of the rows")
    parser.add_argument("--memory-of", choices=("ours", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        return memory_of(args.memory_of)
    about = {"repeats": args.repeats, "threads": args.threads, **facts()}
    rows = []
    for name in args.only:
        if name == "gpu" and not torch.cuda.is_available():
            print("gpu: skipped, because torch finds no CUDA device")
            continue
        for result in parts[name]():
            rows.append({**result, **about})
            more = f"{result['share_of_floor']:.0%} of the floor" if "share_of_floor" in result else ""
            print(
                f"{result['benchmark']:<48} {result['ours']:>10.5g} {result['peer']:>10.5g} {result['unit']:<9}"
                f"{result['ratio']:>7.3f}  {more}",
                flush=True,
            )
    if rows:
        store(rows, args.output)


if __name__ == "__main__":
    main()
