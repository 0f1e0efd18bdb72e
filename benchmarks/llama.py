"""Speed and memory of zoo.llama compared with transformers' LlamaForCausalLM, with equal weights in the same run.

Measured: decoding at batch sizes 1 and 8, also against llama2.c; nats per token with weights in fewer bits; a training
step, its peak memory, and AdamW against torch's; with CUDA also a training step of the 110M shape. Each figure is the
median of `--repeats` rounds in which the candidates alternate, so that load on the machine affects all of them;
transformers decodes eagerly in fp32 with the faster of its caches, and trains with its fused AdamW. Rows are written to
`--output` as JSON and printed as a table.
"""

import argparse
import gc
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import training_step, with_smaller_batches  # noqa: E402
from benchmarks.llama_decoding import decode, decode_batch, precision  # noqa: E402
from benchmarks.llama_pair import Row, build, peer_of, row  # noqa: E402
from benchmarks.measure import facts, in_turn, measure_parts, parse_arguments, process_megabytes  # noqa: E402
from zoo.callbacks.peak_flops import peak_flops  # noqa: E402
from zoo.optim import AdamW  # noqa: E402


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

    model = build("15M")
    tokens = torch.randint(model.config.vocab_size, (8, 256))
    if name == "ours":
        before = process_megabytes("VmRSS")
        optimizer: Any = AdamW(model.parameters())

        def loss() -> Tensor:
            return model.loss(tokens, tokens)
    else:
        peer = peer_of(model)
        del model
        gc.collect()
        before = process_megabytes("VmRSS")
        optimizer = torch.optim.AdamW(peer.parameters(), fused=True)

        def loss() -> Tensor:
            return peer(input_ids=tokens, labels=tokens, use_cache=False).loss

    for _ in range(3):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    print(process_megabytes("VmHWM") - before)


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


def gpu(repeats: int, batch: int = 32, length: int = 1024) -> Iterator[Row]:
    """A compiled training step of the 110M shape, in both 16-bit types: tokens/s, MFU, peak memory."""
    name = torch.cuda.get_device_name()
    for dtype in (torch.bfloat16, torch.float16):
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
        yield row(what, speed, peer_speed, "tokens/s", **mfu, **sizes)
        yield row(f"peak memory, {what}", memory, peer_memory, "MB", **sizes)


def main() -> None:
    parts: dict[str, Callable[[], Iterable[Row]]] = {
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
    parser.add_argument("--memory-of", choices=("ours", "peer"), help=argparse.SUPPRESS)
    args = parse_arguments(parser, "llama.json")
    torch.set_num_threads(args.threads)
    if args.memory_of:
        return memory_of(args.memory_of)

    def measure(name: str) -> Iterable[Row]:
        if name == "gpu" and not torch.cuda.is_available():
            print("gpu: skipped, because torch finds no CUDA device")
            return []
        return parts[name]()

    def describe(row: Row) -> str:
        more = f"{row['share_of_floor']:.0%} of the floor" if "share_of_floor" in row else ""
        figures = f"{row['ours']:>10.5g} {row['peer']:>10.5g} {row['unit']:<9}{row['ratio']:>7.3f}"
        return f"{row['benchmark']:<48} {figures}  {more}"

    about = {"repeats": args.repeats, "threads": args.threads, **facts()}
    sys.exit(measure_parts(args.only, measure, describe, args.output, **about))


if __name__ == "__main__":
    main()
