"""Made-up opinions of films in which the order of the words decides: text in, class out, no download.

An opinion is two clauses, `the plot is not dull , but the ending is weak`, of which one outweighs the other: the one
after "but", or the one that no "although" opens. Its class is what that one says, turned round by a negation. A bag of
words cannot know which clause a word is in.
"""

from random import Random

from zoo.datamodules.sources.tables import Table
from zoo.training.random_streams import derive

OPINIONS = "opinions"
ROWS = {"train": 3000, "val": 500, "test": 500}

_SUBJECTS = ("plot", "acting", "music", "ending", "dialogue", "camera work", "first half", "cast", "humour", "pace")
_WORDS = {
    "negative": ("dull", "weak", "awful", "tiresome", "clumsy", "hollow", "bad", "flat"),
    "positive": ("fine", "strong", "superb", "gripping", "clever", "moving", "good", "fresh"),
}
_PLAIN = "the {subject} is {word}"
_NEGATED = ("the {subject} is not {word}", "the {subject} is hardly {word}", "nobody would call the {subject} {word}")
_JOINED = ("{minor} , but {major}", "although {minor} , {major}", "{major} , although {minor}")


def opinions(split: str) -> Table:
    """The rows of a split, always the same."""
    random = Random(derive(0, OPINIONS, split))
    drawn = [_opinion(random) for _ in range(ROWS[split])]
    rows = [(f"{split} opinion {i}", {"label": label, "text": text}) for i, (label, text) in enumerate(drawn, start=1)]
    return Table(OPINIONS, ["label", "text"], rows)


def _opinion(random: Random) -> tuple[str, str]:
    """A class and its text."""
    (label, major), (_, minor) = _clause(random), _clause(random)
    return label, random.choice(_JOINED).format(major=major, minor=minor)


def _clause(random: Random) -> tuple[str, str]:
    label, other = random.sample(sorted(_WORDS), 2)
    negated = random.random() < 0.5
    form = random.choice(_NEGATED) if negated else _PLAIN
    word = random.choice(_WORDS[other if negated else label])
    return label, form.format(subject=random.choice(_SUBJECTS), word=word)
