"""FRePo: the last layer of a network is fitted to the set (Zhou et al., NeurIPS 2022; ``frepo.py`` of its code)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dc_lightning.errors import InputError, require_at_least
from dc_lightning.matching.batch_norm import batch_norm_layers
from dc_lightning.matching.embeddings import embed, embed_chunks
from dc_lightning.methods.inner_loop import InnerLoop
from dc_lightning.networks import Shape, make_network
from dc_lightning.synthetic.initial import Init

_RATE = 0.01  # of the images, pixels in [0, 1]
_BETA = 0.99  # of the squares in Adam


def ridge_prediction(real: Tensor, synthetic: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Predictions for real images of a linear layer that ridge regression fits to synthetic ones (``nfr`` of the code).

    Args:
        real: features, float, ``(m, d)``.
        synthetic: likewise, ``(n, d)``.
        targets: of the synthetic images, float, ``(n, classes)``.
        ridge: regularisation, as a multiple of the mean squared norm of the synthetic features; above 0.

    Returns:
        float64, ``(m, classes)``, as a kernel of features is nearly singular; float32 where the device has no other.
    """
    real, synthetic, targets = map(_precise, (real, synthetic, targets))
    kernel = synthetic @ synthetic.T
    identity = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    weights = torch.linalg.solve_ex(kernel + ridge * kernel.diagonal().mean() * identity, targets)[0]  # never waits
    return real @ synthetic.T @ weights


def trained_prediction(
    real: Tensor, synthetic: Tensor, targets: Tensor, steps: int, lr: float, momentum: float
) -> Tensor:
    """Logits for real images of a linear layer that SGD trains on synthetic ones, from zero, by the cross-entropy.

    Each step takes all images. The layer has no bias, so that its weights stay a sum of synthetic features, of which
    only the factors are kept; it is ours, not the authors'.

    Args:
        real: features, float, ``(m, d)``.
        synthetic: likewise, ``(n, d)``.
        targets: labels of the synthetic images, one-hot, ``(n, classes)``.
        steps: of SGD; at least 1.
        lr: its learning rate.
        momentum: its momentum.

    Returns:
        ``(m, classes)``, in the precision of `ridge_prediction`.
    """
    real, synthetic, targets = map(_precise, (real, synthetic, targets))
    kernel = synthetic @ synthetic.T
    factors = velocity = torch.zeros_like(targets)
    for _ in range(steps):
        velocity = momentum * velocity + ((kernel @ factors).softmax(dim=1) - targets) / len(targets)
        factors = factors - lr * velocity
    return real @ synthetic.T @ factors


