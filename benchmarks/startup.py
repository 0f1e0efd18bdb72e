"""Start-up time of the command line, compared with the import of LightningCLI alone; whole processes, in turn.

Usage:

    python benchmarks/startup.py

Rows go to results/startup.json.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, in_turn  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402

PEER = "python -c 'import lightning.pytorch.cli'"
COMMANDS = {
    PEER: ["-c", "import lightning.pytorch.cli"],
    "python -c 'import zoo'": ["-c", "import zoo"],
    "zoo --help": ["-m", "zoo", "--help"],
    "zoo list": ["-m", "zoo", "list"],
}


def main() -> None:
    def process(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    seconds = in_turn({name: lambda words=words: process(words) for name, words in COMMANDS.items()}, repeats=5)
    rows = [
        {"benchmark": name, "ours": value, "peer": seconds[PEER], "ratio": value / seconds[PEER], "unit": "s"}
        | {"repeats": 5, "threads": 1}
        | facts()
        for name, value in seconds.items()
        if name != PEER
    ]
    (ROOT / "results" / "startup.json").write_text(dump_json(rows, indent=1) + "\n")
    for row in rows:
        print(f"{row['benchmark']:<24} {row['ours']:.3f} s, {row['ratio']:.3f} of {PEER}")


if __name__ == "__main__":
    main()
