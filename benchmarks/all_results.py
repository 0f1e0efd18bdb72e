"""Measure every study again and generate all tables and figures from the rows.

    python benchmarks/all_results.py --data_dir ../shared/data              # `make results`: hours to days on two cores
    python benchmarks/all_results.py --data_dir ../shared/data --quick      # `make results-quick`: at most 15 minutes
    python benchmarks/all_results.py --list                                 # commands, and what each needs

--quick runs small versions of the studies in a clone of the last commit below runs/, whose tables and figures then hold
these rows only: it shows that the programs work, and its numbers are not the published ones. After --minutes of the
clock (15) a study that still runs is stopped and no other is started, and the summary names them. A study whose data or
packages are missing is left out, with the reason. A summary at the end gives the CPU seconds of each study, its
children included.
"""

import argparse
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
QUICK_FOLDER = ROOT / "runs" / "results-quick"
TABLES_SECONDS = 20  # that --quick keeps for the tables and figures


class Study(NamedTuple):
    """A command of benchmarks/, in which {data}, {upstream} and {encoder} are the paths that main() was given.

    Args:
        command: the script and its arguments, for all rows of the documents.
        quick: arguments of the small version, or None if it has none that takes less than about a minute.
        needs: files or folders below {data} without which the command cannot run.
    """

    command: str
    quick: str | None = None
    needs: tuple[str, ...] = ()

    @property
    def script(self) -> str:
        return self.command.split()[0]

    @property
    def small(self) -> str | None:
        return None if self.quick is None else f"{self.script} {self.quick}"


TOKENIZERS = "{data}/stories260K/tok512.bin " + " ".join(
    f"{{data}}/tokenizers/{name}" for name in ("llama2_tokenizer.model", "t5_spiece.model", "gpt2_vocab.bpe")
)
CLASSIFIERS = "scratch scratch_bag pretrained pretrained_bag pretrained_lora stories stories_lora"

STUDIES = (
    # Language models
    Study(
        "wikitext2.py --data_dir {data}/wikitext-2",
        "--data_dir {data}/wikitext-2 --seeds 0 1 -- --trainer.max_steps=2 --trainer.val_check_interval=2 "
        "--trainer.limit_val_batches=1",
        ("wikitext-2",),
    ),
    Study("llama.py", "--only adamw --repeats 1"),
    Study("training_step.py", "--only bound --instructions all --repeats 1"),
    Study(
        f"packing.py --data_dir {{data}}/wikitext-2 bytes bpe {TOKENIZERS}",
        "--data_dir {data}/wikitext-2 bytes {data}/stories260K/tok512.bin",
        ("wikitext-2", "stories260K", "tokenizers"),
    ),
    Study("streaming.py --data_dir {data}/wikitext-2", needs=("wikitext-2",)),
    Study("revdeq.py", "--only gradients --repeats 1"),
    Study("revdeq_tiny.py"),
    Study("revdeq_wikitext2.py --data_dir {data}/wikitext-2", needs=("wikitext-2",)),
    # In-context regression
    Study("icr.py", "--only data --repeats 1"),
    Study("icr_contrast.py", "--seeds 0 --steps 40"),
    Study("icr_sweep.py", "--steps 20 --tasks 1,16,inf"),
    # Regression of numbers from texts
    Study("mini_rlm.py --encoders lstm mlp", "--encoders mlp --seeds 0 1"),
    Study("text_regression.py integers --seeds 0"),
    Study(
        "text_regression.py scan_bench --data_dir {data}/scan_bench",
        "scan_bench --data_dir {data}/scan_bench --seeds 0 --rows 100 --trainer.max_steps=10 "
        "--trainer.val_check_interval=10",
        ("scan_bench",),
    ),
    Study("text_regression.py timm --data_dir {data}/timm --seeds 0 1", needs=("timm",)),
    Study("text_regression.py vader --data_dir {data}/vader_floats --seeds 0", needs=("vader_floats",)),
    Study(
        "small_tables.py --scan_bench {data}/scan_bench --tables diabetes iris wine cars barley",
        "--tables diabetes --seeds 0 --models teacher baselines",
        ("scan_bench",),
    ),
    Study(
        "small_intervals.py --data_dir {data} --trainer.max_steps=400",
        "--data_dir {data} --tables diabetes --trainer.max_steps=20",
        ("scan_bench", "timm"),
    ),
    Study(
        "calibration.py --data_dir {data} --steps 800",
        "--data_dir {data} --seeds 0 --tables diabetes --steps 20",
        ("scan_bench", "timm", "vader_floats"),
    ),
    Study(
        "defaults.py --data_dir {data} --tables timm vader diabetes mpg penguins ceosal1 scan_bench --trial_steps 250",
        needs=("scan_bench", "timm", "vader_floats"),
    ),
    Study("regress_lm.py --upstream {upstream}"),
    Study("densities.py --upstream {upstream} --steps 1000 --batch_size 128"),
    Study("encoder_regression.py --data_dir {data}/vader_floats --encoder {encoder}", needs=("vader_floats",)),
    # Classes of texts
    Study(
        f"reviews.py baselines zero_shot pretrain {CLASSIFIERS} --data_dir {{data}}/reviews "
        "--stories {data}/stories260K --wikitext {data}/wikitext-2",
        "baselines --tasks products --data_dir {data}/reviews",
        ("reviews", "stories260K", "wikitext-2"),
    ),
    Study(
        "classifier_defaults.py --data_dir {data}",
        "--data_dir {data} --sets products --models baselines",
        ("reviews",),
    ),
    # What all models share
    Study("startup.py", "--repeats 1"),
    Study("startup_parts.py", "--rounds 1"),
    Study("busy.py", "--configs tiny/icr --rounds 1 --seconds 0.5"),
    Study("precisions.py", "--only chunks"),
    Study("processes.py", "--only LlamaLM"),
    Study("ranks.py", "--only ddp"),
    Study("faults.py"),
)


