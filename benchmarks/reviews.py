"""Llama as a classifier of reviews, compared with bags of words: several seeds, one JSON row each, on dev and test.

    python benchmarks/reviews.py baselines zero_shot scratch stories --data_dir reviews --stories stories260K
    python benchmarks/reviews.py pretrain pretrained pretrained_bag pretrained_lora --data_dir reviews \\
        --wikitext wikitext-2                                                    # pretrains once, then trains
    python benchmarks/reviews.py scratch_bag --tasks cfimdb --seeds 0 --data_dir reviews --trainer.max_epochs=2

--data_dir is the folder with sst-train.txt, ..., cfimdb-train.txt, ... and amazon_alexa.tsv. Tasks: sst; cfimdb, whose
test file has placeholder labels; products (Alexa's reviews: 1 and 2 stars are negative, 4 and 5 positive, without
duplicates, a tenth each for dev and test). Models trained on cfimdb are also tested "elsewhere", on all products, and
models trained on products on cfimdb's dev file.

Rows go to reviews.json and replace older rows of the same name. Runs stay in --output_dir; a row whose run
exists is only evaluated. Several seeds give one more row, for the mean of their probabilities. Options that this
program does not know are passed on to `zoo fit`.
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

from benchmarks.measure import facts, parse_arguments, store  # noqa: E402
from zoo.baselines import bag_of_words  # noqa: E402
from zoo.cli.command_line import ZooCLI  # noqa: E402
from zoo.datamodules import Reviews  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402

Row = dict[str, Any]
FILMS = {"sst": "awful,bad,average,good,excellent", "cfimdb": "negative,positive"}
STARS = '{"1": "negative", "2": "negative", "4": "positive", "5": "positive"}'
PROMPT = "{text} Is this movie {choices}? This movie is"
BAG = {"sst": "tfidf", "cfimdb": "naive_bayes", "products": "naive_bayes"}


class Task:
    """A task's files of lines `label ||| text`, its class names and its evaluation files.

    Args:
        name: "sst", "cfimdb" or "products".
        args: the parsed command line.
    """

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
        """Texts and classes (N,) of a whole file."""
        data = Reviews(str(file), self.names, long_rows="truncate")  # cuts the tokens, not the texts
        return data.texts("predict"), data.targets("predict")[:, 0].astype(int)

    def _write(self, table: Path) -> None:
        """Write the files of the products task from Alexa's table."""
        columns = {"text_column": "verified_reviews", "label_column": "rating"}
        data = Reviews(str(table), STARS, bad_rows="skip", long_rows="truncate", **columns)
        texts = (" ".join(text.split()) for text in data.texts("predict"))
        unique = dict(zip(texts, data.targets("predict")[:, 0].tolist(), strict=True))  # each text once
        lines = [f"{label:.0f} ||| {text}\n" for text, label in unique.items() if label >= 0]  # not those of 3 stars
        order = np.random.default_rng(0).permutation(len(lines))
        tenth = len(lines) // 10
        parts = {"dev": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :], "all": order}
        self.folder.mkdir(parents=True, exist_ok=True)
        for split, chosen in parts.items():
            self.file(split).write_text("".join(lines[i] for i in chosen), encoding="utf-8")


def scores(place: str, truth: np.ndarray, predicted: np.ndarray) -> Row:
    """Accuracy and macro F1 of predicted classes (N,)."""
    return {
        f"{place}_accuracy": accuracy_score(truth, predicted),
        f"{place}_macro_f1": f1_score(truth, predicted, average="macro"),
    }


# ---- bags of words


