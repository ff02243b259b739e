"""How many threads a process uses on the CPU: by default one where images are small."""

import os
from collections.abc import Sequence
from math import prod
from typing import Literal

import torch

Threads = int | Literal["auto"]

_SMALL = 256  # numbers in an image; two threads were 1.1 to 1.3 times as fast as one there, and 1.6 times at 784

_before: int | None = None  # threads of PyTorch where `auto` is on; None where it is off


def use_threads(threads: Threads) -> None:
    """Sets the threads of the whole process.

    Args:
        threads: a number, or ``auto``: PyTorch's, but one from `fit_threads` on where images are small; where
            ``OMP_NUM_THREADS`` is set, that decides.
    """
    global _before
    if _before is not None:
        torch.set_num_threads(_before)  # of a run before this in the same process
    _before = torch.get_num_threads() if threads == "auto" and "OMP_NUM_THREADS" not in os.environ else None
    if threads != "auto":
        torch.set_num_threads(threads)


def fit_threads(image_shape: Sequence[int]) -> None:
    """Takes one thread for small images, where ``auto`` is on.

    Others would help little, and wait for each other in every operation where another process uses the cores.

    Args:
        image_shape: of the images that are condensed, ``(C, H, W)``.
    """
    if _before is not None and prod(image_shape) <= _SMALL:
        torch.set_num_threads(1)
