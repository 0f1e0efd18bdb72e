"""Llama as a classifier of reviews beside bags of words: several seeds, one JSON row each, on dev and on test.

    python benchmarks/reviews.py baselines zero_shot scratch stories --data_dir reviews --stories stories260K
    python benchmarks/reviews.py pretrain pretrained pretrained_bag pretrained_lora --data_dir reviews \\
        --wikitext wikitext-2                                                                      # pretraining once
    python benchmarks/reviews.py scratch_bag --tasks cfimdb --seeds 0 --data_dir reviews --trainer.max_epochs=2

--data_dir is the folder with sst-train.txt, ..., cfimdb-train.txt, ... and amazon_alexa.tsv. Tasks: sst; cfimdb, whose
test file has no gold labels; products (Alexa's reviews, 1 and 2 stars against 4 and 5, each text once, a tenth for dev
and a tenth for test). What learnt from cfimdb is tested "elsewhere" too, on all products, and the reverse on cfimdb's
dev. Rows go to results/reviews.json, a row measured again in the place of its old one; runs stay in --output_dir, and a
row whose run is there is only evaluated. After several seeds follows the row of their mean probabilities. What the
command line does not know goes to `zoo fit`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, store  # noqa: E402
from zoo.baselines import bag_of_words  # noqa: E402
from zoo.cli.command_line import ZooCLI  # noqa: E402
from zoo.datamodules import Reviews  # noqa: E402

Row = dict[str, Any]
FILMS = {"sst": "awful,bad,average,good,excellent", "cfimdb": "negative,positive"}
STARS = '{"1": "negative", "2": "negative", "4": "positive", "5": "positive"}'
QUESTION = "{text} Is this movie {choices}? This movie is"
BAG = {"sst": "tfidf", "cfimdb": "naive_bayes", "products": "naive_bayes"}


class Task:
    """A task's files of lines `label ||| text`, and what is measured on them."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.folder = name, args.data_dir if name in FILMS else args.output_dir / "data"
        self.names = FILMS.get(name, FILMS["cfimdb"])
        if name == "products" and not self.file("all").exists():
            self._write(args.data_dir / "amazon_alexa.tsv")
        self.places = {split: self.file(split) for split in ("dev", "test") if (name, split) != ("cfimdb", "test")}
        if name == "cfimdb":
            self.places["elsewhere"] = Task("products", args).file("all")
        if name == "products":
            self.places["elsewhere"] = args.data_dir / "cfimdb-dev.txt"
        self.config = ROOT / "configs" / ("sst" if name == "sst" else "cfimdb") / "llama.yaml"
        placeholders = "test" if name == "cfimdb" else "null"
        self.options = [f"--data.label_names={self.names}", f"--data.unlabelled={placeholders}"]

    def file(self, split: str) -> Path:
        return self.folder / f"{self.name}-{split}.txt"

    def read(self, file: Path) -> tuple[list[str], np.ndarray]:
        """Texts and classes of a whole file."""
        rows = Reviews(str(file), self.names).rows("predict")
        return rows.texts, rows.targets[:, 0].astype(int)

    def _write(self, table: Path) -> None:
        columns = {"text_column": "verified_reviews", "label_column": "rating"}
        rows = Reviews(str(table), STARS, bad_rows="skip", **columns).rows("predict")
        once = dict(zip((" ".join(text.split()) for text in rows.texts), rows.targets[:, 0].astype(int), strict=True))
        lines = [f"{label} ||| {text}\n" for text, label in once.items()]
        order = np.random.default_rng(0).permutation(len(lines))
        tenth = len(lines) // 10
        parts = {"dev": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :], "all": order}
        self.folder.mkdir(parents=True, exist_ok=True)
        for split, chosen in parts.items():
            self.file(split).write_text("".join(lines[i] for i in chosen), encoding="utf-8")


def scores(where: str, truth: np.ndarray, found: np.ndarray) -> Row:
    return {
        f"{where}_accuracy": accuracy_score(truth, found),
        f"{where}_macro_f1": f1_score(truth, found, average="macro"),
    }


# ---- bags of words


