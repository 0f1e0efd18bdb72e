"""Generated opinions of films in which word order decides the class: text in, class out, no download.

An opinion has two clauses, `the plot is not dull , but the ending is weak`. The main clause is the one after "but", or
the one that does not begin with "although". Its word gives the class, inverted by a negation. A bag of words cannot
know which clause a word is in.
"""

from random import Random

from zoo.datamodules.sources.table_rows import Table
from zoo.training.random_streams import derive

OPINIONS = "opinions"
ROWS = {"train": 3000, "val": 500, "test": 500}

_SUBJECTS = ("plot", "acting", "music", "ending", "dialogue", "camera work", "first half", "cast", "humour", "pace")
_WORDS = {
    "negative": ("dull", "weak", "awful", "tiresome", "clumsy", "hollow", "bad", "flat"),
    "positive": ("fine", "strong", "superb", "gripping", "clever", "moving", "good", "fresh"),
}
_AFFIRMED = "the {subject} is {word}"
_NEGATED = ("the {subject} is not {word}", "the {subject} is hardly {word}", "nobody would call the {subject} {word}")
_SENTENCES = ("{minor} , but {main}", "although {minor} , {main}", "{main} , although {minor}")


def opinions(split: str, label_column: str = "label", text_column: str = "text") -> Table:
    """The rows of a split, equal in every call."""
    random = Random(derive(0, OPINIONS, split))
    drawn = [_draw_opinion(random) for _ in range(ROWS[split])]
    rows = [
        (f"{split} opinion {i}", {label_column: label, text_column: text})
        for i, (label, text) in enumerate(drawn, start=1)
    ]
    return Table(OPINIONS, [label_column, text_column], rows)


def _draw_opinion(random: Random) -> tuple[str, str]:
    """A class and a text of it."""
    (label, main), (_, minor) = _draw_clause(random), _draw_clause(random)
    return label, random.choice(_SENTENCES).format(main=main, minor=minor)


def _draw_clause(random: Random) -> tuple[str, str]:
    """A class and a clause of it."""
    label, other = random.sample(sorted(_WORDS), 2)
    is_negated = random.random() < 0.5
    template = random.choice(_NEGATED) if is_negated else _AFFIRMED
    word = random.choice(_WORDS[other if is_negated else label])
    return label, template.format(subject=random.choice(_SUBJECTS), word=word)
