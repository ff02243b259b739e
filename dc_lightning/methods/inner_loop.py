"""What DC, DSA and FRePo share: a network that trains between matching steps, on the synthetic set or real images."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dc_lightning.errors import require_at_least
from dc_lightning.methods.base import Condenser

_INNER_EPOCHS = {10: 50, 20: 25, 30: 20, 40: 15, 50: 10}  # paper, appendix A; get_loops of the authors' code


def default_loops(ipc: int) -> tuple[int, int]:
    """Matching steps an outer iteration, and epochs of network training between two of them, for an ipc of at least 1.

    The paper's table has ipc 1, 10, 20, 30, 40, 50. For any other there are ipc matching steps, as in all its rows. The
    epochs are interpolated linearly between the rows, rounded half up; from 10 downwards they stay 50 (with ipc 1
    there is no second step, so that its single epoch is never run), from 50 upwards they stay 10.
    """
    if ipc == 1:
        return 1, 1
    return ipc, math.floor(np.interp(ipc, list(_INNER_EPOCHS), list(_INNER_EPOCHS.values())) + 0.5)


class InnerLoop(Condenser):
    """A method whose network trains by SGD between matching steps (DC's paper, algorithm 1, line 11).

    Args:
        outer_steps: matching steps an outer iteration; None takes `default_loops`.
        inner_epochs: epochs of network training after every matching step but the last; None takes `default_loops`.
        inner_batches: batches after which that training ends; None takes whole epochs. FRePo's authors take one.
        network_images: real images on which the network trains there in place of those epochs, in batches of
            ``data.batch_real``; 0 takes the synthetic set, as in the papers.
        lr_network: learning rate of that training.
        batch_synthetic: its batch size on the synthetic set.
        **kwargs: see `Condenser`.

    Attributes:
        momentum_network: momentum of that training, kept for an outer iteration.

    Raises:
        InputError: if a value is out of its range.
    """

    momentum_network: float = 0.0

    def __init__(
        self,
        outer_steps: int | None = None,
        inner_epochs: int | None = None,
        inner_batches: int | None = None,
        network_images: int = 0,
        lr_network: float = 0.01,
        batch_synthetic: int = 256,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_at_least(outer_steps=(outer_steps, 1), inner_epochs=(inner_epochs, 0), lr_network=(lr_network, 0))
        require_at_least(network_images=(network_images, 0), batch_synthetic=(batch_synthetic, 1))
        require_at_least(inner_batches=(inner_batches, 1))
        steps, epochs = default_loops(self.ipc)
        self.outer_steps, self.inner_epochs = outer_steps or steps, epochs if inner_epochs is None else inner_epochs
        self.inner_batches, self.batch_synthetic = inner_batches, batch_synthetic
        self.network_images, self.lr_network = network_images, lr_network

    def network_batches(self, step: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Images, labels ``(n,)`` and a seed for their augmentation, on which the network trains after this step."""
        generator = self.generator("inner", step)
        if self.network_images:
            chosen = torch.randint(len(self.real.labels), (self.network_images,), generator=generator)
            for number, rows in enumerate(chosen.split(self.real.batch_real)):
                images, labels = self.real.batch(rows)
                yield images.to(self.images.dtype), labels, self.derived_seed("inner", step, number)
            return
        images = self.decode(self.images.detach())
        labels = self.labels.repeat(len(images) // len(self.labels))
        for epoch in range(self.inner_epochs):
            order = torch.randperm(len(images), generator=generator).to(images.device, non_blocking=True)
            for number, rows in enumerate(order.split(self.batch_synthetic)):
                yield images[rows], labels[rows], self.derived_seed("inner augmentation", step, epoch, number)

    def train_network(self, network: nn.Module, step: int) -> None:
        """Trains on the detached synthetic set, or on real images."""
        network.train()
        forward = self.forward_of(network)
        optimizer = self.optimizer_of(network, lr=self.lr_network, momentum=self.momentum_network)
        for images, labels, seed in islice(self.network_batches(step), self.inner_batches):
            images = images if self.augmentation is None else self.augmentation.batch(images, seed)
            optimizer.zero_grad()
            cross_entropy(forward(images), labels).backward()
            optimizer.step()