def _set_batch_norm(network: nn.Module, images: Tensor) -> None:
    """Puts the statistics of one batch in place of those that BatchNorm layers have gathered; all else is kept."""
    layers = batch_norm_layers(network)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = 1.0
    with torch.no_grad():
        network(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.eval()
        layer.momentum = momentum


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


class FRePo(InnerLoop):
    """Lowers the error on real images of a network whose last layer is fitted to the synthetic ones.

    The layers before it are fixed for a matching step, so that the best last layer is a ridge regression, through which
    the error is differentiated; between two steps the whole network trains on the synthetic set. No gradient of a
    gradient is taken, and real images need no backward pass.

    Such a regression finds last layers that training of the network does not: with ``last_layer_steps`` the layer is
    trained too, as in the recipes, and the set is made for that (ours, better: configs/results).

    Where the authors differ: they learn the labels too, with a loss of their margin, which are hard here; their network
    has batch norm, of another momentum, and grows wider with every block; ten networks take turns, each for a hundred
    steps, where one is used for an outer iteration here; theirs train by Adam on squared errors, ours by SGD on the
    cross-entropy; their images move by LAMB at 3e-4, ours by Adam; they whiten colour images, and add their mirror
    images where they are few; their real images are drawn from all classes, ours as many of each.

    Args:
        factor: training images along each side of a stored one, as in IDC.
        init: see `Condenser`.
        outer_steps: matching steps an outer iteration.
        inner_epochs: epochs of the network on the synthetic set after every matching step but the last.
        lr_network: learning rate of that training.
        momentum_network: momentum of that training, kept for an outer iteration.
        ridge: regularisation, as a multiple of the mean squared norm of the synthetic features; above 0.
        last_layer_steps: 0 fits the last layer by that regression, as in the paper. Else it is trained by so many steps
            of SGD with ``momentum_network``, as is the last layer of a network that learns from the set, and the error
            on real images is the cross-entropy (ours).
        lr_last_layer: learning rate of those steps; DC's recipe has the same.
        momentum_images: of Adam, below 1.
        **kwargs: see `InnerLoop`, `Condenser`; ``lr_images`` is 0.01 where None.

    Raises:
        InputError: if a value is out of its range; in `setup`, if the network has no last linear layer.
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
        last_layer_steps: int = 0,
        lr_last_layer: float = 0.01,
        momentum_images: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            outer_steps=outer_steps,
            inner_epochs=inner_epochs,
            lr_network=lr_network,
            init=init,
            momentum_images=momentum_images,
            **kwargs,
        )
        require_at_least(factor=(factor, 1), momentum_network=(momentum_network, 0))
        require_at_least(last_layer_steps=(last_layer_steps, 0), lr_last_layer=(lr_last_layer, 0))
        if not momentum_images < 1:
            raise InputError(f"momentum_images must be below 1 (of Adam), got {momentum_images}.")
        if not ridge > 0:
            raise InputError(f"ridge must be above 0 (regularisation of the regression), got {ridge}.")
        self.momentum_network = momentum_network
        self.factor, self.ridge = factor, ridge
        self.last_layer_steps, self.lr_last_layer = last_layer_steps, lr_last_layer

    def complete(self, data: Shape) -> None:
        """See `Condenser`."""
        self.lr_images = _RATE if self.lr_images is None else self.lr_images

    def check_network(self) -> None:
        """See `Condenser`; it needs a last linear layer."""
        super().check_network()
        shape = 1, self.data.channels, *self.data.image_size
        with torch.no_grad():
            embed(make_network(self.network_spec, self.data, 0).eval(), torch.zeros(shape))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam of the images."""
        betas = float(self.momentum_images), _BETA
        return torch.optim.Adam([self.images], lr=self.lr_images, betas=betas, fused=True)  # others wait for a GPU

    def prepare_network(self, network: nn.Module, step: int) -> None:
        """Nothing is dropped; BatchNorm takes the statistics of the set, behind which its running ones are far."""
        network.eval()
        if batch_norm_layers(network):
            _set_batch_norm(network, self.decode(self.images.detach()))

    def augment(self, real: Tensor, synthetic: Tensor, label: int, step: int) -> tuple[Tensor, Tensor]:
        """All classes alike: the last layer would tell a class by an augmentation of its own."""
        return super().augment(real, synthetic, 0, step)

    def match(self, network: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        """Sum over the classes of the mean error of their real images, and its derivative.

        Each process passes the real images of its classes; the first one alone does the rest.
        """
        stored = self.images.detach().requires_grad_()
        reals, synthetics = self.pairs_of(stored, step)
        features = [self._features(network, images, label, step) for label, images in enumerate(reals)]
        real = self.trainer.strategy.reduce(torch.cat(features), reduce_op="sum")
        if self.global_rank:
            return torch.zeros_like(self._losses), torch.zeros_like(self.images)
        with self.seeded("match", step):
            synthetic = embed(network, torch.cat(synthetics))
        errors = self._errors(real, synthetic, self._targets(reals), self._targets(synthetics))
        loss = torch.stack([part.mean() for part in errors.split([len(part) for part in reals])]).sum()
        (derivative,) = torch.autograd.grad(loss, stored)
        return loss.detach().to(self._losses.dtype), derivative

    def _features(self, network: nn.Module, images: Tensor, label: int, step: int) -> Tensor:
        """Features of the real images of a class, ``(n, d)``; zeros where it is another process'."""
        with self.seeded("match", step, label):
            if label % self.trainer.world_size != self.global_rank:
                return torch.zeros_like(embed_chunks(network, [images[:1]])).repeat(len(images), 1)
            return embed_chunks(network, images.split(self.chunk_size or len(images)))

    def _errors(self, real: Tensor, synthetic: Tensor, real_targets: Tensor, targets: Tensor) -> Tensor:
        """Error of each real image, ``(m,)``, of a last layer that is fitted to the synthetic images."""
        if self.last_layer_steps:
            sgd = self.last_layer_steps, self.lr_last_layer, self.momentum_network
            logits = trained_prediction(real, synthetic, targets, *sgd)
            return cross_entropy(logits, real_targets.to(logits.dtype), reduction="none")
        mean = 1 / targets.shape[1]
        predictions = ridge_prediction(real, synthetic, targets - mean, self.ridge)
        return (predictions - (real_targets - mean)).square().sum(dim=1) / 2

    def _targets(self, images: list[Tensor]) -> Tensor:
        """Labels of images class after class, one-hot: float, ``(n, classes)``."""
        lengths = torch.tensor([len(part) for part in images])
        return torch.eye(len(images)).repeat_interleave(lengths, dim=0).to(self.device, non_blocking=True)
