"""Every random draw comes from a generator of its own, seeded by what the draw is for.

There is no generator state to save: a run that is resumed, or spread over other processes, draws the same numbers.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Hashes a seed and a purpose, such as ``(0, "real", outer_iteration, step, label)``, to an int in [0, 2**63)."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """CPU generator for one purpose; see `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global CPU generator within the block only: layers draw their initial weights from it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