def baselines(task: Task, args: argparse.Namespace) -> Iterator[Row]:
    """The most frequent class, naive Bayes and logistic regression."""
    texts, classes = task.read(task.file("train"))
    places = [(place, *task.read(file)) for place, file in task.places.items()]
    majority = np.bincount(classes).argmax()
    row: Row = {"model": "majority"}
    for place, _, truth in places:
        row |= scores(place, truth, np.full(len(truth), majority))
    yield row
    for kind in ("naive Bayes", "logistic regression"):
        start = time.perf_counter()
        model, setting = bag_of_words(kind, texts, classes, task.read(task.places["dev"]))
        row = {"model": kind, "setting": setting, "seconds": time.perf_counter() - start}
        for place, held_out, truth in places:
            row |= scores(place, truth, model.predict(held_out))
        yield row


# ---- Llamas


def start_from_stories(args: argparse.Namespace) -> list[str]:
    """Options that start from stories260K."""
    if args.stories is None:
        raise SystemExit("this row starts from stories260K: give its folder with --stories")
    return [f"--model.weights={args.stories / 'stories260K.bin'}", f"--data.tokenizer={args.stories / 'tok512.bin'}"]


def start_from_pretraining(args: argparse.Namespace) -> list[str]:
    """Options that start from this program's own pretraining."""
    best = args.output_dir / "pretraining" / "best.ckpt"
    if not best.exists():
        raise SystemExit("this row starts from the pretraining of this program: give the row `pretrain` too")
    return [f"--model.weights={best}", f"--data.tokenizer={best}"]


LM_LOSS = ["--model.lm_weight=0.5"]  # keep the next-token loss while training the classifier
STORIES = ["--model.dropout=0.1", "--model.lr=3e-3", "--data.max_input_len=256", "--trainer.max_epochs=2"]
PRETRAINED = ["--model.dropout=0.2", "--model.lr=2e-3", "--trainer.max_epochs=2", "--trainer.precision=bf16-mixed"]
LORA = ["--model.method=lora", "--model.lora_rank=16", "--model.dropout=0.1", "--model.lr=5e-3"]
# Name on the command line -> model in the table, starting point, options, with a bag of words.
TRAINED: dict[str, tuple[str, Any, list[str], bool]] = {
    "scratch": ("from scratch", None, [], False),
    "scratch_bag": ("from scratch, with the bag", None, [], True),
    "stories": ("from stories260K", start_from_stories, STORIES + LM_LOSS, False),
    "stories_lora": ("from stories260K, LoRA", start_from_stories, STORIES + LORA, False),
    "pretrained": ("pretrained here", start_from_pretraining, PRETRAINED + LM_LOSS, False),
    "pretrained_bag": ("pretrained here, with the bag", start_from_pretraining, PRETRAINED + LM_LOSS, True),
    "pretrained_lora": ("pretrained here, LoRA", start_from_pretraining, PRETRAINED + LORA, False),
}
ZERO_SHOT = {  # model in the table -> end of the prompt, options
    "zero-shot, stories260K": ("", []),
    "zero-shot, stories260K, calibrated": ("", ["--model.calibrate=true"]),
    "zero-shot, stories260K, as the course": (" ", ["--model.course_scoring=true"]),
}


def trained(name: str, task: Task, args: argparse.Namespace) -> Iterator[Row]:
    """One row per seed of a model of TRAINED, and one for the mean probabilities of all seeds."""
    model, start_from, options, bag = TRAINED[name]
    options = [*(start_from(args) if start_from else []), *options]
    options += [f"--model.bow_features={BAG[task.name]}"] if bag else []
    by_place: dict[str, list[np.ndarray]] = {}
    for seed in args.seeds:
        folder = args.output_dir / f"{task.name}-{name}-{seed}"
        done = folder / "done.json"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            start = time.perf_counter()
            argv = [f"--config={task.config}", f"--data_dir={task.folder / task.name}", f"--output_dir={folder}"]
            argv += [*task.options, f"--seed_everything={seed}", *options, *args.options]
            subprocess.run([sys.executable, "-m", "zoo", "fit", *argv], cwd=ROOT, check=True)
            done.write_text(dump_json({"seconds": time.perf_counter() - start}))
        row = {"model": model, "seed": seed, **json.loads(done.read_text())}
        for place, probabilities, truth in evaluate([f"--ckpt_path={folder / 'best.ckpt'}"], folder, task):
            row |= scores(place, truth, probabilities.argmax(1))
            by_place.setdefault(place, []).append(probabilities)
        yield row
    if len(args.seeds) > 1:
        row = {"model": f"{model}, {len(args.seeds)} seeds together"}
        for place, file in task.places.items():
            row |= scores(place, task.read(file)[1], np.mean(by_place[place], axis=0).argmax(1))
        yield row


