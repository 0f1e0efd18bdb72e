"""LlamaClassifier with the settings that its rules choose, next to tuned bags of words, on public sets of short texts.

    python benchmarks/classifier_defaults.py --data_dir DIR --sets questions headlines sms tweets products sst cfimdb

DIR is the folder with reviews/; the other sets come with packages that benchmarks/text_sets.py names.

"LlamaClassifier" is `zoo fit --config llama_classifier` with nothing but the data; "its bag of words" is the one that
this classifier adds to its head, alone. The other bags of words are scikit-learn's logistic regression on sublinear
TF-IDF of words and pairs of words, of 2 to 5 characters, and of both, with the inverse penalty of the best accuracy in
cross-validation; and naive Bayes with the best smoothing. They are fitted to all training rows, of which the classifier
keeps a tenth for validation. Each row of classifier_defaults.json is one model on one set; rows measured before
stay, and are not measured again.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline, make_union

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments, store  # noqa: E402
from benchmarks.text_sets import NAMES, load  # noqa: E402
from benchmarks.text_sets import Row as TextRow  # noqa: E402
from zoo.cli.command_line import ZooCLI  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402

QUIET = [
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--trainer.num_sanity_val_steps=0", "--trainer.accelerator=cpu"),
]
Row = dict[str, Any]


def baselines(train: list[TextRow], test: list[TextRow]) -> Iterator[Row]:
    """The most frequent class, and bags of words whose strength cross-validation chooses."""
    texts, labels = (np.array(column, dtype=object) for column in zip(*train, strict=True))
    truth = np.array([label for _, label in test])
    names, counts = np.unique(labels.astype(str), return_counts=True)
    yield {"model": "most frequent class", **scores(truth, np.full(len(truth), names[counts.argmax()]))}
    words = {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b|[!?]"}
    of_words = TfidfVectorizer(sublinear_tf=True, **words)
    of_characters = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5))
    logistic, penalties = LogisticRegression(max_iter=200, tol=1e-3), {"C": [1, 10, 100, 1000]}
    candidates: dict[str, tuple[Any, Any, dict[str, list[float]]]] = {
        "naive Bayes": (CountVectorizer(binary=True, **words), MultinomialNB(), {"alpha": [0.03, 0.1, 0.3, 1.0]}),
        "logistic regression, words": (of_words, logistic, penalties),
        "logistic regression, characters": (of_characters, logistic, penalties),
        "logistic regression, both": (make_union(of_words, of_characters), logistic, penalties),
    }
    for name, (vectorizer, model, grid) in candidates.items():
        start = time.process_time()
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        features = vectorizer.fit_transform(texts)
        search = GridSearchCV(model, grid, cv=folds).fit(features, labels.astype(str))
        fitted = make_pipeline(vectorizer, search.best_estimator_)
        seconds = time.process_time() - start
        predicted = fitted.predict([text for text, _ in test])
        yield {"model": name, **scores(truth, predicted), "setting": str(search.best_params_), "cpu_seconds": seconds}


def scores(truth: np.ndarray, predicted: np.ndarray) -> Row:
    return {
        "accuracy": float((truth == predicted).mean()),
        "macro_f1": f1_score(truth, predicted, average="macro", zero_division=0),
    }


def classifier(folder: Path, data: Path, test: list[TextRow], seed: int, options: list[str]) -> Iterator[Row]:
    """Metrics of `zoo test` after `zoo fit` with nothing but the data, and of the bag of words alone."""
    start = time.process_time()
    words = [f"--data_dir={data}", f"--output_dir={folder}", f"--seed_everything={seed}"]
    cli = ZooCLI(["fit", "--config=llama_classifier", *words, *QUIET, *options])
    seconds = time.process_time() - start
    tested = ZooCLI(["test", f"--ckpt_path={folder / 'best.ckpt'}", *QUIET])
    logged = {name.removeprefix("test_"): value.item() for name, value in tested.trainer.callback_metrics.items()}
    settings = cli.model.hparams
    yield {
        "model": "LlamaClassifier",
        "seed": seed,
        **{name: logged[name] for name in ("accuracy", "macro_f1", "loss")},
        "setting": f"{settings['bow_features']}, C {settings['bow_C']:g}",
        "scales": cli.model.logit_scales.tolist(),
        "steps": cli.trainer.global_step,
        "cpu_seconds": seconds,
    }
    if (bag := tested.model.bow_features) is not None:
        texts, labels = zip(*test, strict=True)
        predicted = np.array(tested.model.label_names)[bag(texts).argmax(1).numpy()]
        yield {"model": "its bag of words", **scores(np.array(labels), predicted)}


def write(folder: Path, rows: list[TextRow], split: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--models", nargs="+", default=["baselines", "rules"], choices=["baselines", "rules"])
    parser.add_argument("--data_dir", type=Path, default=Path())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "classifier-defaults")
    args = parse_arguments(parser, "classifier_defaults.json", passes_on=True)
    about = facts() | {"threads": torch.get_num_threads()}

    for name in args.sets:
        train, test = load(name, args.data_dir)
        data = args.output_dir.resolve() / name / "data"
        for split, rows in (("train", train), ("test", test)):
            write(data, rows, split)
        labels = {label for _, label in train}
        shared = {"set": name, "rows": len(train), "test_rows": len(test), "classes": len(labels)}

        def save(row: Row, shared: Row = shared) -> None:
            label = f"{shared['set']}, {row['model']}" + (f", seed {row['seed']}" if "seed" in row else "")
            store([{"benchmark": label, **shared, **row, **about}], args.output)
            print(label, dump_json({k: round(v, 4) for k, v in row.items() if isinstance(v, float)}), flush=True)

        measured = json.loads(args.output.read_text()) if args.output.exists() else []
        done = {row["benchmark"] for row in measured}
        if "baselines" in args.models and f"{name}, logistic regression, both" not in done:
            for row in baselines(train, test):
                save(row)
        for seed in args.seeds if "rules" in args.models else []:
            if f"{name}, LlamaClassifier, seed {seed}" not in done:
                for row in classifier(
                    args.output_dir.resolve() / name / f"seed-{seed}", data, test, seed, args.options
                ):
                    save(row)


if __name__ == "__main__":
    main()
