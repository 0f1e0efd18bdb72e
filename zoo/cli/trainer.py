"""The Trainer with one verb more: generate."""

import sys
from itertools import chain
from typing import Any, Literal

from lightning.pytorch import Trainer

from zoo.errors import UserError
from zoo.tokenizers import stream_decode
from zoo.training.checkpoint_file import read_checkpoint
from zoo.training.language_model import LanguageModel


class ZooTrainer(Trainer):
    """Lightning's Trainer, and `generate` for language models."""

    def generate(
        self,
        model: Any,
        datamodule: Any,
        ckpt_path: str | None = None,
        prompt: str = "",
        prompts: list[str] | None = None,
        max_new_tokens: int = 200,
        max_length: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_tokens: list[int] | None = None,
        seed: int = 0,
        precision: Literal["fp32", "bf16"] = "fp32",
        compile: bool = False,
    ) -> list[str]:
        """Let a language model continue a prompt.

        One prompt is streamed to the terminal as it grows; several are continued together, each as it would be alone
        (until the longest comes to the context's edge), and printed in their order.

        Args:
            model: a language model of the zoo.
            datamodule: data whose tokenizer the model speaks.
            ckpt_path: the weights.
            prompt: the text to continue; empty starts a text.
            prompts: several texts instead, as a JSON list.
            max_new_tokens: how many tokens to add at most.
            max_length: how many tokens prompt and continuation may have together, instead of max_new_tokens; of several
                prompts the longest counts.
            temperature: 0 for the likeliest text, 1 for the model's own distribution.
            top_k: draw from the k likeliest tokens only.
            top_p: draw from the fewest tokens that hold this much probability.
            stop_tokens: ids that end a text; by default the tokenizer's BOS and EOS.
            seed: of the draws; the same seed gives the same text.
            precision: of the weights while decoding.
            compile: compile the decoding step first; pays for long texts.

        Returns:
            The texts, prompts included.
        """
        if not isinstance(model, LanguageModel):
            raise UserError(f"{type(model).__name__} is no language model: it has nothing to generate")
        if ckpt_path:
            model.load_state_dict(read_checkpoint(ckpt_path)["state_dict"])
        model.to(self.strategy.root_device).eval()
        tokenizer = model.tokenizer
        texts = [prompt] if prompts is None else prompts
        if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):  # what Python makes of such bytes
            raise UserError("the prompt holds bytes that are not UTF-8 text: give it in UTF-8")
        ids = [tokenizer.encode(text) for text in texts]
        if not all(ids):
            raise UserError("this tokenizer has no token that starts a text, so --prompt must not be empty")
        if max_length is not None:
            longest = max(map(len, ids))
            if max_length < longest:
                raise UserError(f"max_length {max_length} is less than the prompt's {longest} tokens: raise it")
            max_new_tokens = max_length - longest
        if stop_tokens is None:
            stop_tokens = [i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None]
        steps = model.stream(
            ids, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop_tokens,
            seed=seed, precision=precision, compile=compile,
        )  # fmt: skip
        if len(ids) == 1:
            pieces = stream_decode(tokenizer, chain(ids[0], (int(step) for step in steps)))
            return ["".join(map(_show, chain(pieces, ["\n"])))]
        ended: set[int] = set()
        for step in steps:
            for row, token in enumerate(step.tolist()):
                if row not in ended:
                    ids[row].append(token)
                if token in stop_tokens:
                    ended.add(row)
        return [_show(tokenizer.decode(row) + "\n") for row in ids]


def _show(text: str) -> str:
    sys.stdout.write(text)
    sys.stdout.flush()
    return text
