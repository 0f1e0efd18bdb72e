"""Generate the tables of README.md and of the model cards from the rows in results/, between their markers.

Usage:

    python benchmarks/tables.py            # rewrite the tables
    python benchmarks/tables.py --check    # fail where a table differs from its rows
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.table_models import (  # noqa: E402
    icr_sweep,
    mini_rlm,
    mini_rlm_elsewhere,
    revdeq,
    revdeq_residuals,
    weights,
    wikitext2,
)
from benchmarks.table_rows import faster, speed  # noqa: E402
from benchmarks.table_scale import busy, faults, packing, precisions, processes, ranks, streaming  # noqa: E402
from benchmarks.table_studies import STUDIES, defaults_ratios, small_tables_ranks, study  # noqa: E402

TABLES = {
    "weights-icr": lambda: weights("ICRTransformer"),
    "weights-llama": lambda: weights("LlamaLM", "LlamaClassifier"),
    "weights-mini_rlm": lambda: weights("MiniRLM"),
    "weights-regress_lm": lambda: weights("RegressLM"),
    "weights-revdeq": lambda: weights("RevDEQLM"),
    **{name.replace("_", "-", 2): (lambda name=name: study(name, *STUDIES[name])) for name in STUDIES},
    "regress-lm-small_tables-ranks": small_tables_ranks,
    "regress-lm-defaults-ratios": defaults_ratios,
    "regress-lm-speed": lambda: faster("regress_lm.json"),
    "regress-lm-gpu": lambda: faster("regress_lm.json", "gpu"),
    "busy": busy,
    "faults": faults,
    "icr-speed": lambda: faster("icr_speed.json"),
    "icr-gpu": lambda: faster("icr_speed.json", "gpu"),
    "icr-sweep": icr_sweep,
    "llama-speed": lambda: speed("llama.json"),
    "llama-gpu": lambda: speed("llama.json", "gpu", order="of each alone"),
    "llama-wikitext2": wikitext2,
    "mini-rlm": mini_rlm,
    "mini-rlm-elsewhere": mini_rlm_elsewhere,
    "packing": packing,
    "precisions": precisions,
    "processes": processes,
    "ranks": ranks,
    "revdeq-memory": lambda: revdeq("way", {"memory": "{value:.0f} MB ({share:.2f})"}),
    "revdeq-time": lambda: revdeq("way", {"time": "{value:.2f} s ({share:.2f})"}),
    "revdeq-gradients": lambda: revdeq("of", {"gradients": "{error:.1g}"}),
    "revdeq-residuals": revdeq_residuals,
    "revdeq-gpu": lambda: revdeq(
        "of", {"gpu": "{tokens_per_s:,.0f} tokens/s, {MB:,.0f} MB", "gradients": "error {error:.1g}"}, "gpu"
    ),
    "startup": lambda: speed("startup.json"),
    "streaming": streaming,
    "llama-step": lambda: speed("training_step.json", prefix=("Llama", "the matrix products of Llama")),
    "revdeq-step": lambda: speed("training_step.json", prefix=("RevDEQ",)),
}


def filled(text: str) -> str:
    """`text` with the tables between `<!-- table: NAME -->` and `<!-- end -->` generated again."""
    pattern = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    pages = (*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "zoo").glob("*/README.md")))
    for path in (ROOT / "README.md", ROOT / "results" / "README.md", *pages):
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
