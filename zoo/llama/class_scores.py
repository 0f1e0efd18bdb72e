"""Zero-shot class scores: log-probabilities of class names as continuations of a prompt.

Brown et al. 2020, https://arxiv.org/abs/2005.14165: a prompt contains the text and a question, and each class scores
log p(its name | the prompt), summed over all tokens of the name. Optional are the mean over the tokens, and
calibration: subtracting the score of the name after the prompt without a text (Zhao et al. 2021,
https://arxiv.org/abs/2102.09690, with logarithms as in Holtzman et al. 2021, https://arxiv.org/abs/2104.08315).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError
from zoo.layers import KVCache
from zoo.layers.widen import widen
from zoo.llama.model import Llama
from zoo.tokenizers import Tokenizer


def continuations(tokenizer: Tokenizer, prompt_end: str, names: Sequence[str]) -> list[list[int]]:
    """Token ids of each name, with the space before it, as they follow a prompt that ends with `prompt_end`.

    Raises:
        UserError: the prompt ends with a space, or its last token depends on what follows.
    """
    # Encode each name together with the end of the prompt, as the model will read it, and drop the prompt's tokens.
    prefix = tokenizer.encode(prompt_end, bos=False)
    continued = [tokenizer.encode(f"{prompt_end} {name}", bos=False) for name in names]
    if prompt_end.endswith(" ") or any(ids[: len(prefix)] != prefix for ids in continued):
        raise UserError(
            f"--data.prompt ends with {prompt_end[-12:]!r}, but it must end with a whole word and without a space: the "
            "space belongs to the class name"
        )
    return [ids[len(prefix) :] for ids in continued]


def move_padding_left(tokens: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens (B, T) with their padding moved from the right to the left, and its width (B,).

    `padding_mask` (B, T) is True at tokens; where it is None, no row is padded and the width is None.
    """
    if padding_mask is None:
        return tokens, None
    # Rotate each row to the right by the width of its padding.
    width = tokens.shape[1]
    left_padding = width - padding_mask.sum(1)  # (B,)
    source = (torch.arange(width, device=tokens.device) - left_padding[:, None]) % width  # (B, T)
    return tokens.gather(1, source), left_padding


@torch.no_grad()
def continuation_scores(
    model: Llama, tokens: Tensor, padding_mask: Tensor | None, names: Sequence[Sequence[int]], normalize: bool = False
) -> Tensor:
    """Scores (B, C): log p(name | prompt) in nats, for prompts (B, T) and C names of any number of tokens.

    Args:
        model: the network, in evaluation mode.
        tokens: the prompts, (B, T), padded on the right.
        padding_mask: (B, T), True at tokens; None if no row is padded.
        names: the token ids of each name as they follow the prompt.
        normalize: divide each score by the number of the name's tokens.
    """
    # With the padding on the left, all prompts end at the same column, after which the names follow.
    config, (batch, width) = model.config, tokens.shape
    tokens, left_padding = move_padding_left(tokens, padding_mask)
    max_len, weight = width + max(map(len, names)), model.norm.weight
    cache = KVCache(config.n_layers, batch, config.kv_heads, max_len, config.head_dim, weight.dtype, weight.device)
    scores = []
    with torch.autocast(tokens.device.type, enabled=False):  # the cache has the weights' precision
        # Run the prompts once; every name starts from the same cache.
        first = _log_probs(model, model.hidden(tokens, cache, left_padding=left_padding)[:, -1])  # (B, V)
        for name in names:
            # The prompt's last column predicts the name's first token.
            ids = torch.tensor(name, device=tokens.device)
            score = first[:, ids[0]]
            if len(name) > 1:
                # Each name overwrites the cache's columns after the prompt.
                hidden = model.hidden(ids[:-1].expand(batch, -1), cache, start=width, left_padding=left_padding)
                log_probs = _log_probs(model, hidden)  # (B, L - 1, V)
                score = score + log_probs.gather(2, ids[1:].expand(batch, -1)[..., None]).sum((1, 2))
            scores.append(score / len(name) if normalize else score)
    return torch.stack(scores, 1)


@torch.no_grad()
def course_scores(model: Llama, tokens: Tensor, names: Sequence[Sequence[int]]) -> Tensor:
    """Scores (B, C) as CMU's minllama course computes them from prompts (B, T) padded on the right.

    The log-probabilities of all tokens of a name are summed as if each were the next token after the last column, which
    is padding (token 0) in all but the longest rows.
    """
    log_probs = _log_probs(model, model.hidden(tokens)[:, -1])  # (B, V)
    return torch.stack([log_probs[:, list(name)].sum(1) for name in names], 1)


def _log_probs(model: Llama, hidden: Tensor) -> Tensor:
    return widen(F.linear(hidden, model.output_weight)).log_softmax(-1)
