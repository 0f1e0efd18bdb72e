"""Generated opinions: the main clause gives the class, which a bag of words cannot tell."""

import re

from zoo.baselines import bag_of_words
from zoo.datamodules import Reviews
from zoo.datamodules.opinions import ROWS

GOOD = {"fine", "strong", "superb", "gripping", "clever", "moving", "good", "fresh"}


def class_of(text):
    """The class of an opinion, parsed from its text."""
    if " but " in text:
        main = text.split(" , but ")[1]
    else:
        main = next(clause for clause in text.split(" , ") if not clause.startswith("although"))
    good = bool(GOOD & set(main.split()))
    return int(good != bool(re.search(r"\b(not|hardly|nobody)\b", main)))


def test_main_clause_gives_the_class():
    data = Reviews()
    assert data.label_names == ["negative", "positive"]
    for split, n in ROWS.items():
        texts, classes = data.texts(split), data.targets(split)[:, 0]
        assert len(texts) == n
        assert [class_of(text) for text in texts] == classes.tolist()
        assert 0.45 < classes.mean() < 0.55
    assert data.texts("predict") == data.texts("test")
    assert data.texts("train") == Reviews(seed=7).texts("train")
    assert len({*data.texts("train")} & {*data.texts("test")}) < 25


def test_bag_of_words_does_not_solve_the_task():
    data = Reviews()
    train, test = ((data.texts(split), data.targets(split)[:, 0].astype(int)) for split in ("train", "test"))
    bag, _ = bag_of_words("logistic regression", *train, test)
    assert 0.6 < bag.score(*test) < 0.85
