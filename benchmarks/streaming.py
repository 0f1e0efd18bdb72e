"""Packing, training and resuming on a text that is larger than a cache of the operating system keeps in memory.

    python benchmarks/streaming.py --data_dir wikitext-2/ --gigabytes 5 --tokenizer bytes

The text is the lines of train.txt in that folder in random order, repeated to the given size, in eight files. It is
written into --folder; after an error the files stay there. Packing runs in --processes processes and is killed with
SIGKILL at a third of its shards, then started again. The training is a small Llama's: three steps from the start,
three more steps resumed in the middle of the epoch, and six steps without a stop, whose weights must be equal bit by
bit. With --url only the packing is measured, of the files on the disk and of the same files on a web server on this
machine, in place of an object store. "peak memory" is the largest resident set of a process, without the pages of
mapped files. Rows are written to streaming.json.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
BEGIN = time.perf_counter()

FILES = 8
MODEL = {"dim": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}


def write_text(source: Path, folder: Path, gigabytes: float) -> int:
    """Write the files of the text, and return their size in bytes."""
    lines, generator, total = source.read_text(encoding="utf-8").splitlines(keepends=True), random.Random(0), 0
    for i in range(FILES):
        with (folder / f"{i}.txt").open("w", encoding="utf-8", newline="") as out:
            size = 0
            while size < gigabytes * 1e9 / FILES:
                generator.shuffle(lines)
                size += len("".join(lines).encode())
                out.write("".join(lines))
        total += size
    return total


def start(mode: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", mode, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


class Memory(threading.Thread):
    """Samples the largest anonymous resident set of the processes of a session."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.session, self.peak = session, 0.0
        self.start()

    def run(self) -> None:
        while True:
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    if os.getsid(int(folder.name)) == self.session:
                        lines = (folder / "status").read_text().splitlines()
                        anonymous = next(line.split()[1] for line in lines if line.startswith("RssAnon"))
                        self.peak = max(self.peak, int(anonymous) / 1e3)
                except (OSError, StopIteration):
                    continue
            time.sleep(0.5)


def finish(process: subprocess.Popen) -> dict[str, Any]:
    """The last line that a child process printed, with its peak memory in MB."""
    from zoo.text_formats.json_text import parse_json

    memory = Memory(process.pid)
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a child ended with code {process.returncode}")
    return parse_json(out.splitlines()[-1]) | {"peak_MB": memory.peak}


