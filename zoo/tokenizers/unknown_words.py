"""Words that a trained tokenizer does not know: a warning where rows outside the training split have some."""

from collections.abc import Callable, Sequence

from zoo.console.argument_names import print_notice
from zoo.text_formats.json_text import shorten
from zoo.tokenizers import Tokenizer
from zoo.tokenizers.hugging_face import UNKNOWN, HuggingFaceTokenizer


def warn_of_unknown_words(
    split: str,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    write: Callable[[list[str]], list[str]],
) -> None:
    """Print how many texts have words that no training text has, such as a new category, and the first of them.

    Args:
        split: split of the texts; nothing is printed for "train".
        texts: (N,) the texts as the data has them.
        ids: (N,) their tokens.
        tokenizer: tokenizer of the tokens; only one with a token for all unknown words loses any.
        write: texts as the tokenizer reads them, with rounded numbers for example.
    """
    if split != "train" and (sentence := unknown_words(texts, ids, tokenizer, write, f" of the {split} split")):
        print_notice(sentence)


def unknown_words(
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    write: Callable[[list[str]], list[str]],
    of_texts: str = "",
) -> str | None:
    """A sentence about the texts with words that a tokenizer does not know; None if there are none.

    Args:
        texts: (N,) the texts as they are given.
        ids: (N,) their tokens.
        tokenizer: tokenizer of the tokens; only one with a token for all unknown words loses any.
        write: texts as the tokenizer reads them, with rounded numbers for example.
        of_texts: completes "N texts", as " of the test split".
    """
    unknown = tokenizer.tokens.get(UNKNOWN) if isinstance(tokenizer, HuggingFaceTokenizer) else None
    rows = [i for i, row in enumerate(ids) if unknown in row] if unknown is not None else []
    if not rows:
        return None
    words = texts[rows[0]].split()
    is_unknown = [unknown in tokens for tokens in tokenizer.encode_batch(write(words))]
    word = next((word for word, is_one in zip(words, is_unknown, strict=True) if is_one), texts[rows[0]])
    return (
        f"words that no training text has are in {len(rows)} of the {len(texts)} texts{of_texts}, such "
        f"as {shorten(word)}: the model reads all of them as one unknown word"
    )
