"""RevDEQ's gradient methods: memory and time of a training step against N, and exactness.

    python benchmarks/revdeq.py [--only memory time gradients gpu] [--threads 1]

Always the same network, with a backward pass that is reversible, plain (unrolled), checkpointed at each step, or
implicit (2N evaluations in each pass). If torchdeq is installed, it is measured on the same block and weights: implicit
too, 2N evaluations in each pass, default solver. Every memory peak is measured in a new process. Rows are written to
revdeq.json, the plot of memory and time to results/revdeq_memory.png.
"""

import argparse
import copy
import gc
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import training_step, with_smaller_batches  # noqa: E402
from benchmarks.measure import facts, in_turn, measure_parts, parse_arguments, process_megabytes  # noqa: E402
from zoo.revdeq import ReconstructionError, RevDEQ, RevDEQConfig  # noqa: E402

SMALL: dict[str, Any] = {"vocab_size": 256, "hidden_size": 256, "num_heads": 4, "intermediate_size": 1024}
LENGTH, STEPS = 256, (1, 2, 4, 8, 16, 32)
KEEP = 16  # number of steps that can be inverted with fp64 states at beta 0.5
WAYS = {"reversible": "reversible", "plain": "unroll", "checkpoint": "checkpoint", "implicit": "implicit"}
PEER = "torchdeq"
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
# Dtypes of f and of the state, beta, dropout; "bf16 autocast" is over fp32 weights.
EXACTNESS = [
    ("fp64", "fp64", 0.5, 0.0),
    ("fp32", "fp64", 0.5, 0.0),
    ("fp32", "fp64", 0.5, 0.1),
    ("bf16 autocast", "fp64", 0.5, 0.0),
    ("bf16 autocast", "fp64", 0.5, 0.1),
    ("bf16", "fp64", 0.5, 0.0),
    ("fp32", "fp64", 0.8, 0.0),
    ("fp32", "fp32", 0.5, 0.0),
    ("bf16", "bf16", 0.5, 0.0),
]
Row = dict[str, Any]


def build(**sizes: Any) -> RevDEQ:
    torch.manual_seed(0)
    return RevDEQ(RevDEQConfig(**sizes))


built = lru_cache(build)


