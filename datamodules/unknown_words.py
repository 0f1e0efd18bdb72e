"""Words that a trained tokenizer does not know: a warning where rows outside the training split have some."""

import sys
from collections.abc import Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.text_formats.json_text import shorten
from zoo.tokenizers import Tokenizer
from zoo.tokenizers.hugging_face import HuggingFaceTokenizer

UNKNOWN = "<unk>"


def warn_of_unknown_words(split: str, texts: Sequence[str], ids: Sequence[Sequence[int]], tokenizer: Tokenizer) -> None:
    """Print how many texts have words that no training text has, such as a new category, and the first of them.

    Args:
        split: of the texts; nothing is printed for "train".
        texts: (N,) the texts.
        ids: (N,) their tokens.
        tokenizer: of the tokens; only one with a token for all unknown words loses any.
    """
    unknown = tokenizer.tokens.get(UNKNOWN) if isinstance(tokenizer, HuggingFaceTokenizer) else None
    rows = [i for i, row in enumerate(ids) if unknown in row] if unknown is not None and split != "train" else []
    if not rows:
        return
    word = next((word for word in texts[rows[0]].split() if unknown in tokenizer.encode(word)), texts[rows[0]])
    rank_zero_only(print)(
        f"zoo: words that no training text has are in {len(rows)} of the {len(texts)} texts of the {split} split, such "
        f"as {shorten(word)}: the model reads all of them as one unknown word",
        file=sys.stderr,
    )