def baselines(task: Task, args: argparse.Namespace) -> Iterator[Row]:
    """The commonest class, naive Bayes and logistic regression."""
    texts, classes = task.read(task.file("train"))
    places = [(where, *task.read(file)) for where, file in task.places.items()]
    commonest = np.bincount(classes).argmax()
    row: Row = {"model": "majority"}
    for where, _, truth in places:
        row |= scores(where, truth, np.full(len(truth), commonest))
    yield row
    for kind in ("naive Bayes", "logistic regression"):
        start = time.perf_counter()
        model, setting = bag_of_words(kind, texts, classes, task.read(task.places["dev"]))
        row = {"model": kind, "setting": setting, "seconds": time.perf_counter() - start}
        for where, these, truth in places:
            row |= scores(where, truth, model.predict(these))
        yield row


# ---- Llamas


def stories(args: argparse.Namespace) -> list[str]:
    if args.stories is None:
        raise SystemExit("this row starts from stories260K: give its folder with --stories")
    return [f"--model.weights={args.stories / 'stories260K.bin'}", f"--data.tokenizer={args.stories / 'tok512.bin'}"]


def own(args: argparse.Namespace) -> list[str]:
    best = args.output_dir / "pretraining" / "best.ckpt"
    if not best.exists():
        raise SystemExit("this row starts from the rows' own pretraining: name pretrain before it")
    return [f"--model.weights={best}", f"--data.tokenizer={best}"]


GOES_ON = ["--model.lm_weight=0.5"]  # pretraining, beside the task
SHORT = ["--model.dropout=0.1", "--model.lr=3e-3", "--data.max_input_len=256", "--trainer.max_epochs=2"]
OWN = ["--model.dropout=0.2", "--model.lr=2e-3", "--trainer.max_epochs=2", "--trainer.precision=bf16-mixed"]
LORA = ["--model.method=lora", "--model.lora_rank=16", "--model.dropout=0.1", "--model.lr=5e-3"]
TRAINED: dict[str, tuple[str, Any, list[str], bool]] = {  # name on the command line -> model, start, options, a bag
    "scratch": ("from scratch", None, [], False),
    "scratch_bag": ("from scratch, with the bag", None, [], True),
    "stories": ("from stories260K", stories, SHORT + GOES_ON, False),
    "stories_lora": ("from stories260K, LoRA", stories, SHORT + LORA, False),
    "pretrained": ("pretrained here", own, OWN + GOES_ON, False),
    "pretrained_bag": ("pretrained here, with the bag", own, OWN + GOES_ON, True),
    "pretrained_lora": ("pretrained here, LoRA", own, OWN + LORA, False),
}
ZERO_SHOT = {
    "zero-shot, stories260K": ("", []),
    "zero-shot, stories260K, calibrated": ("", ["--model.calibrate=true"]),
    "zero-shot, stories260K, as the course": (" ", ["--model.compat=true", "--data.batch_size=10"]),
}


def trained(name: str, task: Task, args: argparse.Namespace) -> Iterator[Row]:
    model, start_from, options, bag = TRAINED[name]
    options = [*(start_from(args) if start_from else []), *options]
    options += [f"--model.bag={BAG[task.name]}"] if bag else []
    together: dict[str, list[np.ndarray]] = {}
    for seed in args.seeds:
        folder = args.output_dir / f"{task.name}-{name}-{seed}"
        done = folder / "done.json"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            start = time.perf_counter()
            argv = [f"--config={task.config}", f"--data_dir={task.folder / task.name}", f"--output_dir={folder}"]
            argv += [*task.options, f"--seed_everything={seed}", *options, *args.options]
            subprocess.run([sys.executable, "-m", "zoo", "fit", *argv], cwd=ROOT, check=True)
            done.write_text(json.dumps({"seconds": time.perf_counter() - start}))
        row = {"model": model, "seed": seed, **json.loads(done.read_text())}
        for where, probabilities, truth in measured([f"--ckpt_path={folder / 'best.ckpt'}"], folder, task):
            row |= scores(where, truth, probabilities.argmax(1))
            together.setdefault(where, []).append(probabilities)
        yield row
    if len(args.seeds) > 1:
        row = {"model": f"{model}, {len(args.seeds)} seeds together"}
        for where, file in task.places.items():
            row |= scores(where, task.read(file)[1], np.mean(together[where], axis=0).argmax(1))
        yield row


