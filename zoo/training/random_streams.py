"""Independent random streams, each a function of the seed, the purpose and the step only.

A resumed run must draw the numbers that the uninterrupted run would have drawn. Therefore no generator state is saved:
each draw starts from a seed that is derived from its purpose and its place in the run.
"""

import hashlib
import os

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for `purpose`, e.g. `derive(0, "dropout", rank, step)`, unrelated to that of any other purpose."""
    digest = hashlib.blake2b(repr((int(seed), *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A new generator on `device`, seeded with `derive(seed, *purpose)`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *purpose))


def global_seed() -> int:
    """The seed that `--seed_everything` (or Lightning's seed_everything) set for the run; 0 if none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
