"""IDC and IDC-I (Kim et al., ICML 2022; ``condense.py`` of its code, constants as its ``--reproduce`` sets them)."""

from typing import Any, Literal

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dc_lightning.augmentation import check_augmentation, make_pair_augmentation
from dc_lightning.augmentation.cutmix import CutMix, check_probability
from dc_lightning.errors import InputError, require_at_least, require_known
from dc_lightning.matching.batch_norm import has_batch_norm
from dc_lightning.matching.distances import DISTANCES, Distance, layerwise_cosine
from dc_lightning.matching.gradients import network_gradient
from dc_lightning.methods.base import Condenser
from dc_lightning.networks import Shape, make_network
from dc_lightning.parts import Spec, as_spec, make, part_name
from dc_lightning.seeds import derive_generator
from dc_lightning.synthetic.formation import Formation, decode_bounded
from dc_lightning.synthetic.initial import Init

_RATES = {"l1": 1e-4, "mse": 5e-3}  # of the images, times ipc / 10 * (side / 32)^2, for MNIST 28
_DISTANCES = {**DISTANCES, "cos": layerwise_cosine}  # what the authors' code calls cos
_MATCHING = {"class_path": "dc_lightning.augmentation.DiffAugment", "init_args": {"strategy": "color_crop_cutout"}}
_TRAINING = {"class_path": "dc_lightning.augmentation.DiffAugment", "init_args": {"strategy": "color_crop"}}


