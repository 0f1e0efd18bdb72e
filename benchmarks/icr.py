"""Timings of the ICR transformer: data and training steps against plain loops, a stack against single runs.

    python benchmarks/icr.py [--only data step members gpu] [--threads 1]

Each row in icr_speed.json is a ratio of two candidates measured alternately in one process. The last part needs
a GPU: steps per second of the paper's base model, and their share of what the card's peak allows.
"""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, in_turn, measure_parts, parse_arguments  # noqa: E402
from zoo.callbacks.peak_flops import peak_flops  # noqa: E402
from zoo.datamodules import LinearRegressionTasks  # noqa: E402
from zoo.icr import ICRegConfig, ICRTransformer, Task  # noqa: E402
from zoo.icr.cuda_graph import GraphedNetwork  # noqa: E402
from zoo.icr.model import Network  # noqa: E402
from zoo.optim import AdamW  # noqa: E402
from zoo.training.random_streams import stream  # noqa: E402

SMALL: dict[str, Any] = {"D": 4, "K": 8, "M": 64, "d_model": 64, "d_mlp": 256, "n_heads": 2, "n_layers": 2}
BASE: dict[str, Any] = {"D": 8, "K": 16, "M": 64, "d_model": 128, "d_mlp": 512, "n_heads": 2, "n_layers": 8}
Row = dict[str, Any]


class Items(Dataset):
    """Prompts drawn one at a time."""

    def __init__(self, task: Task, n: int) -> None:
        self.task, self.n, self.pool = task, n, task.pool()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(self.task.K, self.task.D)
        w = self.pool[torch.randint(len(self.pool), ())]
        return x, x @ w + self.task.sigma2**0.5 * torch.randn(self.task.K)


class RepeatableItems(Items):
    """Prompts drawn one at a time, each a function of the seed and its number, as a batch of `Task.draw` is."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(self.task.K, self.task.D, generator=stream(0, "x", index))
        w = self.pool[torch.randint(len(self.pool), (), generator=stream(0, "task", index))]
        noise = torch.randn(self.task.K, generator=stream(0, "noise", index))
        return x, x @ w + self.task.sigma2**0.5 * noise


def data(repeats: int) -> list[Row]:
    """Drawing a batch of 2048 prompts of the paper's size: at once, item by item, and only its random numbers."""
    n, task = 2048, Task()
    generator = torch.Generator().manual_seed(0)

    def random_numbers() -> list[torch.Tensor]:
        normal = [torch.randn(n, *shape, generator=generator) for shape in ((task.K, task.D), (task.K,))]
        return [*normal, torch.rand(n, generator=generator, dtype=torch.float64)]

    loaders = [DataLoader(items(task, n), batch_size=n) for items in (Items, RepeatableItems)]
    ways = {
        "ours": lambda: task.draw(n, 0, "bench"),
        "item by item": lambda: next(iter(loaders[0])),
        "item by item, each from streams of its number": lambda: next(iter(loaders[1])),
        "torch.randn and torch.rand of as many numbers": random_numbers,
    }
    seconds = in_turn(ways, repeats, time.process_time)
    ours = seconds.pop("ours")
    return [row(f"a batch of {n} prompts at once compared with {name}", peer, ours) for name, peer in seconds.items()]


def trainer(steps: int, **options: Any) -> Trainer:
    return Trainer(
        max_steps=steps, max_epochs=-1, limit_val_batches=0, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, devices=1, **options,
    )  # fmt: skip


def fit(sizes: Row, batch: int, steps: int, compile: bool = False, **options: Any) -> Callable[[], None]:
    """A function that trains `steps` steps as `zoo fit` does."""
    model = ICRTransformer(**sizes, compile=compile)
    tasks = LinearRegressionTasks(**{k: sizes[k] for k in "DKM"}, batch_size=batch)
    return lambda: trainer(steps, **options).fit(model, tasks)


