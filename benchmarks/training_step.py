"""Where the time of a training step on a CPU goes, and how it compares with the arithmetic.

    python benchmarks/training_step.py [--only llama bound revdeq] [--instructions all avx2]

Llama's step (15M, 8 x 256 tokens, fp32) compared with that of transformers' model, and RevDEQ's with that of a Llama
with as many parameters, both as in benchmarks/revdeq_wikitext2.py. Seconds are CPU time of one thread, medians of
`--repeats` rounds in turn. They are divided among the parts by the self times that torch's profiler measures in one
more step of each. Everything is measured twice: with all instructions of the CPU, and limited to AVX2, each in a
separate process. Rows are written to training_step.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.llama import training  # noqa: E402
from benchmarks.llama_pair import SHAPES, row  # noqa: E402
from benchmarks.measure import facts, in_turn, parse_arguments, store  # noqa: E402
from zoo.layers.linear import product  # noqa: E402
from zoo.layers.linear_nll import CHUNK_BYTES  # noqa: E402
from zoo.llama import Llama, LlamaConfig  # noqa: E402
from zoo.optim import AdamW  # noqa: E402
from zoo.revdeq import RevDEQ, RevDEQConfig  # noqa: E402

LIMITS: dict[str, dict[str, str]] = {
    "all": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
BATCH, LENGTH, VOCABULARY = 8, 256, 4096
REVDEQ: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 192, "num_heads": 4, "intermediate_size": 768, "mlp_layers": 1,
    "max_position_embeddings": 512, "positions": "rotary", "block": "post_norm", "tie_embeddings": True,
}  # fmt: skip
LLAMA = {"vocab_size": VOCABULARY, "dim": 128, "hidden_dim": 288, "n_layers": 4, "n_heads": 4, "max_seq_len": 512}
# Part of a step -> names of the operators, or of the functions that call them; the first part that fits counts.
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "_linear_pointwise"),
    "attention": ("_scaled_dot_product",),
    "AdamW": ("_fused_adamw",),
    "loss, except products": ("_LinearNLL", "LogSoftmax", "log_softmax", "NllLoss", "nll_loss"),
    "activation function": ("gelu", "silu"),
}
Row = dict[str, Any]
Step = Callable[[], None]


def part_of(event: Any) -> str:
    """The part of a step that an event of the profiler belongs to, by its name or those of its callers."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    for part, operators in PARTS.items():
        # Products and attention are named by themselves; the loss by its callers too.
        if any(
            operator in name for name in (names if part.startswith("loss") else names[:1]) for operator in operators
        ):
            return part
    return "everything else"


def shares(step: Step, steps: int = 1) -> dict[str, float]:
    """Share of each part in the time of a step."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    seconds = dict.fromkeys([*PARTS, "everything else"], 0.0)
    for event in profiler.events() or ():
        seconds[part_of(event)] += event.self_cpu_time_total
    return {part: value / sum(seconds.values()) for part, value in seconds.items()}


def pair(name: str, steps: dict[str, Step], repeats: int) -> list[Row]:
    """Rows of "ours" and "peer": a step, then its parts, whose seconds add up to the step's."""
    seconds = in_turn(steps, repeats, time.process_time)
    rows = [row(name, seconds["ours"], seconds["peer"], "s")]
    ours, peer = ({p: share * seconds[who] for p, share in shares(steps[who]).items()} for who in ("ours", "peer"))
    return rows + [row(f"{name}: {part}", ours[part], peer[part], "s") for part in ours if ours[part] and peer[part]]


def language_model_step(model: Llama | RevDEQ, dtype: torch.dtype) -> Step:
    """Forward and backward pass and AdamW, under autocast in `dtype` unless it is fp32."""
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    optimizer = AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def revdeq_flops(config: RevDEQConfig, length: int) -> dict[str, float]:
    """Floating-point operations of training on a token, reversible and unrolled, without elementwise operations.

    A weight costs 2 in each evaluation of the block, and 4 for its gradient. A causal attention product costs length
    times width, half of that with all positions: 2 products forward, 5 backward, because they recompute the scores.
    """
    d = config.hidden_size
    weights = 4 * d * d + 2 * d * config.intermediate_size + (config.mlp_layers - 1) * config.intermediate_size**2
    forward, backward = 2 * weights + 2 * length * d, 4 * weights + 5 * length * d
    output = 6 * config.vocab_size * d
    n = config.evaluations * config.num_layers
    return {"reversible": n * (2 * forward + backward) + output, "unroll": n * (forward + backward) + output}


def llama_flops(config: LlamaConfig, length: int) -> float:
    """The same for a Llama without grouped heads."""
    d = config.dim
    weights = 4 * d * d + 3 * d * config.ffn_dim
    return config.n_layers * (6 * weights + 7 * length * d) + 6 * config.vocab_size * d


