"""Time that TextLM takes to pack a megabyte of text with each of the given tokenizers.

    python benchmarks/packing.py --data_dir wikitext-2/ bytes bpe tok512.bin tokenizer.model vocab.bpe

Each tokenizer packs the complete text into an empty cache; the time of "bpe" includes its training. "warm" is the time
of the next start, which finds the packed files. Rows are written to packing.json.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from zoo.datamodules import TextLM  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402


def seconds(data_dir: Path, tokenizer: str, cache: str) -> tuple[float, TextLM]:
    """Time of `prepare_data`, and the data module."""
    data = TextLM(str(data_dir), tokenizer=tokenizer, cache_dir=cache)
    start = time.perf_counter()
    data.prepare_data()
    return time.perf_counter() - start, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("tokenizers", nargs="+", help='"bytes", "bpe", or paths')
    args = parse_arguments(parser, "packing.json")
    names = [Path(tokenizer).name for tokenizer in args.tokenizers]
    rows = []
    for name, tokenizer in zip(names, args.tokenizers, strict=True):
        with tempfile.TemporaryDirectory() as cache:
            cold, data = seconds(args.data_dir, tokenizer, cache)
            warm, _ = seconds(args.data_dir, tokenizer, cache)
        megabytes = sum(data.stats(split)["bytes"] for split in ("train", "val", "test")) / 1e6
        row = {"tokenizer": name, "vocab_size": data.vocab_size, "megabytes": megabytes}
        rows.append(row | {"seconds_per_MB": cold / megabytes, "warm_seconds": warm} | facts())
        print(f"{name:<24} {cold / megabytes:6.3f} s/MB, warm {warm:.2f} s", flush=True)
    args.output.write_text(dump_json(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
