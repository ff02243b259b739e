"""DM: mean embeddings of real and synthetic images are matched (Zhao and Bilen, WACV 2023; ``main_DM.py``)."""

from typing import Any

import torch
from torch import Tensor, nn

from dc_lightning.matching.batch_norm import has_batch_norm
from dc_lightning.matching.embeddings import embed, embed_chunks
from dc_lightning.methods.base import Condenser
from dc_lightning.networks import Shape
from dc_lightning.parts import Spec
from dc_lightning.synthetic.initial import Init


class DistributionMatching(Condenser):
    """Matches the mean embeddings that fresh, untrained networks give synthetic and real images of a class.

    One matching step an outer iteration, 20,000 of them in the paper, and no training of networks. Classes are matched
    one by one; where the network has BatchNorm, all real images go through it as one batch in train mode and all
    synthetic ones as another, on the first process alone.

    Args:
        init: see `Condenser`.
        augmentation: see `Condenser`.
        lr_images: see `Condenser`; None takes 1, and 10 from 100 images per class on, as the authors on CIFAR10.
        **kwargs: see `Condenser`.
    """

    name = "DM"

    def __init__(
        self,
        init: Init = "real",
        augmentation: Spec | None = "siamese",
        lr_images: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init=init, augmentation=augmentation, lr_images=lr_images, **kwargs)

    def complete(self, data: Shape) -> None:
        """See `Condenser`; the authors' rates on CIFAR10, on CIFAR100 they take 1 for every ipc."""
        if self.lr_images is None:
            self.lr_images = 1.0 if self.ipc < 100 else 10.0

    def prepare_network(self, network: nn.Module, step: int) -> None:
        """The network is only a map to features."""
        network.requires_grad_(False)

    def loss(self, network: nn.Module, real: Tensor, synthetic: Tensor, label: int) -> Tensor:
        """Squared distance of the mean embeddings (DM, equation 5)."""
        target = embed_chunks(network, real.split(self.chunk_size or len(real))).mean(dim=0)
        return (target - embed(network, synthetic).mean(dim=0)).square().sum()

    def match(self, network: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        """All classes in one pass where BatchNorm takes its statistics from the batch."""
        if not has_batch_norm(network):
            return super().match(network, step)
        if self.global_rank:
            return torch.zeros_like(self._losses), torch.zeros_like(self.images)
        stored = self.images.detach().requires_grad_()
        reals, synthetics = self.pairs_of(stored, step)
        with self.seeded("match", step):
            with torch.no_grad():
                real_features = embed(network, torch.cat(reals)).split([len(real) for real in reals])
            features = embed(network, torch.cat(synthetics)).split([len(images) for images in synthetics])
            differences = [a.mean(dim=0) - b.mean(dim=0) for a, b in zip(real_features, features, strict=True)]
            loss = torch.stack(differences).square().sum()
            (derivative,) = torch.autograd.grad(loss, stored)
        return loss.detach(), derivative
