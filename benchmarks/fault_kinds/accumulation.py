"""Gradients of accumulated batches of unequal sizes and lengths, compared with those of one batch of all their samples.

The last window may have fewer batches. Both sides train without dropout, with a learning rate near 0, and their
gradients at each optimizer step must agree up to rounding.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.fault_kinds.cases import Kind, Outcome, failure
from zoo.registry import load_class
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import IGNORED, collate, text_rows

LARGEST_ERROR = 1e-3  # relative, of the gradient's norm: rounding in fp32
LLAMA = {"vocab_size": 257, "dim": 8, "n_layers": 1, "n_heads": 2, "max_seq_len": 64}
ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {  # name of the case -> model, its arguments
    "LlamaLM": ("LlamaLM", LLAMA),
    "LlamaClassifier": ("LlamaClassifier", LLAMA | {"label_names": ["bad", "good"], "head_dropout": 0.0}),
    "LlamaClassifier, lm_weight": (
        "LlamaClassifier",
        LLAMA | {"label_names": ["bad", "good"], "head_dropout": 0.0, "lm_weight": 0.7},
    ),
    "RegressLM": (
        "RegressLM",
        {"vocab_size": 257, "dim": 8, "n_heads": 2, "max_input_len": 64, "num_samples": 2, "val_samples": 2},
    ),
    "MiniRLM": ("MiniRLM", {"vocab_size": 257, "dim": 8, "hidden_dim": 8}),
    "ICRTransformer": (
        "ICRTransformer",
        {"D": 3, "K": 4, "M": 8, "d_model": 8, "d_mlp": 8, "n_heads": 2, "n_layers": 1},
    ),
    "RevDEQLM": (
        "RevDEQLM",
        {"vocab_size": 257, "hidden_size": 8, "num_heads": 2, "intermediate_size": 8, "max_position_embeddings": 64},
    ),
}


def try_accumulation(index: int, rng: Random, folder: Path) -> Outcome:
    """Compare the gradients of accumulated batches with those of the merged batches."""
    name, accumulate, batches = _draw(index, rng)
    merged = [_merge(name, batches[i : i + accumulate]) for i in range(0, len(batches), accumulate)]
    model, arguments = ARGUMENTS[name]
    separate = _gradients(model, arguments, [_merge(name, [batch]) for batch in batches], accumulate)
    together = _gradients(model, arguments, merged, 1)
    sizes = [len(batch) for batch in batches]
    about = f"{name}, batches of {sizes} samples, accumulate {accumulate}"
    if len(separate) != len(together):
        return failure(f"{about}: {len(separate)} steps, not {len(together)}")
    errors = [
        float((one - other).norm() / other.norm().clamp(min=1e-12))
        for one, other in zip(separate, together, strict=True)
    ]
    step = max(range(len(errors)), key=errors.__getitem__)
    if not errors[step] <= LARGEST_ERROR:
        text = f"{about}: the gradient of step {step} of {len(errors)} is off by {errors[step]:.2%}"
        return Outcome(False, text, errors[step])
    return Outcome(True, "equal", errors[step])


def _draw(index: int, rng: Random) -> tuple[str, int, list[list[Any]]]:
    """A model, the number of batches per step, and batches of samples of random sizes and lengths."""
    name = [*ARGUMENTS][index % len(ARGUMENTS)]
    accumulate = rng.choice([2, 3, 4])
    sizes = [rng.choice([1, 2, 3, 5]) for _ in range(rng.randrange(accumulate, 3 * accumulate))]
    return name, accumulate, [[_sample(name, rng) for _ in range(size)] for size in sizes]


def _sample(name: str, rng: Random) -> Any:
    """A prompt with its numbers, a window of tokens of which some are not scored, or a text with its target."""
    if name == "ICRTransformer":
        random = np.random.default_rng(rng.randrange(2**32))
        x, y = random.standard_normal((4, 3)), random.standard_normal(4)
        return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    if name in ("LlamaLM", "RevDEQLM"):
        tokens = torch.tensor([rng.randrange(257) for _ in range(17)])
        targets = tokens[1:].clone()
        targets[rng.randrange(1, 17) :] = IGNORED
        return tokens[:-1], targets
    target = float(rng.randrange(2)) if name.startswith("LlamaClassifier") else rng.uniform(-3, 3)
    return "ab" * rng.randrange(1, 20) + str(rng.random())[:6], target


def _merge(name: str, batches: Sequence[list[Any]]) -> Any:
    """One batch of all samples of several."""
    samples = [sample for batch in batches for sample in batch]
    first, second = zip(*samples, strict=True)
    if isinstance(first[0], Tensor):
        return torch.stack(first), torch.stack(second)
    rows = text_rows(list(first), np.array(second), load_tokenizer("bytes"), None)
    return collate([rows[i] for i in range(len(rows))])


def _gradients(model: str, arguments: dict[str, Any], batches: list[Any], accumulate: int) -> list[Tensor]:
    """All gradients at each optimizer step of one epoch, each as one vector."""
    torch.manual_seed(0)
    module: Any = load_class(model)(**arguments, lr=1e-12)
    if model == "MiniRLM":  # it standardizes targets with the mean and the deviation of all of them
        module.fit_scales(torch.linspace(-2, 2, 9)[:, None])
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", accumulate_grad_batches=accumulate, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    steps: list[Tensor] = []

    def note(optimizer: Any, *_: Any) -> None:
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        steps.append(torch.cat(gradients).double().clone())

    hook = register_optimizer_step_post_hook(note)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    finally:
        hook.remove()
    return steps


ACCUMULATION = Kind(
    "accumulation",
    "batches of unequal sizes and lengths, accumulated, the last window shorter: the gradient of each step equals that "
    f"of one batch of all samples, up to {LARGEST_ERROR:g} of its norm",
    try_accumulation,
    cases=140,
    quick=7,
    seconds=60,
    case_name=lambda index: [*ARGUMENTS][index % len(ARGUMENTS)],
)