def text(model: RevDEQ, batch: int, length: int, device: str = "cpu") -> Tensor:
    """Tokens (batch, length + 1)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.config.vocab_size, (batch, length + 1), generator=generator).to(device)


def ways() -> list[str]:
    return [*WAYS, *[PEER] * (importlib.util.find_spec(PEER) is not None)]


def solved(model: RevDEQ, tokens: Tensor, way: str, n: int) -> Any:
    """The solution after 2N evaluations of the cell, by one of the methods."""
    if way == PEER:
        import torchdeq

        x = model.tok_embeddings(tokens) + model.pos_embeddings.weight[: tokens.shape[1]]
        limits = {"f_max_iter": 2 * n, "b_max_iter": 2 * n, "f_tol": -1.0, "b_tol": -1.0}  # never ends early
        states, _ = torchdeq.get_deq(ift=True, **limits)(lambda z: model.cell(z, (x,)), torch.zeros_like(x))
        return SimpleNamespace(z=states[-1])
    ahead: Row = {"max_steps": n}
    if way == "reversible":
        ahead |= {"keep_every": KEEP}
    if way == "implicit":  # backward_steps is the number of evaluations of the backward pass
        ahead = {"solver": "plain", "max_steps": 2 * n, "backward_steps": 2 * n}
    return model.solve(tokens, backward=WAYS[way], **ahead)


def stepping(model: RevDEQ, tokens: Tensor, way: str, n: int) -> Callable[[], None]:
    """Forward and backward of a training step."""

    def step() -> None:
        inputs = tokens[:, :-1]
        model.loss(inputs, tokens[:, 1:], solved(model, inputs, way, n)).backward()
        model.zero_grad()

    return step


def memory(repeats: int) -> list[Row]:
    """Peak memory of a step minus the memory before it, each measured in a new process.

    glibc is set to return freed memory immediately: otherwise results vary by a tenth and more between runs.
    """
    rows = []
    about = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for n, way in itertools.product(STEPS, ways()):
        command = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--memory-of", way, str(n)]
        peak = subprocess.run(command, capture_output=True, text=True, check=True, env=about).stdout
        rows.append(row("memory", way, n, float(peak), "MB"))
    return rows


def memory_of(way: str, n: int) -> None:
    model = build(**SMALL, max_position_embeddings=LENGTH)
    stepping(model, text(model, 1, 8), way, 1)()  # libraries that are loaded at first use are not counted
    tokens = text(model, 4, LENGTH)
    before = process_megabytes("VmRSS")
    stepping(model, tokens, way, n)()
    print(process_megabytes("VmHWM") - before)


def time(repeats: int) -> list[Row]:
    rows = []
    model = build(**SMALL, max_position_embeddings=LENGTH)
    tokens = text(model, 4, LENGTH)
    for n in STEPS:
        seconds = in_turn({way: stepping(model, tokens, way, n) for way in ways()}, repeats)
        rows += [row("time", way, n, value, "s") for way, value in seconds.items()]
    return rows


def row(what: str, way: str, n: int, value: float, unit: str) -> Row:
    return {"benchmark": f"{what}, {way}, N {n}", "part": what, "way": way, "N": n, "value": value, "unit": unit}


def gradients_of(model: RevDEQ, tokens: Tensor, autocast: torch.autocast, **settings: Any) -> dict[str, Tensor]:
    """Gradients of a weighted sum of the hidden states by x and the parameters, with a fixed dropout mask."""
    torch.manual_seed(2)
    model.zero_grad()
    seen: list[Tensor] = []

    def keep(module: Any, inputs: Any, x: Tensor) -> None:
        x.register_hook(seen.append)

    hook = model.tok_embeddings.register_forward_hook(keep)
    # The first state requires a gradient, as all others do, so that one compiled version serves all.
    z0 = torch.zeros(*tokens.shape, model.config.hidden_size, device=tokens.device, requires_grad=True)
    with warnings.catch_warnings(), autocast:
        warnings.filterwarnings("ignore", message=".*may lose more digits")  # the loss of digits is what is measured
        hidden = model.norm(model.solve(tokens, z0=z0, max_reconstruction_error=sys.float_info.max, **settings).z)
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3)).to(hidden)
        loss = (hidden * weights).sum()
    loss.backward()
    hook.remove()
    return {"x": seen[0]} | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def exactness(model: RevDEQ, tokens: Tensor, autocast: Callable[[], torch.autocast], of: str, **settings: Any) -> Row:
    """Error of reversible gradients: the largest |difference from unrolled| / |unrolled| of all tensors."""
    keep_every = settings.pop("keep_every", None)
    exact = gradients_of(model, tokens, autocast(), backward="unroll", **settings)
    reversible = gradients_of(model, tokens, autocast(), backward="reversible", keep_every=keep_every, **settings)
    error = float(torch.stack([(reversible[name] - exact[name]).norm() / exact[name].norm() for name in exact]).max())
    n = settings["max_steps"]
    return {"benchmark": f"gradients, {of}, N {n}", "part": "gradients", "of": of, "N": n, "error": error}


def gradients(repeats: int) -> list[Row]:
    rows = []
    for (f, state, beta, dropout), n in itertools.product(EXACTNESS, (4, 8, 16)):
        kind, *low = f.split()
        autocast = partial(torch.autocast, "cpu", torch.bfloat16, bool(low))
        model = build(**SMALL, max_position_embeddings=64, dropout=dropout).to(torch.float32 if low else DTYPES[kind])
        of = f"f in {f}, state in {state}, beta {beta:g}" + f", dropout {dropout:g}" * bool(dropout)
        settings = {"max_steps": n, "beta": beta, "state_dtype": DTYPES[state]}
        rows.append(exactness(model, text(model, 4, 63), autocast, of, **settings))
    return rows


def gpu(repeats: int, device: str = "cuda", batch: int = 32, **sizes: Any) -> Iterator[Row]:
    """The paper's model (94M parameters) with its block compiled: exactness, tokens/s and peak memory."""
    name = torch.cuda.get_device_name() if device == "cuda" else device
    for dtype in (torch.float16, torch.bfloat16):
        of = f"{str(dtype).removeprefix('torch.')} autocast, compiled, {name}"
        # Exactness first, on batches of one shape: where the compiler has a version of the block for one shape and one
        # for all shapes, unrolled and reversible gradients can come from different ones, which round differently.
        torch._dynamo.reset()
        for n in (4, 8, 16, 32):
            model = compiled(device, sizes)
            few = text(model, max(1, batch // 8), model.config.max_position_embeddings - 1, device)
            yield exactness(model, few, partial(torch.autocast, device, dtype), of, max_steps=n, keep_every=KEEP)
        torch._dynamo.reset()
        for n, way in itertools.product((4, 8, 16, 32), ("reversible", "plain")):
            model = compiled(device, sizes)
            benchmark = f"training, {way}, {of}, N {n}"
            try:
                measured, used = with_smaller_batches(
                    lambda size: half_precision(model, dtype, way, n, size, repeats),  # noqa: B023
                    batch,
                )
            except (torch.cuda.OutOfMemoryError, ReconstructionError) as error:
                print(f"{benchmark}: skipped: {error}")
                continue
            yield {"benchmark": benchmark, "part": "gpu", "of": f"{way}, {of}", "N": n, **measured, **used}


def compiled(device: str, sizes: Row) -> RevDEQ:
    gc.collect()
    torch.cuda.empty_cache()
    model = copy.deepcopy(built(**sizes)).to(device)
    model.cell.compile()
    return model


def half_precision(model: RevDEQ, dtype: torch.dtype, way: str, n: int, batch: int, repeats: int) -> Row:
    """Tokens/s and peak MB of forward, backward and AdamW, with loss scaling in fp16."""
    device = model.tok_embeddings.weight.device.type
    tokens = text(model, batch, model.config.max_position_embeddings, device)
    inputs = tokens[:, :-1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    step = training_step(
        lambda: model.loss(inputs, tokens[:, 1:], solved(model, inputs, way, n)), optimizer, dtype, device
    )
    for _ in range(3):
        step()
    torch.cuda.reset_peak_memory_stats()
    seconds = in_turn({way: step}, repeats)[way]
    return {"tokens_per_s": inputs.numel() / seconds, "MB": torch.cuda.max_memory_allocated() / 2**20}


def plot(path: Path, into: Path) -> None:
    """Plot memory and time against N, one line per method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    rows = json.loads(path.read_text())
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, part, unit in zip(figure.subplots(1, 2), ("memory", "time"), ("MB", "seconds"), strict=True):
        for way in (*WAYS, PEER):
            points = {r["N"]: r["value"] for r in rows if r["part"] == part and r["way"] == way}
            if points:
                axes.plot(list(points), list(points.values()), marker="o", label=way)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="N, steps of two evaluations", ylabel=f"{unit} of a training step", ylim=0, xticks=STEPS)
        axes.set_xticklabels([str(n) for n in STEPS])
        if axes.lines:
            axes.legend()
    figure.savefig(into, dpi=120)


PARTS: dict[str, Callable[[int], Iterable[Row]]] = {"memory": memory, "time": time, "gradients": gradients, "gpu": gpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds of each time (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parse_arguments(parser, "revdeq.json")
    torch.set_num_threads(args.threads)
    if args.memory_of:
        return memory_of(args.memory_of[0], int(args.memory_of[1]))
    about = {"repeats": args.repeats, "threads": args.threads, **facts()}
    if PEER not in ways():
        print(f"{PEER}: skipped, because it is not installed (pip install --no-deps torchdeq)")

    def measure(part: str) -> Iterable[Row]:
        if part == "gpu" and not torch.cuda.is_available():
            print("gpu: skipped, because there is no CUDA device")
            return []
        return PARTS[part](args.repeats)

    def describe(row: Row) -> str:
        figures = (f"{key} {row[key]:.4g}" for key in ("value", "error", "tokens_per_s", "MB") if key in row)
        return f"{row['benchmark']:<72} {', '.join(figures)} {row.get('unit', '')}"

    code = measure_parts(args.only, measure, describe, args.output, **about)
    if {"memory", "time"} & set(args.only):
        plot(args.output, args.output.with_name("revdeq_memory.png"))
    sys.exit(code)


if __name__ == "__main__":
    main()
