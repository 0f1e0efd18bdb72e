"""Compares our RegressLM with google-deepmind/regress-lm: equal weights, measured alternately in one run.

    python benchmarks/regress_lm.py --upstream PATH     # a checkout; it needs transformers, sentencepiece, ordered-set

Training steps, sampling, peak memory, texts of 8,192 tokens, and, on a machine with CUDA, fp16. The model is
upstream's default, d = 512 with 2 + 2 layers, over a vocabulary of characters; both use the same optimizer. The peer
pads to its max_input_len, which each row names. Each value is the median of `--repeats` rounds that measure both. Rows
are written to `--output` as JSON, and printed as a table.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, in_turn, measure_parts, parse_arguments, process_megabytes  # noqa: E402
from benchmarks.regress_lm_gpu import gpu  # noqa: E402
from benchmarks.regress_lm_pair import (  # noqa: E402
    CHARACTERS,
    SIZES,
    TINY,
    Row,
    our_step,
    ours_of,
    peer_of,
    row,
    sampling,
    texts,
    their_sampling,
    their_step,
)
from zoo.regress_lm.model import EncoderDecoder  # noqa: E402
from zoo.regress_lm.upstream_weights import load_upstream  # noqa: E402


def train(rows: int, length: int, max_input_len: int, repeats: int) -> list[Row]:
    """Times of a training step of both models with equal weights."""
    peer = peer_of(max_input_len)
    model = load_upstream(peer.state_dict(), max_input_len=max_input_len)
    batch = texts(rows, length)
    steps = {"ours": our_step(model, *batch), "peer": their_step(peer, *batch)}
    first = {name: float(step()) for name, step in steps.items()}
    assert abs(first["ours"] - first["peer"]) < 1e-4, f"the two models have different losses, {first}"
    seconds = in_turn(steps, repeats)
    what = f"train step, {rows} x {length} characters, max_input_len {max_input_len}"
    return [row(what, seconds["ours"], seconds["peer"], "s", parameters=sum(p.numel() for p in model.parameters()))]


def independence(repeats: int) -> list[Row]:
    """Cost of a larger max_input_len for our training step on short texts. The peer of this row is our model at 64."""
    batch = texts(SIZES["inputs"], SIZES["short"])
    seconds = in_turn({str(n): our_step(ours_of(n), *batch) for n in (64, 2048)}, 5 * repeats)
    what = f"our train step, {SIZES['inputs']} x {SIZES['short']}, at max_input_len 2048 / at 64"
    return [row(what, seconds["2048"], seconds["64"], "s")]


def samples(length: int, max_input_len: int, num_samples: int, repeats: int) -> list[Row]:
    """Times of sampling from both models with equal random weights, so that few samples share a prefix."""
    peer = peer_of(max_input_len).eval()
    model = load_upstream(peer.state_dict(), max_input_len=max_input_len).eval()
    tokens, _ = texts(SIZES["inputs"], length)
    seconds = in_turn(
        {"ours": sampling(model, tokens, num_samples), "peer": their_sampling(peer, tokens, num_samples)}, repeats
    )
    what = f"sample {len(tokens)} x {num_samples}, {length} characters, max_input_len {max_input_len}"
    return [row(what, seconds["ours"], seconds["peer"], "s")]


def predict(repeats: int) -> list[Row]:
    """Rows per CPU second through both Python APIs, from texts to numbers, with equal weights; upstream gets the first
    rows only, 8 at a time."""
    from regress_lm import core
    from regress_lm.rlm import RegressLM as UpstreamRLM

    from zoo.regress_lm import RegressLM

    max_len, count = 64, SIZES["samples"] // 2
    texts = [f"d_model: {i}, lr: {i / 1e4:.4f}, layers: {i % 7}" for i in range(SIZES["many"])]
    peer = UpstreamRLM(peer_of(max_len).eval())
    model = RegressLM(vocab_size=CHARACTERS, dim=SIZES["dim"], max_input_len=max_len).eval()
    model.model.load_state_dict(load_upstream(peer.model.state_dict()).state_dict())
    model.tokenizer = UpstreamCharacters(peer.model.cfg.encoder_vocab)
    inputs = [core.ExampleInput(text) for text in texts[: max(8, SIZES["many"] // 8)]]

    def theirs() -> None:
        for i in range(0, len(inputs), 8):
            peer.sample(inputs[i : i + 8], count)

    runs = {"ours": lambda: model.sample(texts, count, seed=0), "peer": theirs}
    seconds = in_turn(runs, repeats, time.process_time)
    rates = len(texts) / seconds["ours"], len(inputs) / seconds["peer"]
    return [row(f"predict rows of 33 to 35 characters, {count} samples each", *rates, "rows/CPU s")]


class UpstreamCharacters:
    """Upstream's character vocabulary as a tokenizer of ours."""

    def __init__(self, vocabulary: Any) -> None:
        self.vocabulary = vocabulary

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.vocabulary.to_token_ids(text) for text in texts]


