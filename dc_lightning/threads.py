"""How many threads a process uses on the CPU: by default one where images are small."""

import os
from collections.abc import Sequence
from math import prod
from typing import Literal

import torch

Threads = int | Literal["auto"]

_SMALL = 256  # numbers in an image; two threads were 1.1 to 1.3 times as fast as one there, and 1.6 times at 784

_of_torch = 0  # threads before the first `use_threads` of the process
_wanted: Threads | None = None


def use_threads(threads: Threads) -> None:
    """Decides on the threads of the whole process; `fit_threads` sets them.

    ``auto`` takes PyTorch's, but one where images are small; where ``OMP_NUM_THREADS`` is set, that decides.
    """
    global _of_torch, _wanted
    _of_torch = _of_torch or torch.get_num_threads()
    torch.set_num_threads(_of_torch)  # after a run before this in the same process
    _wanted = None if threads == "auto" and "OMP_NUM_THREADS" in os.environ else threads


def fit_threads(image_shape: Sequence[int]) -> None:
    """Sets the threads, once the images are known, and after Lightning may have set others for several processes.

    On small images, of shape ``(C, H, W)``, more than one helps little, and they wait for each other in every operation
    where another process uses the cores.
    """
    if isinstance(_wanted, int):
        torch.set_num_threads(_wanted)
    elif _wanted == "auto" and prod(image_shape) <= _SMALL:
        torch.set_num_threads(1)
