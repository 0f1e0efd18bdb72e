"""The Trainer with an additional verb: `generate`, text generation from the command line."""

import sys
from collections.abc import Iterable
from itertools import chain
from typing import Any, Literal

from lightning.pytorch import Trainer

from zoo.cli.world import World
from zoo.errors import UserError, check_counts
from zoo.files.checkpoints import read_checkpoint
from zoo.tokenizers import stream_decode
from zoo.training.initial_weights import refuse_other_tokenizer
from zoo.training.language_model import LanguageModel

NEW_TOKENS = 200  # that `generate` adds at most by default


class ZooTrainer(Trainer):
    """Lightning's Trainer with `generate` for language models."""

    def generate(
        self,
        model: Any,
        datamodule: Any,
        ckpt_path: str | None = None,
        prompt: str = "",
        prompts: list[str] | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_tokens: list[int] | None = None,
        seed: int = 0,
        precision: Literal["fp32", "bf16", "int8"] = "fp32",
        compile: bool = False,
    ) -> list[str]:
        """Continue a prompt with a language model.

        One prompt is printed token by token; several are continued as one batch and printed in their order. Until the
        longest reaches the end of the context, each is continued as it would be alone, with temperature 0; with
        another temperature only the first one is, because the draws also depend on a prompt's place in the list.

        Args:
            model: a language model of the zoo.
            datamodule: data whose tokenizer the model uses.
            ckpt_path: checkpoint with the model's weights.
            prompt: text to continue; the empty default starts a new text.
            prompts: several texts to continue, as a JSON list, instead of one prompt.
            max_new_tokens: number of tokens to add at most. Default: 200, or what max_length leaves.
            max_length: number of tokens of prompt and continuation together at most, instead of max_new_tokens; of
                several prompts the longest counts.
            temperature: divides the logits; 0 takes the most likely token each time, 1 samples from the model's
                distribution.
            top_k: sample among the k most likely tokens only. Default: among all.
            top_p: sample among the fewest most likely tokens whose total probability reaches top_p, in (0, 1].
                Default: among all.
            stop_tokens: ids of the vocabulary that end a text. Default: the tokenizer's BOS and EOS, and the model's
                stop_tokens.
            seed: seed of the draws, at least 0; the same seed gives the same texts to the same list of prompts.
            precision: type of the weights while decoding: fp32, bf16 or, for a Llama, int8. On a CPU bf16 and int8 are
                faster than fp32 with --compile and few prompts only; from about 32 prompts on fp32 is at least as fast.
            compile: compile the decoding step first: for a Llama on a CPU in a second, once per machine; otherwise in
                up to a minute, worth its time for long texts.

        Returns:
            The texts, prompts included.

        Raises:
            UserError: the model is not a language model, or an option is out of range or excludes another; nothing is
                printed then.
        """
        if (world := World.from_environment()) is not None and world.rank > 0:
            return []  # the first process alone generates
        if not isinstance(model, LanguageModel):
            raise UserError(f"{type(model).__name__} is not a language model: `zoo generate` needs one")
        _check_options(prompt, prompts, max_new_tokens, max_length, seed)
        if ckpt_path:
            checkpoint = read_checkpoint(ckpt_path, required=("state_dict",))
            if model.tokenizer is not None and "tokenizer" in checkpoint:
                refuse_other_tokenizer(ckpt_path, model.tokenizer, checkpoint["tokenizer"])
            model.on_load_checkpoint(checkpoint)  # restores the tokenizer of a model without one
            model.load_state_dict(checkpoint["state_dict"])
        tokenizer: Any = model.tokenizer
        model.to(self.strategy.root_device).eval()
        ids = _encode(tokenizer, [prompt] if prompts is None else prompts)
        if max_new_tokens is None:
            max_new_tokens = NEW_TOKENS
        if max_length is not None:
            longest = max(map(len, ids))
            if max_length < longest:
                raise UserError(f"--max_length {max_length} is less than the prompt's {longest} tokens: raise it")
            max_new_tokens = max_length - longest
        if stop_tokens is None:
            config = model.model.config
            ids_of_text = tokenizer.bos_id, tokenizer.eos_id, *(getattr(config, "stop_tokens", None) or ())
            stop_tokens = [i for i in ids_of_text if i is not None and i < config.vocab_size]
        steps = model.stream(
            ids, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop_tokens,
            seed=seed, precision=precision, compile=compile,
        )  # fmt: skip
        if len(ids) == 1:
            pieces = stream_decode(tokenizer, chain(ids[0], (int(step) for step in steps)))
            return ["".join(map(_print, chain(pieces, ["\n"])))]
        return [_print(tokenizer.decode(row) + "\n") for row in _append(ids, steps, stop_tokens)]


def _check_options(
    prompt: str, prompts: list[str] | None, max_new_tokens: int | None, max_length: int | None, seed: int
) -> None:
    """Raises UserError where two options of `generate` exclude each other, or the seed or the length is negative."""
    if prompt and prompts is not None:
        raise UserError("--prompt and --prompts are both given: drop one of them")
    if max_new_tokens is not None and max_length is not None:
        raise UserError("--max_new_tokens and --max_length are both given: drop one of them")
    check_counts(0, **{"--seed": seed}, **({} if max_length is None else {"--max_length": max_length}))


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Prompts as lists of ids. Raises UserError for no prompts, and for text that is not UTF-8 or gives no token."""
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError("--prompts must be a list of at least one text")
    # Python reads bytes that are not UTF-8 as lone surrogates.
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        raise UserError("the prompt holds bytes that are not UTF-8 text: give it in UTF-8")
    # An empty prompt starts from BOS, also with a tokenizer that does not put it before a text.
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = [tokenizer.encode(text) or start for text in texts]
    if not all(ids):
        raise UserError("this tokenizer has no token that starts a text, so --prompt must not be empty")
    return ids


def _append(rows: list[list[int]], steps: Iterable[Any], stop_tokens: list[int]) -> list[list[int]]:
    """The rows of ids with the generated tokens, each up to and with its first stop token."""
    ended: set[int] = set()
    for step in steps:
        for row, token in enumerate(step.tolist()):
            if row not in ended:
                rows[row].append(token)
            if token in stop_tokens:
                ended.add(row)
    return rows


def _print(text: str) -> str:
    sys.stdout.write(text)
    sys.stdout.flush()
    return text
