"""FRePo: the last layer of a network is fitted to the set (Zhou et al., NeurIPS 2022; ``frepo.py`` of its code)."""

from typing import Any

import torch
from torch import Tensor, nn

from dc_lightning.errors import InputError, require_at_least
from dc_lightning.matching.embeddings import embed
from dc_lightning.methods.inner_loop import InnerLoop
from dc_lightning.synthetic.formation import check_factor
from dc_lightning.synthetic.initial import Init

_RATE = 0.01  # of the images, pixels in [0, 1]
_BETA = 0.99  # of the squares in Adam


def ridge_prediction(real: Tensor, synthetic: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Predictions for real images of a linear layer that ridge regression fits to synthetic ones (paper, equation 4).

    Args:
        real: features, float, ``(m, d)``.
        synthetic: likewise, ``(n, d)``.
        targets: of the synthetic images, float, ``(n, classes)``.
        ridge: times the mean square of the synthetic features, the regularisation; above 0.

    Returns:
        float64, ``(m, classes)``: a kernel of features is nearly singular, and float32 too coarse for it.
    """
    real, synthetic, targets = real.double(), synthetic.double(), targets.double()
    kernel = synthetic @ synthetic.T
    regularised = kernel + ridge * kernel.diagonal().mean() * torch.eye(len(kernel)).to(kernel)
    weights = torch.linalg.solve_ex(regularised, targets)[0]  # `solve` would wait for a GPU
    return real @ synthetic.T @ weights


class FRePo(InnerLoop):
    """Lowers the error on real images of a network whose last layer is fitted to the synthetic ones.

    The layers before it are fixed for a matching step, so that the best last layer is a ridge regression, through which
    the error is differentiated; between two steps the whole network trains on the synthetic set. No gradient of a
    gradient is taken, and real images need no backward pass: a step is several times as fast as gradient matching.

    Where the authors differ: their network has batch norm and grows wider with every block; they learn the labels too,
    which are hard here; ten networks take turns, each for a hundred steps, here one trains for an outer iteration;
    it trains by Adam on squares, here by the loss of the evaluation; their optimizer of the images is LAMB at 3e-4,
    here Adam.

    Args:
        factor: training images along each side of a stored one, as in IDC.
        init: see `Condenser`.
        outer_steps: matching steps an outer iteration.
        inner_epochs: epochs of the network on the synthetic set after every matching step but the last.
        lr_network: learning rate of that training.
        momentum_network: likewise, kept for an outer iteration.
        ridge: regularisation of the regression, in the mean square of the features.
        momentum_images: of Adam.
        **kwargs: see `InnerLoop`, `Condenser`; ``lr_images`` is 0.01 where None.

    Raises:
        InputError: if a value is out of its range; in `setup`, if the network is no classifier.
    """

    name = "FRePo"
    space = "pixels"

    def __init__(
        self,
        factor: int = 1,
        init: Init = "real",
        outer_steps: int = 10,
        inner_epochs: int = 5,
        lr_network: float = 0.02,
        momentum_network: float = 0.9,
        ridge: float = 1e-6,
        momentum_images: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            outer_steps=outer_steps,
            inner_epochs=inner_epochs,
            lr_network=lr_network,
            momentum_network=momentum_network,
            init=init,
            momentum_images=momentum_images,
            **kwargs,
        )
        require_at_least(factor=(factor, 1))
        if ridge <= 0:
            raise InputError(f"ridge must be above 0 (regularisation of the regression), got {ridge}.")
        self.factor, self.ridge = factor, ridge

    def complete(self, data: Any) -> None:
        """See `Condenser`."""
        self.lr_images = _RATE if self.lr_images is None else self.lr_images

    def setup(self, stage: str) -> None:
        """See `Condenser`."""
        check_factor(self.factor, self.data.image_size)
        super().setup(stage)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam of the images."""
        return torch.optim.Adam([self.images], lr=self.lr_images, betas=(self.momentum_images, _BETA), fused=True)

    def prepare_network(self, network: nn.Module, step: int) -> None:
        """The features are those of a network in use."""
        network.eval()

    def match(self, network: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        """Sum over the classes of the mean error of their real images, and its derivative.

        Each process passes the real images of its classes; the first one alone does the rest.
        """
        stored = self.images.detach().requires_grad_()
        pairs = [
            self.augment(self.real_batch(label, step), self.decode(stored[self.rows_of(label)]), label, step)
            for label in range(self.data.num_classes)
        ]
        reals, synthetics = zip(*pairs, strict=True)
        with self.seeded("match", step):
            real = self.trainer.strategy.reduce(self._real_features(network, reals), reduce_op="sum")
        if self.global_rank:
            return torch.zeros_like(self._losses), torch.zeros_like(self.images)
        with self.seeded("synthetic", step):
            synthetic = embed(network, torch.cat(synthetics))
        predictions = ridge_prediction(real, synthetic, self._targets(synthetics), self.ridge)
        errors = (predictions - self._targets(reals)).square().sum(dim=1) / 2
        loss = torch.stack([part.mean() for part in errors.split([len(part) for part in reals])]).sum()
        (derivative,) = torch.autograd.grad(loss, stored)
        return loss.detach().to(self._losses), derivative

    def _real_features(self, network: nn.Module, reals: tuple[Tensor, ...]) -> Tensor:
        """Features of all real images, ``(m, d)``; zeros for those of other processes' classes."""
        features = []
        with torch.no_grad():
            empty = embed(network, reals[0][:1]) * 0
            for label, images in enumerate(reals):
                if label % self.trainer.world_size == self.global_rank:
                    features += [embed(network, chunk) for chunk in images.split(self.chunk_size or len(images))]
                else:
                    features.append(empty.expand(len(images), -1))
        return torch.cat(features)

    def _targets(self, images: tuple[Tensor, ...]) -> Tensor:
        """Centred labels of images class after class: float, ``(n, classes)``."""
        lengths = torch.tensor([len(part) for part in images])
        targets = (torch.eye(len(images)) - 1 / len(images)).repeat_interleave(lengths, dim=0)
        return targets.to(self.device, non_blocking=True)
