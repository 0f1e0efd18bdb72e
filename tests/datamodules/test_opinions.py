"""Made-up opinions: their class is what the main clause says, and words without their order do not tell it."""

import re

from zoo.baselines import bag_of_words
from zoo.datamodules import Reviews
from zoo.datamodules.opinions import ROWS

GOOD = {"fine", "strong", "superb", "gripping", "clever", "moving", "good", "fresh"}


def said(text):
    """The class of an opinion, by reading it."""
    if " but " in text:
        main = text.split(" , but ")[1]
    else:
        main = next(clause for clause in text.split(" , ") if not clause.startswith("although"))
    good = bool(GOOD & set(main.split()))
    return int(good != bool(re.search(r"\b(not|hardly|nobody)\b", main)))


def test_an_opinion_says_what_its_main_clause_says():
    data = Reviews()
    assert data.label_names == ["negative", "positive"]
    for split, n in ROWS.items():
        texts, classes = data.texts(split), data.targets(split)[:, 0]
        assert len(texts) == n
        assert [said(text) for text in texts] == classes.tolist()
        assert 0.45 < classes.mean() < 0.55
    assert data.texts("predict") == data.texts("test")
    assert data.texts("train") == Reviews(seed=7).texts("train")
    assert len({*data.texts("train")} & {*data.texts("test")}) < 25


def test_words_without_their_order_do_not_tell():
    data = Reviews()
    train, test = ((data.texts(split), data.targets(split)[:, 0].astype(int)) for split in ("train", "test"))
    bag, _ = bag_of_words("logistic regression", *train, test)
    assert 0.6 < bag.score(*test) < 0.85