def llama(repeats: int, isa: str) -> list[Row]:
    """Llama's step and its parts."""
    return pair(f"Llama 15M, transformers, {isa}", training("15M", BATCH, LENGTH), repeats)


def bound(repeats: int, isa: str) -> list[Row]:
    """The matrix products of Llama's step alone, compared with the peer's step: the least that the ratio could be."""
    steps = training("15M", BATCH, LENGTH)
    config = LlamaConfig(**SHAPES["15M"])
    d, rows = config.dim, BATCH * LENGTH
    # Rows and columns of each matrix, rows of x, and how often they are multiplied; logits in chunks as in linear_nll.
    chunk = CHUNK_BYTES["cpu"] // (4 * config.vocab_size)
    shapes = [(3 * d, d, rows, 6), (d, d, rows, 6), (2 * config.ffn_dim, d, rows, 6), (d, config.ffn_dim, rows, 6)]
    shapes.append((config.vocab_size, d, chunk, rows / chunk))
    assert config.n_layers == 6

    def products() -> None:
        for m, n, k, count in shapes:
            x, weight, grad = (torch.ones(shape) for shape in ((k, n), (m, n), (k, m)))
            y, x_grad, weight_grad = (torch.empty_like(tensor) for tensor in (grad, x, weight))
            start = time.process_time()
            for _ in range(4):
                product(x, weight, out=y)
                product(grad, weight.T, out=x_grad)
                product(grad.T, x.T, out=weight_grad)
            seconds.append((time.process_time() - start) / 4 * count)

    peer, ours = [], []
    for measured in (False, *[True] * repeats):
        seconds: list[float] = []
        products()
        start = time.process_time()
        steps["peer"]()
        if measured:
            peer.append(time.process_time() - start)
            ours.append(sum(seconds))
    name = f"the matrix products of Llama 15M alone, a step of transformers, {isa}"
    return [row(name, statistics.median(ours), statistics.median(peer), "s")]


def revdeq(repeats: int, isa: str) -> list[Row]:
    """RevDEQ's step, reversible and unrolled, and its arithmetic; with bf16 where the CPU is not limited to AVX2."""
    methods: tuple[Any, ...] = ("reversible", "unroll")
    models = {method: RevDEQ(RevDEQConfig(**REVDEQ, backward=method)) for method in methods}
    peer = Llama(LlamaConfig(**LLAMA))
    flops, peer_flops = revdeq_flops(models["reversible"].config, LENGTH), llama_flops(peer.config, LENGTH)
    tokens = BATCH * LENGTH / 1e9
    rows = [
        row(f"RevDEQ 1.23M, {method}, Llama 1.23M: arithmetic", flops[method] * tokens, peer_flops * tokens, "GFLOP")
        for method in methods
    ]
    for dtype, kind in ((torch.float32, "fp32"), (torch.bfloat16, "bf16 autocast")):
        if kind != "fp32" and isa == "AVX2":
            continue
        peer_step = language_model_step(peer, dtype)
        for method, model in models.items():
            steps = {"ours": language_model_step(model, dtype), "peer": peer_step}
            of_pair = pair(f"RevDEQ 1.23M, {method}, Llama 1.23M, {kind}, {isa}", steps, repeats)
            rows += of_pair if (method, kind) == ("reversible", "fp32") else of_pair[:1]
    return rows


STUDIES = {"llama": llama, "bound": bound, "revdeq": revdeq}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES), help="parts to run (default: all)")
    parser.add_argument("--instructions", nargs="+", choices=LIMITS, default=list(LIMITS), help="(default: both)")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds of each time (default: 5)")
    parser.add_argument("--measure", choices=STUDIES, help=argparse.SUPPRESS)
    args = parse_arguments(parser, "training_step.json")
    if args.measure:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        print(json.dumps(STUDIES[args.measure](args.repeats, torch.backends.cpu.get_cpu_capability())))
        return
    rows: dict[str, Row] = {}
    for study in args.only:
        for instructions in args.instructions:
            command = [sys.executable, __file__, "--measure", study, "--repeats", str(args.repeats)]
            environment = os.environ | LIMITS[instructions]
            result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            for r in json.loads(result.stdout.splitlines()[-1]):
                rows.setdefault(r["benchmark"], r)
    for r in rows.values():
        print(f"{r['benchmark']:<80} {r['ours']:>8.4f} {r['peer']:>8.4f} {r['unit']:<6} {r['ratio']:6.3f}")
    about = {"repeats": args.repeats, "threads": 1, **facts()}
    store([r | about for r in rows.values()], args.output)


if __name__ == "__main__":
    main()
