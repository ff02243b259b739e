"""DC and DSA: gradients of real and synthetic images are matched (paper, algorithm 1; ``main.py`` of its code)."""

from typing import Any

import torch
from torch import Tensor, nn

from dc_lightning.augmentation import AUGMENTATIONS, Siamese
from dc_lightning.errors import require_at_least
from dc_lightning.matching.batch_norm import freeze_batch_norm, has_batch_norm
from dc_lightning.matching.distances import DISTANCES
from dc_lightning.matching.gradients import network_gradient
from dc_lightning.methods.inner_loop import InnerLoop
from dc_lightning.networks import Shape
from dc_lightning.parts import Spec, as_spec, find, make


class CondensationModule(InnerLoop):
    """Matches the gradients that synthetic and real images of a class give a network.

    Between matching steps the network trains on the synthetic set. With ``augmentation: siamese`` this is DSA (Zhao and
    Bilen, ICML 2021): both batches of a class are augmented alike, with one draw a class and step, and so is the
    synthetic set on which the network trains, with one operation a batch and parameters an image.

    Where the authors' code differs: its loops run K + 1 iterations, evaluate before the last update and save after it;
    its backward pass is one for all classes, ours goes class by class, the same mathematics in less memory; its draws
    are seeded by the clock; it knows epochs for the paper's images per class alone.

    Args:
        distance: of two gradients; ``ours``, ``mse``, ``cos``, or as for the network.
        batch_norm_images: real images per class whose statistics BatchNorm layers take before every matching step.
        **kwargs: see `InnerLoop`, `Condenser`; ``lr_images`` is 0.1 where None, and 0.01 for the MLP, as in the paper.

    Raises:
        InputError: if a value is out of its range, or network or distance are unknown.
    """

    def __init__(self, distance: Spec = "ours", batch_norm_images: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_at_least(batch_norm_images=(batch_norm_images, 1))
        self.distance = make("distance", DISTANCES, as_spec(distance))
        self.batch_norm_images = batch_norm_images

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
