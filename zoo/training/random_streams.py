"""Independent random streams, each a function of (seed, purpose, step) and of nothing else.

A run that is stopped and resumed must draw what the uninterrupted run would have drawn. So nothing here
keeps a generator's state: every draw starts from a seed derived from what it is for and where it stands.
"""

import hashlib
import os

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for `purpose`, e.g. `derive(0, "dropout", rank, step)`: unrelated to any other purpose's."""
    digest = hashlib.blake2b(repr((int(seed), *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator at the start of the stream that `derive` names."""
    return torch.Generator(device=device).manual_seed(derive(seed, *purpose))


def global_seed() -> int:
    """The seed of the run, as `--seed_everything` left it; 0 where nobody set one."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