def storing(command: str) -> str:
    """The command with the option that puts its rows into results/."""
    script, _, options = command.partition(" ")
    return f"{script} --store {options}".strip()


def words_of(command: str, places: dict[str, Path | None], needs: tuple[str, ...]) -> tuple[list[str], str]:
    """The words of a command with its places filled in, and the reason why it cannot run, "" if it can."""
    missing = [name for name, path in places.items() if path is None and f"{{{name}}}" in command]
    if missing:
        return [], f"--{missing[0]} is not given"
    if folders := [name for name in needs if not (places["data"] or Path()).joinpath(name).exists()]:
        return [], f"{places['data']} has no {', '.join(folders)}"
    return [word.format(**places) for word in shlex.split(command)], ""


def clone() -> Path:
    """A clone of the last commit without any rows, in a new folder."""
    shutil.rmtree(QUICK_FOLDER, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(QUICK_FOLDER)], check=True)
    for path in (QUICK_FOLDER / "results").glob("*.json"):
        path.unlink()
    return QUICK_FOLDER


def run(words: list[str], folder: Path, limit: float | None = None) -> tuple[int | None, float]:
    """Exit code and CPU seconds of a script of benchmarks/ in a copy of the repository.

    Args:
        words: the script and its arguments.
        folder: the copy.
        limit: seconds after which the script and its children are stopped; the exit code is then None.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(folder)}
    print(f"\n$ python benchmarks/{shlex.join(words)}", flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    argv = [sys.executable, f"benchmarks/{words[0]}", *words[1:]]
    process = subprocess.Popen(argv, cwd=folder, env=environment, start_new_session=limit is not None)
    code: int | None
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = None
    except KeyboardInterrupt:
        if limit is not None:  # a new session does not receive the terminal's signal
            os.killpg(process.pid, signal.SIGKILL)
        raise
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return code, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="the folder of real data that tests read too, $ZOO_DATA")
    parser.add_argument("--upstream", type=Path, help="checkout of google-deepmind/regress-lm, the peer of RegressLM")
    parser.add_argument("--encoder", type=Path, help="folder of a pretrained encoder")
    parser.add_argument("--quick", action="store_true", help="small versions, in a clone")
    parser.add_argument("--minutes", type=float, default=15, help="of the clock, for --quick (default: %(default)g)")
    parser.add_argument("--only", nargs="+", metavar="SCRIPT", help="only these scripts, such as icr.py")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    args = parser.parse_args()
    if unknown := sorted(set(args.only or ()) - {study.script for study in STUDIES}):
        parser.error(f"--only: there is no study {unknown[0]}")
    given = {"data": args.data_dir, "upstream": args.upstream, "encoder": args.encoder}
    places = {name: path and path.resolve() for name, path in given.items()}
    folder = clone() if args.quick and not args.list else ROOT
    end = time.monotonic() + 60 * args.minutes - TABLES_SECONDS if args.quick else None
    summary, total, failed = [], 0.0, False
    for study in STUDIES:
        command = study.small if args.quick else study.command
        if args.only and study.script not in args.only:
            continue
        words, reason = words_of(storing(command), places, study.needs) if command else ([], "it has no small version")
        if args.list:
            reason = f"python benchmarks/{storing(command)}" if command else reason
        elif not reason and end is not None and time.monotonic() >= end:
            reason = "not started: the time is over"
        elif not reason:
            code, seconds = run(words, folder, None if end is None else end - time.monotonic())
            total, failed = total + seconds, failed or bool(code)
            reason = f"{seconds:.0f} CPU seconds"
            if code is None:
                reason += ", stopped: the time is over"
            elif code:
                reason += f", FAILED with exit code {code}"
        summary.append(f"{study.script:24} {reason}")
    if not args.list:
        failed = subprocess.run([sys.executable, "benchmarks/tables.py"], cwd=folder).returncode != 0 or failed
        summary.append(f"{total:.0f} CPU seconds; tables and figures are in {folder}")
    print("\n" + "\n".join(summary))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
