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
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds torch's global generators, the CPU's and that of a CUDA device, within the block only.

    Initial weights and dropout draw from them.
    """
    index = device.index if device is not None and device.type == "cuda" else None
    with torch.random.fork_rng(devices=[] if index is None else [index]):
        torch.default_generator.manual_seed(seed)
        if index is not None:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