def zero_shot(task: Task, args: argparse.Namespace) -> Iterator[Row]:
    for number, (model, (end, options)) in enumerate(ZERO_SHOT.items()):
        data = {"prompt": QUESTION + end, "max_input_len": 500, "long_rows": "truncate", "lowercase": "false"}
        argv = [f"--config={task.config}", "--model.method=zero_shot", *stories(args), *options]
        argv += [f"--data.{name}={value}" for name, value in data.items()]
        start, row = time.perf_counter(), {"model": model}
        folder = args.output_dir / f"{task.name}-zero_shot-{number}"
        for where, probabilities, truth in measured(argv, folder, task):
            row |= scores(where, truth, probabilities.argmax(1))
        yield row | {"seconds": time.perf_counter() - start}


def measured(argv: list[str], folder: Path, task: Task) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Where, the probabilities (N, C) and the classes (N,) of each of the task's places."""
    for where, file in task.places.items():
        out = folder / f"{where}.jsonl"
        out.unlink(missing_ok=True)
        more = [f"--predictions.path={out}", "--trainer.enable_progress_bar=false", f"--output_dir={folder}"]
        ZooCLI(["predict", *argv, f"--data_dir={file}", *task.options, *more])
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        probabilities = np.array([list(row["probabilities"].values()) for row in rows])
        yield where, probabilities, np.array([int(row["gold"]) for row in rows])


def pretrain(args: argparse.Namespace) -> None:
    """A Llama on WikiText-2 and the training texts of both films' tasks, in lower case as the classifiers read."""
    if args.wikitext is None:
        raise SystemExit("pretrain reads WikiText-2: give its folder with --wikitext")
    folder = args.output_dir / "pretraining"
    if (folder / "best.ckpt").exists():
        return
    texts = folder / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    for split, ours in (("train", "train"), ("valid", "dev")):
        wiki = next(file for file in sorted(args.wikitext.iterdir()) if split in file.name).read_text(encoding="utf-8")
        films = [text for name in FILMS for text in Task(name, args).read(args.data_dir / f"{name}-{ours}.txt")[0]]
        (texts / f"{split}.txt").write_text((wiki + "\n" + "\n".join(films)).lower() + "\n", encoding="utf-8")
    argv = [f"--config={ROOT / 'configs' / 'wikitext2' / 'llama.yaml'}", f"--data_dir={texts}", "--model.dropout=0.1"]
    argv += [f"--output_dir={folder}", "--data.bpe_vocab_size=4096", *args.options]
    subprocess.run([sys.executable, "-m", "zoo", "fit", *argv], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", choices=["baselines", "zero_shot", "pretrain", *TRAINED])
    parser.add_argument("--data_dir", type=Path, required=True)
    tasks = ["sst", "cfimdb", "products"]
    parser.add_argument("--tasks", nargs="+", default=tasks, choices=tasks)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--stories", type=Path, help="stories260K's folder")
    parser.add_argument("--wikitext", type=Path, help="WikiText-2's folder")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "reviews")
    args, args.options = parser.parse_known_args()
    for name in ("data_dir", "output_dir", "stories", "wikitext"):
        setattr(args, name, getattr(args, name) and getattr(args, name).resolve())
    about = facts() | {"threads": torch.get_num_threads()}
    if "pretrain" in args.rows:
        pretrain(args)
    for name in args.tasks:
        task = Task(name, args)
        for kind in [kind for kind in args.rows if kind != "pretrain"]:
            made = {"baselines": baselines, "zero_shot": zero_shot}.get(kind)
            for row in made(task, args) if made else trained(kind, task, args):
                label = f"{name}, {row['model']}" + (f", seed {row['seed']}" if "seed" in row else "")
                store([{"benchmark": label, "task": name, **row, **about}], ROOT / "results" / "reviews.json")
                print(label, json.dumps({k: round(v, 4) for k, v in row.items() if isinstance(v, float)}), flush=True)


if __name__ == "__main__":
    main()
