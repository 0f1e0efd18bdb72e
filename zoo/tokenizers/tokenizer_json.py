"""The content of a `tokenizer.json`: checks of its structure, its vocabulary, the tokens that it puts before a text.

The structure is checked before the `tokenizers` library reads it, because the library ends with a panic, or allocates
without limit, for some damaged files. Control tokens are the special tokens (BOS, EOS, padding, roles of a chat): they
are given names that do not occur in texts, so that no text is encoded as one of them.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from zoo.errors import UserError
from zoo.text_formats.json_text import describe_json_error, parse_object

HIDDEN = "\U0010fffe"  # a Unicode noncharacter; it starts the names of control tokens
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def parse(description: str) -> dict[str, Any]:
    """The object in the text of a `tokenizer.json`.

    Raises:
        UserError: it is not a JSON object, or its model or its added tokens are damaged.
    """
    try:
        content = parse_object(description)
    except ValueError as error:
        raise damaged(f"it is not a JSON object: {describe_json_error(error)}") from None
    model = content.get("model")
    if not isinstance(model, dict):
        raise damaged("it is not a JSON object with a model")
    _check_vocabulary(model, len(description))
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) and _is_id(token.get("id"), len(description))
        for token in added
    ):
        raise damaged("an entry of added_tokens is not a token with an id")
    if not all(token["content"] for token in added):
        raise damaged("an added token is empty")
    return content


def damaged(reason: str) -> UserError:
    """The error for a `tokenizer.json` that cannot be read."""
    return UserError(f"its tokenizer.json cannot be read ({reason}); download it again")


def token_ids(content: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id, of the model's vocabulary and the added tokens."""
    vocabulary = content["model"]["vocab"]
    ids = dict(vocabulary if isinstance(vocabulary, dict) else ((entry[0], i) for i, entry in enumerate(vocabulary)))
    for token in content.get("added_tokens") or []:
        ids.setdefault(token["content"], token["id"])
    return ids


def control_tokens(content: Mapping[str, Any], *ids: int | None) -> set[str]:
    """The special tokens, and those with the given ids.

    Bytes and single characters are not among them, because ordinary texts need them.
    """
    names = {token["content"] for token in content.get("added_tokens") or [] if token.get("special") is True}
    names |= {token for token, i in token_ids(content).items() if i in ids}
    return {name for name in names if len(name) > 1 and not _BYTE_TOKEN.fullmatch(name)}


def without_control_tokens(content: Mapping[str, Any], control: set[str]) -> dict[str, Any]:
    """The content with hidden names of the control tokens, and without settings that only concern whole documents."""

    def renamed(name: Any) -> Any:
        return HIDDEN + name if isinstance(name, str) and name in control else name

    model = dict(content["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[renamed(token), score] for token, score in vocabulary]
    else:
        model["vocab"] = {renamed(token): i for token, i in vocabulary.items()}
    if "unk_token" in model:
        model["unk_token"] = renamed(model["unk_token"])
    # A BPE may build the name of a control token from its parts.
    if isinstance(merges := model.get("merges"), list):
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [merge for merge in merges if not control.intersection(_parts(merge, prefix))]
    if "dropout" in model:
        model["dropout"] = None  # it makes encoding random
    added = [token | {"content": renamed(token["content"])} for token in content.get("added_tokens") or []]
    return {**content, "model": model, "added_tokens": added} | dict.fromkeys(
        ("truncation", "padding", "post_processor")
    )


def leading_ids(content: Mapping[str, Any]) -> list[int] | None:
    """The ids that the post-processor puts before a text; None if it does not concern special tokens.

    Raises:
        UserError: the post-processor is damaged.
    """
    post_processor = content.get("post_processor")
    if post_processor is None:
        return None
    try:
        processors = post_processor["processors"] if post_processor["type"] == "Sequence" else [post_processor]
        for processor in processors:
            if processor["type"] in ("BertProcessing", "RobertaProcessing"):
                return [_checked_id(processor["cls"][1])]
            if processor["type"] == "TemplateProcessing":
                return _template_ids(processor)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise damaged("its post_processor is damaged") from None
    return None


def _template_ids(processor: Mapping[str, Any]) -> list[int]:
    """The ids before the text in a TemplateProcessing, which is a list of special tokens and the text."""
    ids: list[int] = []
    for piece in processor["single"]:
        if "SpecialToken" not in piece:
            break
        ids += [_checked_id(i) for i in processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]]
    return ids


def _check_vocabulary(model: Mapping[str, Any], limit: int) -> None:
    """Raises UserError unless the vocabulary is {token: id}, or Unigram's list of [token, score]."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        check_ids(vocabulary, limit, "its tokenizer.json")
    elif not isinstance(vocabulary, list) or not all(
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and _is_score(entry[1])
        for entry in vocabulary
    ):
        raise damaged("its vocabulary is neither {token: id} nor a list of [token, finite score]")


def check_ids(vocabulary: Mapping[str, Any], limit: int, file: str) -> None:
    """Raises UserError unless all ids are whole numbers below `limit`, the size of the file."""
    for token, i in vocabulary.items():
        if not _is_id(i, limit):
            raise UserError(
                f"{file} gives the token {token!r:.40} the id {i!r:.40}, which is not a whole number below {limit}, "
                "the size of the file; download it again"
            )


def _is_id(value: Any, limit: int) -> bool:
    """Whether a value is an id; a file with that many tokens has more characters."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def _checked_id(value: Any) -> int:
    if not _is_id(value, 1 << 31):
        raise TypeError
    return int(value)


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parts(merge: Any, prefix: Any) -> tuple[str, str, str]:
    """The two tokens of a merge, written "a b" or ["a", "b"], and the token that they form.

    Args:
        merge: the merge.
        prefix: what the second token starts with, and the token that they form omits.
    """
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise damaged("a merge is not a pair of tokens")
    first, second = pair
    if not isinstance(prefix, str) or not second.startswith(prefix):
        raise damaged("the second token of a merge does not start with continuing_subword_prefix")
    return first, second, first + second[len(prefix) :]
