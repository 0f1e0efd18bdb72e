"""Make the tables of README.md and of the model cards from the rows in results/, between their markers.

    python benchmarks/tables.py            # rewrite them
    python benchmarks/tables.py --check    # fail where they are not what the rows say
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    path = ROOT / "results" / name
    return json.loads(path.read_text()) if path.exists() else []


def markdown(header: list[str], lines: list[list[str]]) -> str:
    body = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


def figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def speed(name: str) -> str:
    """Ours beside the peer, a line per benchmark row."""
    found = rows(name)
    if not found:
        return ""
    lines = []
    for r in found:
        floor = f"{r['share_of_floor']:.0%} of {figure(r['floor'])}" if "floor" in r else ""
        unit = r["unit"]
        lines.append(
            [r["benchmark"], f"{figure(r['ours'])} {unit}", f"{figure(r['peer'])} {unit}", f"{r['ratio']:.2f}", floor]
        )
    facts = found[0]
    about = f"{facts['cpu']}, {facts['threads']} thread, torch {facts['torch']}, commit {facts['commit']}"
    table = markdown(["benchmark", "ours", "peer", "ratio", "of the memory floor"], lines)
    how = f"median of {facts['repeats']} rounds in turn; on a CPU it is the ratios that count"
    return f"`{facts['command']}` ({about}; {how})\n\n{table}"


def wikitext2() -> str:
    """Perplexities on WikiText-2, the mean of the seeds with their spread, the counting models below."""
    found = rows("llama_wikitext2.json")
    if not found:
        return ""
    columns = ["val_ppl", "test_ppl", "val_word_ppl", "test_word_ppl"]
    lines = []
    for r in found:
        cells = [f"{r[c]:.1f}" + (f" ± {r[c + '_sd']:.1f}" if c + "_sd" in r else "") for c in columns]
        parameters = f"{r['parameters'] / 1e6:.2f}M" if "parameters" in r else ""
        lines.append([r["model"], parameters, *cells, f"{r['seconds']:.0f}"])
    header = ["model", "parameters", "val /token", "test /token", "val /word", "test /word", "seconds"]
    facts = found[0]
    return f"`{facts['command']}` ({facts['cpu']}, {facts['threads']} threads)\n\n" + markdown(header, lines)


def packing() -> str:
    """Seconds per megabyte of text, a line per tokenizer."""
    found = rows("packing.json")
    if not found:
        return ""
    lines = []
    for r in found:
        lines.append([r["tokenizer"], f"{r['vocab_size']:,}", figure(r["seconds_per_MB"]), figure(r["warm_seconds"])])
    header = ["tokenizer", "vocabulary", "s/MB", "next start, s"]
    return f"`{found[0]['command']}` ({found[0]['cpu']})\n\n" + markdown(header, lines)


TABLES = {
    "llama-speed": lambda: speed("llama.json"),
    "llama-wikitext2": wikitext2,
    "packing": packing,
    "startup": lambda: speed("startup.json"),
}


def filled(text: str) -> str:
    """`text` with what stands between `<!-- table: NAME -->` and `<!-- end -->` made anew."""
    pattern = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "zoo").glob("*/README.md"))):
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(after, encoding="utf-8")
    if stale:
        print(("stale: " if check else "rewrote ") + ", ".join(stale), file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
