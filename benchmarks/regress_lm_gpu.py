"""GPU part of benchmarks/regress_lm.py: compiled training and sampling in fp16, our RegressLM and upstream's."""

import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import training_step, with_smaller_batches  # noqa: E402
from benchmarks.measure import in_turn  # noqa: E402
from benchmarks.regress_lm_pair import SIZES, Row, ours_of, padded, peer_of, row, sampling, texts, their_sampling  # noqa: E402
from zoo.callbacks.peak_flops import peak_flops  # noqa: E402
from zoo.optim import AdamW  # noqa: E402
from zoo.regress_lm.upstream_weights import load_upstream  # noqa: E402


def gpu(repeats: int) -> Iterator[Row]:
    """fp16 with autocast on a GPU: compiled training at full length, and sampling."""
    for measure, size in ((gpu_training, 32), (gpu_sampling, 64)):
        try:
            result, sizes = with_smaller_batches(partial(measure, repeats), size)
        except torch.cuda.OutOfMemoryError as error:
            print(f"{measure.__name__}: skipped: {error}")
            continue
        yield result | sizes


def gpu_training(repeats: int, size: int) -> Row:
    """Compiled training on `size` texts of full length."""
    device, name = "cuda", torch.cuda.get_device_name()
    peak = peak_flops(name, torch.float16)
    rates, flops = {}, 0
    batch = [part.to(device) for part in texts(size, SIZES["full"])]
    for who in ("ours", "peer"):
        torch._dynamo.reset()
        if who == "ours":
            model: Any = ours_of(SIZES["full"]).to(device)
            flops = model.flops(SIZES["full"])
            forward = torch.compile(model)

            def loss() -> Tensor:
                return F.cross_entropy(forward(*batch).float().mT, batch[1])  # noqa: B023
        else:
            model = peer_of(SIZES["full"]).to(device)
            inputs = {key: tensor.to(device) for key, tensor in padded(*batch, SIZES["full"]).items()}
            losses = torch.compile(model.compute_losses_and_metrics)

            def loss() -> Tensor:
                return losses(inputs)[0].mean()  # noqa: B023

        rates[who] = half_precision(model, loss, repeats) * batch[0].numel()
        del model
        gc.collect()
        torch.cuda.empty_cache()
    per_token = flops / SIZES["full"]
    mfu = {
        "MFU": round(rates["ours"] * per_token / peak, 3),
        "peer_MFU": round(rates["peer"] * per_token / peak, 3),
    }
    what = f"train, {size} x {SIZES['full']} characters, fp16, compiled, {name}"
    return row(what, rates["ours"], rates["peer"], "tokens/s", **mfu)


def gpu_sampling(repeats: int, size: int) -> Row:
    """Samples for `size` texts of 128 characters."""
    device, name = "cuda", torch.cuda.get_device_name()
    tokens, count = texts(size, 128)[0].to(device), SIZES["samples"]
    peer = peer_of(128).to(device).eval()
    model = load_upstream(peer.state_dict(), max_input_len=128).to(device).eval()
    with torch.autocast(device, dtype=torch.float16):
        runs = {"ours": sampling(model, tokens, count), "peer": their_sampling(peer, tokens, count)}
        seconds = in_turn(runs, repeats)
    drawn = len(tokens) * count
    what = f"sample {len(tokens)} x {count}, 128 characters, fp16, {name}"
    return row(what, drawn / seconds["ours"], drawn / seconds["peer"], "samples/s")


def half_precision(model: torch.nn.Module, loss: Callable[[], Tensor], repeats: int) -> float:
    """Training steps per second with loss scaling."""
    step = training_step(loss, AdamW(model.train().parameters(), lr=1e-4), torch.float16)
    for _ in range(3):
        step()
    return 5 / in_turn({"it": lambda: [step() for _ in range(5)]}, repeats)["it"]
