"""DC and DSA: gradients of real and synthetic images are matched (paper, algorithm 1; ``main.py`` of its code)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dc_lightning.augmentation import AUGMENTATIONS, Siamese
from dc_lightning.errors import require_at_least
from dc_lightning.matching.batch_norm import freeze_batch_norm, has_batch_norm
from dc_lightning.matching.distances import DISTANCES
from dc_lightning.matching.gradients import network_gradient
from dc_lightning.methods.base import Condenser
from dc_lightning.methods.loops import default_loops
from dc_lightning.networks import Shape
from dc_lightning.parts import Spec, as_spec, find, make


class CondensationModule(Condenser):
    """Matches the gradients that synthetic and real images of a class give a network.

    Between matching steps the network trains on the synthetic set. With ``augmentation: siamese`` this is DSA (Zhao and
    Bilen, ICML 2021): both batches of a class are augmented alike, with one draw a class and step, and so is the
    synthetic set on which the network trains, with one operation a batch and parameters an image.

    Args:
        distance: of two gradients; ``ours``, ``mse``, ``cos``, or as for the network.
        outer_steps: matching steps an outer iteration; None takes `default_loops`.
        inner_epochs: epochs of network training after every matching step but the last; None takes `default_loops`.
        network_images: real images on which the network trains there in place of those epochs, in batches of
            ``data.batch_real``; 0 takes the synthetic set, as in the papers.
        lr_network: learning rate of that training.
        batch_synthetic: its batch size on the synthetic set.
        batch_norm_images: real images per class whose statistics BatchNorm layers take before every matching step.
        **kwargs: see `Condenser`; ``lr_images`` is 0.1 where None, and 0.01 for the MLP, as in the paper.

    Raises:
        InputError: if a value is out of its range, or network or distance are unknown.
    """

    def __init__(
        self,
        distance: Spec = "ours",
        outer_steps: int | None = None,
        inner_epochs: int | None = None,
        network_images: int = 0,
        lr_network: float = 0.01,
        batch_synthetic: int = 256,
        batch_norm_images: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_at_least(outer_steps=(outer_steps, 1), inner_epochs=(inner_epochs, 0), lr_network=(lr_network, 0))
        require_at_least(network_images=(network_images, 0))
        require_at_least(batch_synthetic=(batch_synthetic, 1), batch_norm_images=(batch_norm_images, 1))
        self.distance = make("distance", DISTANCES, as_spec(distance))
        steps, epochs = default_loops(self.ipc)
        self.outer_steps, self.inner_epochs = outer_steps or steps, epochs if inner_epochs is None else inner_epochs
        self.network_images, self.lr_network = network_images, lr_network
        self.batch_synthetic, self.batch_norm_images = batch_synthetic, batch_norm_images

    @property
    def name(self) -> str:  # type: ignore[override]
        """DSA with the siamese augmentation, DC with another or none."""
        spec = self.augmentation_spec
        return "DSA" if spec is not None and find("augmentation", AUGMENTATIONS, spec) is Siamese else "DC"

    def complete(self, data: Shape) -> None:
        """See `Condenser`; the paper's rate is 0.1, and 0.01 for the MLP."""
        if self.lr_images is None:
            self.lr_images = 0.01 if self.network_spec == "MLP" else 0.1

    def prepare_network(self, network: nn.Module, step: int) -> None:
        """Gives BatchNorm layers the statistics of real images, and keeps them for the matching."""
        if not has_batch_norm(network):
            return
        draws = [
            self.real.draw(label, self.generator("batch_norm", step, label), self.batch_norm_images)
            for label in range(self.data.num_classes)
        ]
        with self.seeded("statistics", step):
            freeze_batch_norm(network, torch.cat(draws).to(self.images.dtype), self.chunk_size and 4 * self.chunk_size)

    def loss(self, network: nn.Module, real: Tensor, synthetic: Tensor, label: int) -> Tensor:
        """Distance of the two gradients of the network's loss (paper, equation 9)."""
        forward = self.forward_of(network)
        real_gradient = network_gradient(network, real, label, chunk_size=self.chunk_size, forward=forward)
        synthetic_gradient = network_gradient(network, synthetic, label, create_graph=True)
        return self.distance(synthetic_gradient, real_gradient)

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
        """Plain SGD on the detached synthetic set (paper, algorithm 1, line 11), or on real images."""
        network.train()
        forward = self.forward_of(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=self.lr_network)
        for images, labels, seed in self.network_batches(step):
            images = images if self.augmentation is None else self.augmentation.batch(images, seed)
            optimizer.zero_grad()
            cross_entropy(forward(images), labels).backward()
            optimizer.step()