def zero_shot(task: Task, args: argparse.Namespace) -> Iterator[Row]:
    """One row per scoring method of ZERO_SHOT."""
    for number, (model, (end, options)) in enumerate(ZERO_SHOT.items()):
        argv = [f"--config={task.config}", f"--config={ROOT / 'configs' / 'zero_shot.yaml'}"]
        argv += [*start_from_stories(args), *options, f"--data.prompt={PROMPT + end}"]
        start, row = time.perf_counter(), {"model": model}
        folder = args.output_dir / f"{task.name}-zero_shot-{number}"
        for place, probabilities, truth in evaluate(argv, folder, task):
            row |= scores(place, truth, probabilities.argmax(1))
        yield row | {"seconds": time.perf_counter() - start}


def evaluate(argv: list[str], folder: Path, task: Task) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The name, the probabilities (N, C) and the true classes (N,) of each of the task's evaluation files."""
    for place, file in task.places.items():
        out = folder / f"{place}.jsonl"
        out.unlink(missing_ok=True)
        more = [f"--predictions.path={out}", "--trainer.enable_progress_bar=false", f"--output_dir={folder}"]
        ZooCLI(["predict", *argv, f"--data_dir={file}", *task.options, *more])
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        probabilities = np.array([list(row["probabilities"].values()) for row in rows])
        yield place, probabilities, np.array([int(row["gold"]) for row in rows])


def pretrain(args: argparse.Namespace) -> None:
    """Train a Llama on WikiText-2 and the training texts of both film tasks, in lower case as the classifiers read."""
    if args.wikitext is None:
        raise SystemExit("pretrain reads WikiText-2: give its folder with --wikitext")
    folder = args.output_dir / "pretraining"
    if (folder / "best.ckpt").exists():
        return
    texts = folder / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    for split, film_split in (("train", "train"), ("valid", "dev")):
        wiki = next(file for file in sorted(args.wikitext.iterdir()) if split in file.name).read_text(encoding="utf-8")
        films = [
            text for name in FILMS for text in Task(name, args).read(args.data_dir / f"{name}-{film_split}.txt")[0]
        ]
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
    parser.add_argument("--stories", type=Path, help="folder of stories260K")
    parser.add_argument("--wikitext", type=Path, help="folder of WikiText-2")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "reviews")
    args = parse_arguments(parser, "reviews.json", passes_on=True)
    for name in ("data_dir", "output_dir", "stories", "wikitext"):
        setattr(args, name, getattr(args, name) and getattr(args, name).resolve())
    about = facts() | {"threads": torch.get_num_threads()}
    if "pretrain" in args.rows:
        pretrain(args)
    for name in args.tasks:
        task = Task(name, args)
        for kind in [kind for kind in args.rows if kind != "pretrain"]:
            rows_of = {"baselines": baselines, "zero_shot": zero_shot}.get(kind)
            for row in rows_of(task, args) if rows_of else trained(kind, task, args):
                label = f"{name}, {row['model']}" + (f", seed {row['seed']}" if "seed" in row else "")
                store([{"benchmark": label, "task": name, **row, **about}], args.output)
                print(label, dump_json({k: round(v, 4) for k, v in row.items() if isinstance(v, float)}), flush=True)


if __name__ == "__main__":
    main()