class IDC(Condenser):
    """Matches gradients of images that are stored several in one, with networks that train on real data.

    Images are pixels in [0, 1], clamped when an outer iteration starts. That has ``outer_steps`` rounds: the images are
    updated after every class, by the gradients of the convolution weights; then the network trains on real images.
    IDC-I is IDC with factor 1.

    Where the authors' code differs: its first images are the first of each class in the dataset's order, ours are
    drawn, and its noise is clip(N(0, 1) / 4 + 0.5); a round trains on a fixed number of batches, theirs on one more
    where a pass ends, and after the last round of an outer iteration as well; CIFAR100 has its own mean and std, theirs
    CIFAR10's; for MNIST with factor 2 they leave out CutMix and, in the matching, cutout; their ConvNet pads grey
    images of any size by three pixels, ours those of 28x28. Convolution weights are tensors of more than two
    dimensions, LayerNorm's among them. Give ``data.batch_real`` 64 (DREAM: 128), and the recipe ``idc``.

    Args:
        factor: training images along each side of a stored one; 2 in the paper, 3 for ImageNet.
        formation: ``single``; ``multi``, by all factors up to this; or ``bound``, at most ``batch_synthetic`` training
            images of a class while condensing, and ``single`` afterwards.
        init: see `Condenser`; packed, where the factor is above 1.
        augmentation: in the matching, see `Condenser`.
        distance: of the gradients of the convolution weights: ``l1``, ``mse``, ``l1_mean``, ``cos`` (of the authors'
            code, which is DC's ``ours``), or as for the network. None takes the authors': l1 for grey images, mse for
            others.
        outer_steps: rounds an outer iteration.
        network_images: real images on which the network trains after each round, rounded up to whole batches; None
            takes the data's (500, CIFAR 2000); 0 leaves it untrained.
        batch_network: of that training.
        network_augmentation: of that training, as `augmentation`.
        cutmix: probability there that a batch is mixed by CutMix, in [0, 1].
        lr_network: of its SGD.
        momentum_network: likewise.
        weight_decay_network: likewise.
        batch_synthetic: training images of a class in one matching, a random choice where there are more.
        **kwargs: see `Condenser`. ``lr_images`` is 1e-4 (mse: 5e-3) times ipc / 10 and (height / 32)^2, for MNIST
            (height / 28)^2, where None.

    Raises:
        InputError: if a value is out of its range, or ``bound`` has less room than stored images; in `setup`, if the
            network has no convolutions, or BatchNorm.
    """

    space = "pixels"

    def __init__(
        self,
        factor: int = 2,
        formation: Formation | Literal["bound"] = "single",
        init: Init = "real",
        augmentation: Spec | None = _MATCHING,
        distance: Spec | None = None,
        outer_steps: int = 100,
        network_images: int | None = None,
        batch_network: int = 64,
        network_augmentation: Spec | None = _TRAINING,
        cutmix: float = 0.5,
        lr_network: float = 0.01,
        momentum_network: float = 0.9,
        weight_decay_network: float = 5e-4,
        batch_synthetic: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(init=init, augmentation=augmentation, **kwargs)
        require_at_least(
            outer_steps=(outer_steps, 1),
            network_images=(network_images, 0),
            batch_network=(batch_network, 1),
            lr_network=(lr_network, 0),
            momentum_network=(momentum_network, 0),
            weight_decay_network=(weight_decay_network, 0),
            batch_synthetic=(batch_synthetic, 1),
        )
        if factor < 1:
            raise InputError(f"factor must be at least 1 (training images along a side of a stored one), got {factor}.")
        require_known("model.formation", formation, ("single", "multi", "bound"))
        check_probability("model.cutmix", cutmix)
        check_augmentation(network_augmentation)
        self.factor, self.bounded = factor, formation == "bound"
        self.formation = "single" if formation == "bound" else formation
        if self.bounded and batch_synthetic < self.ipc:
            raise InputError(
                f"formation 'bound' needs a batch_synthetic of at least ipc={self.ipc}, a training image for each "
                f"stored one, got {batch_synthetic}."
            )
        self._set_distance(distance)
        self.outer_steps, self.batch_synthetic = outer_steps, batch_synthetic
        self.network_images, self.batch_network = network_images, batch_network
        self.network_augmentation_spec, self.network_augmentation, self.cutmix = network_augmentation, None, cutmix
        self._passes: dict[tuple[str | int, ...], tuple[int, Tensor]] = {}  # by purpose: number and order of rows
        self.sgd: dict[str, Any] = {
            "lr": lr_network,
            "momentum": momentum_network,
            "weight_decay": weight_decay_network,
        }

    def _set_distance(self, distance: Spec | None) -> None:
        self.distance = None if distance is None else as_spec(distance)
        self._compare: Distance | None = None if distance is None else make("distance", _DISTANCES, as_spec(distance))

    @property
    def name(self) -> str:  # type: ignore[override]
        """IDC-I where every stored image is one training image."""
        return "IDC" if self.factor > 1 else "IDC-I"

    def complete(self, data: Shape) -> None:
        """See `Condenser`; the authors' settings by channels, dataset and size (``misc/reproduce.py``)."""
        if self.distance is None:
            self._set_distance("l1" if data.channels == 1 else "mse")
        if self.network_images is None:
            self.network_images = getattr(data, "network_images", 500)
        distance = part_name(self.distance or "")
        if self.lr_images is None and distance not in _RATES:
            raise InputError(f"There is no rate of the authors' for the distance {distance}; give lr_images.")
        if self.lr_images is None:
            side = getattr(data, "usual_side", 32)
            self.lr_images = _RATES[distance] * self.ipc / 10 * (data.image_size[0] / side) ** 2

    def check_network(self) -> None:
        """See `Condenser`; it needs convolutions, and no BatchNorm."""
        super().check_network()
        network = make_network(self.network_spec, self.data, 0)
        if not any(parameter.dim() > 2 for parameter in network.parameters()):
            raise InputError(
                f"{self.name} compares the gradients of convolutions, and the network {part_name(self.network_spec)} "
                "has none; take another network or method."
            )
        if has_batch_norm(network):
            raise InputError(
                f"{self.name} passes images of one class at a time, which BatchNorm cannot take; take a network "
                f"without it instead of {part_name(self.network_spec)}."
            )

    def setup(self, stage: str) -> None:
        """See `Condenser`."""
        super().setup(stage)
        self.network_augmentation = make_pair_augmentation(self.network_augmentation_spec, self.data)
        self.mix = CutMix(self.cutmix, self.data.num_classes)

    def real_batch(self, label: int, step: int) -> Tensor:
        """The next images in a shuffled pass over the class, which drops what is left at its end."""
        rows, size = self.real.rows[label], self.real.batch_real
        number, place = divmod(self.current_epoch * self.outer_steps + step, max(len(rows) // size, 1))
        chosen = self._shuffled(len(rows), number, "real", label)[place * size : (place + 1) * size]
        return self.real.take(rows[chosen]).to(self.images.dtype)

    def _shuffled(self, count: int, number: int, *purpose: str | int) -> Tensor:
        """The order of rows, ``(count,)``, in a pass; that of the present pass is kept for the next batch."""
        if purpose not in self._passes or self._passes[purpose][0] != number:
            generator = derive_generator(self.seed, *purpose, number)
            self._passes[purpose] = number, torch.randperm(count, generator=generator)
        return self._passes[purpose][1]

    def synthetic_batch(self, stored: Tensor, label: int, step: int) -> Tensor:
        """See `Condenser`; at most ``batch_synthetic``."""
        if self.bounded:
            images = self.data.normalize(decode_bounded(stored, self.factor, self.batch_synthetic))
        else:
            images = self.decode(stored)
        if len(images) <= self.batch_synthetic:
            return images
        order = torch.randperm(len(images), generator=self.generator("synthetic", step, label))
        return images[order[: self.batch_synthetic].to(images.device, non_blocking=True)]

    def images_of(self, label: int) -> Tensor:
        """Stored images of a class as its turn finds them: moved by the momentum at the turns of those before it."""
        stored, optimizer = super().images_of(label), self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        momentum = optimizer.state[self.images].get("momentum_buffer")
        if momentum is None:
            return stored
        moved = sum(self.momentum_images**turn for turn in range(1, label + 1))
        return stored - optimizer.param_groups[0]["lr"] * moved * momentum[self.rows_of(label)]

    def update_images(self, optimizer: LightningOptimizer, derivative: Tensor) -> None:
        """A step a class, of all images each time: those of the other classes move by momentum."""
        for label in range(self.data.num_classes):
            grad = torch.zeros_like(derivative)
            grad[self.rows_of(label)] = derivative[self.rows_of(label)]
            super().update_images(optimizer, grad)

    def prepare_network(self, network: nn.Module, step: int) -> None:
        """Clamps the images when an outer iteration starts."""
        network.train()
        if step == 0:
            with torch.no_grad():
                self.images.clamp_(0, 1)

    def loss(self, network: nn.Module, real: Tensor, synthetic: Tensor, label: int) -> Tensor:
        """Distance of the two gradients of the convolution weights (paper, equation 3)."""
        forward = self.forward_of(network)
        target = network_gradient(network, real, label, chunk_size=self.chunk_size, forward=forward)
        gradient = network_gradient(network, synthetic, label, create_graph=True)
        assert self._compare is not None
        return self._compare(*([tensor for tensor in each if tensor.dim() > 2] for each in (gradient, target)))

    def network_batch(self, step: int, number: int) -> tuple[Tensor, Tensor]:
        """The next images and labels, ``(n,)``, in a shuffled pass over all real images, which keeps its last batch."""
        count = len(self.real.labels)
        per_pass = -(-count // self.batch_network)
        done = (self.current_epoch * (self.outer_steps - 1) + step) * self.network_steps + number
        number_of_pass, place = divmod(done, per_pass)
        order = self._shuffled(count, number_of_pass, "network images")
        rows = order[place * self.batch_network : (place + 1) * self.batch_network]
        images, labels = self.real.batch(rows)
        return images.to(self.images.dtype), labels

    @property
    def network_steps(self) -> int:
        """Batches on which the network trains after a round."""
        return -(-(self.network_images or 0) // self.batch_network)

    def train_network(self, network: nn.Module, step: int) -> None:
        """Trains on real images, augmented and mixed by CutMix (paper, algorithm 1; ``train_epoch``)."""
        forward, optimizer = self.forward_of(network), self.optimizer_of(network, **self.sgd)
        for number in range(self.network_steps):
            images, labels = self.network_batch(step, number)
            if self.network_augmentation is not None:
                seed = self.derived_seed("network augmentation", step, number)
                images = self.network_augmentation.batch(images, seed)
            images, labels = self.mix(images, labels, self.generator("cutmix", step, number))
            optimizer.zero_grad()
            cross_entropy(forward(images), labels).backward()
            optimizer.step()