def measure(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Two rows: packing, then training."""
    text, cache = folder / "text", folder / "cache"
    text.mkdir()
    size = write_text(args.data_dir / "train.txt", text, args.gigabytes)
    child = (text, args.tokenizer, cache, args.processes)
    print(f"wrote {size / 1e9:.2f} GB", flush=True)
    # Packing, killed when a third of the shards are complete.
    wanted = args.gigabytes * 1e9 / (128 << 20) / 3
    begin, killed = time.perf_counter(), start("pack", *child)
    while len(list(cache.glob("tokens/*/train-*.json"))) < wanted and killed.poll() is None:
        time.sleep(0.2)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before_kill, kept = time.perf_counter() - begin, {f: f.stat().st_mtime_ns for f in cache.glob("tokens/*/*.json")}
    print(f"killed after {before_kill:.0f} s with {len(kept)} shards", flush=True)
    resumed = finish(start("pack", *child))
    repeated = sum(f.stat().st_mtime_ns != changed for f, changed in kept.items())
    print(resumed, flush=True)
    about = {"tokenizer": args.tokenizer, "gigabytes": size / 1e9}
    yield about | {
        "benchmark": f"packing, {args.tokenizer}, {args.gigabytes:g} GB",
        "processes": args.processes,
        "seconds": before_kill + resumed["seconds"],
        "MB_per_cpu_second": resumed["bytes"] / 1e6 / resumed["cpu_seconds"],
        "peak_MB": resumed["peak_MB"],
        "shards": resumed["shards"],
        "shards_before_kill": len(kept),
        "shards_packed_again": repeated,
    }
    # Training: three steps, three more after a stop, and six without one.
    runs = {name: folder / name for name in ("stopped", "complete")}
    first = finish(start("fit", *child, runs["stopped"], 3))
    print(first, flush=True)
    second = finish(start("fit", *child, runs["stopped"], 6))
    complete = finish(start("fit", *child, runs["complete"], 6))
    yield about | {
        "benchmark": f"training, {args.tokenizer}, {args.gigabytes:g} GB",
        "tokens": first["tokens"],
        "open_seconds": first["open_seconds"],
        "first_step_seconds": first["first_step_seconds"],
        "resumed_step_seconds": second["first_step_seconds"],
        "peak_MB": max(first["peak_MB"], second["peak_MB"]),
        "resume_is_bitwise": second["digest"] == complete["digest"],
    }


def measure_url(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Two rows: packing from the disk, and through a web server."""
    from benchmarks.range_server import serve

    text, digests = folder / "text", []
    text.mkdir()
    size = write_text(args.data_dir / "train.txt", text, args.gigabytes)
    with serve(text) as url:
        for name, place in (("on the disk", text), ("on a web server", url)):
            cache = folder / name.replace(" ", "-")
            done = finish(start("pack", place, args.tokenizer, cache, args.processes))
            shards = sorted(cache.glob("tokens/*/*.bin"), key=lambda file: file.name)
            digests.append([(f.name, hashlib.blake2b(f.read_bytes()).hexdigest()) for f in shards])
            yield {
                "benchmark": f"packing, {args.tokenizer}, {args.gigabytes:g} GB {name}",
                "tokenizer": args.tokenizer,
                "gigabytes": size / 1e9,
                "processes": args.processes,
                "MB_per_cpu_second": done["bytes"] / 1e6 / done["cpu_seconds"],
                "peak_MB": done["peak_MB"],
                "shards": done["shards"],
            } | ({"same_tokens": digests[0] == digests[1]} if digests[1:] else {})


def pack(data: Any) -> dict[str, Any]:
    """Pack the training and validation splits; speed is counted over the shards that this process packed."""
    import resource

    from zoo.datamodules.packing import read_counts

    file = data._file("train")
    before = {shard.name for shard in file.parent.glob("*-*.json")} if file.parent.exists() else set()
    begin = time.perf_counter()
    data.stats("train")
    data.stats("val")
    seconds = time.perf_counter() - begin
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown()  # waits for the workers, whose time counts afterwards
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    new = [shard for shard in file.parent.glob("*-*.json") if shard.name not in before]
    return {
        "seconds": seconds,
        "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in times),
        "bytes": sum(read_counts(shard)["bytes"] for shard in new),
        "shards": len(read_counts(file).get("shards", [0])),
    }


def fit(data: Any, run: Path, steps: int) -> dict[str, Any]:
    """Train to a step, from the run's checkpoint if there is one."""
    from lightning import Callback, Trainer, seed_everything

    from zoo.files.digest import digest
    from zoo.llama import LlamaLM

    seed_everything(0, verbose=False)
    begin = time.perf_counter()
    dataset = data.dataset("train")
    opened, times = time.perf_counter() - begin, list[float]()

    class Clock(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            times.append(time.perf_counter() - BEGIN)

    checkpoint = run / "state.ckpt"
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, limit_val_batches=0, callbacks=[Clock()], default_root_dir=run, **quiet
    )
    model = LlamaLM(vocab_size=data.vocab_size, tokenizer=data.tokenizer, **MODEL)
    trainer.fit(model, data, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
    trainer.save_checkpoint(checkpoint)
    return {
        "tokens": dataset.n_tokens,
        "open_seconds": opened,
        "first_step_seconds": times[0],
        "digest": digest(dict(model.state_dict())),
    }


def child_main(mode: str, *arguments: str) -> None:
    from zoo.datamodules import TextLM
    from zoo.text_formats.json_text import dump_json

    text, tokenizer, cache, processes, *rest = arguments
    options: dict[str, Any] = {"seq_len": 256, "batch_size": 16, "val_fraction": 0.001, "test_fraction": 0.0, "seed": 0}
    data = TextLM(text, tokenizer, cache_dir=cache, packing_processes=int(processes), **options)
    print(dump_json(pack(data) if mode == "pack" else fit(data, Path(rest[0]), int(rest[1]))), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child_main(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with WikiText-2's train.txt")
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--tokenizer", default="bytes", help='"bytes", "bpe", or a path')
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--url", action="store_true", help="measure packing from a URL instead")
    parser.add_argument("--folder", type=Path, help="for temporary files: three times the size of the text")
    from benchmarks.measure import facts, parse_arguments, store

    args = parse_arguments(parser, "streaming.json")

    folder = Path(tempfile.mkdtemp(dir=args.folder))
    for row in (measure_url if args.url else measure)(args, folder):
        print(row, flush=True)
        store([row | facts()], args.output)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
