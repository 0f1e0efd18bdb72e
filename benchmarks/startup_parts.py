"""CPU seconds from the command to the end of the first training step of every tiny config, by part.

    python benchmarks/startup_parts.py
    python benchmarks/startup_parts.py --before COMMIT     # next to an earlier commit, in turn

CPU seconds of one thread, because they depend little on other work on the machine. No tiny config compiles its model.
Each round is a row of startup_parts.json.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments  # noqa: E402
from zoo.cli.config_names import config_files  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402

MEASURE = """
import json, os, sys, time
try:
    from zoo.private_apis.deferred_imports import defer_imports
    defer_imports()
except ModuleNotFoundError:  # an earlier commit
    pass
from lightning.pytorch import Callback
from zoo.cli.command_line import ZooCLI
parts, last = {}, 0.0
def end(part):
    global last
    now = time.process_time()
    parts[part], last = now - last, now
end("imports_s")
class Parts(Callback):
    def on_train_start(self, *_):
        end("validation_s")
    def on_train_batch_end(self, *_):
        end("step_s")
        parts["total_s"] = last
        print(json.dumps(parts), flush=True)
        os._exit(0)
class MeasuredCLI(ZooCLI):
    def parse_arguments(self, *args):
        super().parse_arguments(*args)
        end("parser_s")
    def instantiate_classes(self):
        super().instantiate_classes()
        end("model_s")
MeasuredCLI(sys.argv[1:], callbacks=[Parts()])
"""


def parts(root: Path, config: str) -> dict[str, float]:
    """CPU seconds of each part, for the code in `root`."""
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", MEASURE, "fit", f"--config={config}", f"--output_dir={folder}/run"]
        done = subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--before", metavar="COMMIT", help="an earlier commit to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (%(default)s)")
    args = parse_arguments(parser, "startup_parts.json")
    configs = [name for name in config_files() if name.startswith("tiny/")]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        states = {"now": ROOT}
        if args.before:
            archive = subprocess.run(["git", "archive", args.before], cwd=ROOT, check=True, stdout=subprocess.PIPE)
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
                tar.extractall(folder, filter="data")
            states = {f"before (commit {args.before})": Path(folder), **states}
        for i in range(1, args.rounds + 1):
            for config in configs:
                for state, root in states.items():
                    row = {"config": config, "state": state, "round": i, **parts(root, config), "threads": 1, **facts()}
                    rows.append(row)
                    args.output.write_text(dump_json(rows, indent=1) + "\n")
                    print(f"round {i}: {config}, {state}: {row['total_s']:.2f} CPU s", flush=True)


if __name__ == "__main__":
    main()