def long(repeats: int) -> list[Row]:
    """One text of 8,192 tokens: our exact attention compared with upstream's Performer, which approximates it."""
    rows, peaks = [], {who: peak("long", who) for who in ("ours", "performer", "peer")}
    for length in (SIZES["full"], SIZES["long"]):
        batch = texts(1, length)
        model, peer = ours_of(length), peer_of(length, "PERFORMER")
        steps = {"ours": our_step(model, *batch), "peer": their_step(peer, *batch)}
        seconds = in_turn(steps, repeats)
        more = {"attention_share": attention_share(steps["ours"]), "attention_flops": attention_flops(model, length)}
        what = f"train step, 1 x {length} characters / with its Performer"
        rows.append(row(what, seconds["ours"], seconds["peer"], "s", **more))
    what = f"peak memory of a train step, 1 x {SIZES['long']} characters"
    rows.append(row(f"{what} / with its Performer", peaks["ours"], peaks["performer"], "MB"))
    rows.append(row(what, peaks["ours"], peaks["peer"], "MB"))
    return rows


def attention_share(step: Callable[[], Any]) -> float:
    """Share of a step's time in the attention kernels, forward and backward."""
    with torch.profiler.profile() as profile:
        step()
    events = profile.key_averages()
    kernels = sum(event.self_cpu_time_total for event in events if "attention" in event.key)
    return round(kernels / sum(event.self_cpu_time_total for event in events), 3)


def attention_flops(model: EncoderDecoder, length: int) -> float:
    """Share of a step's floating-point operations that grows with the square of the length."""
    square = 12 * model.config.n_encoder_layers * model.config.dim * length**2
    return round(square / model.flops(length), 3)


def memory(repeats: int) -> list[Row]:
    """Peak memory of each model in a separate process, minus the memory before the model was built."""
    whats = {
        "train-short": f"train steps, {SIZES['inputs']} x {SIZES['short']} characters, max_input_len {SIZES['full']}",
        "train-full": f"train steps, {SIZES['rows']} x {SIZES['full']} characters",
        "sample": f"sampling {SIZES['inputs']} x {SIZES['samples']}, {SIZES['middle']} characters",
    }
    return [row(f"peak memory of {what}", peak(name, "ours"), peak(name, "peer"), "MB") for name, what in whats.items()]


def peak(what: str, who: str) -> float:
    arguments = [arg for arg in sys.argv[1:] if arg not in ("--only", *PARTS)]
    command = [sys.executable, __file__, *arguments, "--memory-of", what, who]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory_of(what: str, who: str) -> None:
    import regress_lm.pytorch.model  # noqa: F401 - in both processes, so that its memory counts in neither

    before = process_megabytes("VmRSS")
    lengths = {"train-short": "short", "train-full": "full", "sample": "middle", "long": "long"}
    length = SIZES[lengths[what]]
    max_input_len = SIZES["full"] if what == "train-short" else length
    batch = texts({"train-full": SIZES["rows"], "long": 1}.get(what, SIZES["inputs"]), length)
    if who == "ours":
        model = ours_of(max_input_len)
        run = sampling(model, batch[0], SIZES["samples"]) if what == "sample" else our_step(model, *batch)
    else:
        peer = peer_of(max_input_len, "PERFORMER" if who == "performer" else "VANILLA")
        run = their_sampling(peer, batch[0], SIZES["samples"]) if what == "sample" else their_step(peer, *batch)
    for _ in range(1 if what == "sample" else 2):
        run()
    print(process_megabytes("VmHWM") - before)


PARTS: dict[str, Callable[[int], Iterable[Row]]] = {
    "train-short": lambda repeats: train(SIZES["inputs"], SIZES["short"], SIZES["full"], repeats),
    "train-full": lambda repeats: train(SIZES["rows"], SIZES["full"], SIZES["full"], repeats),
    "independence": independence,
    "sample-short": lambda repeats: [
        *samples(SIZES["short"], 64, SIZES["samples"], repeats),
        # At 2048 the peer's copies of the memory for all 128 samples would not fit into 16 GB.
        *samples(SIZES["short"], SIZES["full"], SIZES["samples"] // 16, repeats),
    ],
    "sample-middle": lambda repeats: samples(SIZES["middle"], SIZES["middle"], SIZES["samples"], repeats),
    "predict": predict,
    "memory": memory,
    "long": long,
    "gpu": gpu,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="upstream's checkout (default: the installed regress_lm)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds of each part (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, as a check that everything runs; stores nothing"
    )
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parse_arguments(parser, "regress_lm.json")
    if args.upstream:
        sys.path.insert(0, str(args.upstream))
    torch.set_num_threads(args.threads)
    if args.tiny:
        SIZES.update(TINY)
    if args.memory_of:
        return memory_of(*args.memory_of)
    about = {"repeats": args.repeats, "threads": args.threads, **facts()}

    def measure(name: str) -> Iterable[Row]:
        if name == "gpu" and not torch.cuda.is_available():
            print("gpu: skipped, no CUDA device")
            return []
        return PARTS[name](args.repeats)

    def describe(row: Row) -> str:
        share = f"{row['attention_share']:.0%} in attention" if "attention_share" in row else ""
        figures = f"{row['ours']:>10.4g} {row['peer']:>10.4g} {row['unit']:<9}{row['peer'] / row['ours']:>8.2f}x"
        return f"{row['benchmark']:<72} {figures}  {share}"

    output = None if args.tiny else args.output
    sys.exit(measure_parts(args.only, measure, describe, output, **about))


if __name__ == "__main__":
    main()