class GPT2(nn.Module):
    """The same network around transformers' GPT-2."""

    def __init__(self, config: ICRegConfig) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2Model

        self.embed = nn.Linear(config.D + 1, config.d_model, bias=False)
        self.body = GPT2Model(
            GPT2Config(
                vocab_size=1, n_positions=2 * config.K, n_embd=config.d_model, n_layer=config.n_layers,
                n_head=config.n_heads, n_inner=config.d_mlp, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False,
            )
        )  # fmt: skip
        self.readout = nn.Linear(config.d_model, 1, bias=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        tokens = torch.stack([F.pad(x, (1, 0)), F.pad(y[..., None], (0, x.shape[-1]))], -2).flatten(-3, -2)
        return self.readout(self.body(inputs_embeds=self.embed(tokens)).last_hidden_state[:, ::2])[..., 0]


def loop(task: ICRegConfig, model: nn.Module, batch: int, steps: int, device: str = "cpu") -> Callable[[], None]:
    """The same training as a plain eager loop with torch's Adam; the loss is read every 10 steps."""

    def run() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(steps):
            x, y, _ = task.draw(batch, 0, step, device=device)
            loss = (model(x, y) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 10 == 0:
                assert loss.isfinite()

    return run


def step(repeats: int) -> list[Row]:
    """Training steps, data included: through Lightning, and in a plain loop."""
    steps, config = 150, ICRegConfig(**SMALL)
    peers = {"the same network": Network(config), "transformers' GPT-2": GPT2(config)}
    ways = {name: loop(config, model, 128, steps) for name, model in peers.items()}
    ours = {"": False} | ({", compiled": True} if which("c++") else {})
    ways |= {name: fit(SMALL, 128, steps, compile=compile, accelerator="cpu") for name, compile in ours.items()}
    seconds = {name: value / steps for name, value in in_turn(ways, repeats).items()}
    return [
        row(
            f"a training step{name}, data included, compared with a plain eager loop of {peer}",
            seconds[peer],
            seconds[name],
        )
        for name in ours
        for peer in peers
    ]


def members(repeats: int) -> list[Row]:
    """One update of eight networks: as a stack, and one after another."""
    rows = []
    for width in (32, 64):
        config = ICRegConfig(**SMALL | {"d_model": width, "d_mlp": 4 * width})
        x, y, _ = config.draw(128, 0, "bench")
        stacked = updater(Network(config, members=8), x, y.expand(8, -1, -1))
        singles = [updater(Network(config), x, y) for _ in range(8)]
        ways = {"peer": lambda singles=singles: [one() for one in singles], "ours": stacked}
        seconds = in_turn(ways, 4 * repeats)
        name = f"a step of 8 members of width {width} as a stack compared with 8 runs"
        rows.append(row(name, seconds["peer"], seconds["ours"]))
    return rows


def updater(
    network: nn.Module, x: torch.Tensor, y: torch.Tensor, forward: Any = None, optimizer: Any = None
) -> Callable[[], None]:
    """A function that trains the network, or its members, for one step; `forward` runs the network."""
    optimizer = optimizer or AdamW(network.parameters(), eps=1e-8)

    def update() -> None:
        optimizer.zero_grad()
        ((forward or network)(x, y) - y).square().mean((-2, -1)).sum().backward()
        optimizer.step()

    return update


class Clock(Callback):
    """Seconds from optimizer step `first` of a run to its end."""

    def __init__(self, first: int) -> None:
        self.first = first

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.first:
            torch.cuda.synchronize()
            self.since = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.since


def gpu(repeats: int, batch: int = 256) -> Iterator[Row]:
    """The paper's base model: steps on a fixed batch, and `zoo fit`'s, compared with the same steps of GPT-2, eager."""
    if not torch.cuda.is_available():
        print("gpu: skipped, because torch finds no CUDA device")
        return
    torch.set_float32_matmul_precision("high")
    name, config = torch.cuda.get_device_name(), ICRegConfig(**BASE)
    plain = loop(config, GPT2(config).cuda(), batch, 100, device="cuda")
    peer = in_turn({"peer": plain}, repeats)["peer"] / 100

    x, y, _ = config.draw(batch, 0, "bench", device="cuda")
    gpt2 = GPT2(config).cuda()
    fixed = updater(gpt2, x, y, optimizer=torch.optim.Adam(gpt2.parameters(), lr=1e-3))
    peer_fixed = in_turn({"peer": lambda: [fixed() for _ in range(100)]}, repeats)["peer"] / 100

    def result(what: str, ours: float, peer: float, dtype: torch.dtype = torch.float32) -> Row:
        # The steps per second that the arithmetic allows, in TF32 for fp32.
        peak = peak_flops(name, dtype) / Network(config).flops() / batch
        rates = {"steps_per_s": 1 / ours, "peer_steps_per_s": 1 / peer, "MFU": 1 / ours / peak}
        return row(f"the paper's base model, batch {batch}, {what}, {name}", peer, ours) | rates

    for kind in ("eager", "compiled", "compiled, as CUDA graphs"):
        network = Network(config).cuda()
        if kind != "eager":
            network.compile()
        forward = GraphedNetwork(network) if "graphs" in kind else network
        update = updater(network, x, y, forward)
        seconds = in_turn({"ours": lambda: [update() for _ in range(100)]}, repeats)["ours"] / 100  # noqa: B023
        yield result(f"TF32, a fixed batch, {kind}", seconds, peer_fixed)
    for precision, compile in (("32-true", False), ("32-true", True), ("bf16-mixed", True)):
        clock, steps = Clock(100), 100 * (1 + repeats)
        fit(BASE, batch, steps, compile=compile, accelerator="gpu", precision=precision, callbacks=[clock])()
        kind = f"{'TF32' if precision == '32-true' else precision}, zoo fit, {'compiled' if compile else 'eager'}"
        dtype = torch.float32 if precision == "32-true" else torch.bfloat16
        yield result(kind, clock.seconds / (steps - clock.first), peer, dtype)


def row(name: str, peer: float, ours: float) -> Row:
    """One result in seconds; `ratio` is peer / ours."""
    return {"benchmark": name, "peer": peer, "ours": ours, "ratio": peer / ours, "unit": "s"}


PARTS: dict[str, Callable[[int], Iterable[Row]]] = {"data": data, "step": step, "members": members, "gpu": gpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parse_arguments(parser, "icr_speed.json")
    torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    def describe(row: Row) -> str:
        return f"{row['benchmark']:<80} {1e3 * row['ours']:8.2f} ms, {row['ratio']:5.2f} times as fast"

    about = {"repeats": args.repeats, "threads": args.threads} | facts()
    sys.exit(measure_parts(args.only, lambda part: PARTS[part](args.repeats), describe, args.output, **about))


if __name__ == "__main__":
    main()
