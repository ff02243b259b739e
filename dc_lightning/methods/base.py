"""What all methods share: synthetic images as parameters, the loop over classes, one image optimizer, exact resume."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from dc_lightning.augmentation import check_augmentation, make_pair_augmentation
from dc_lightning.compilation import Recorder, compiled, renew, uncached_autocast
from dc_lightning.data.datamodule import CondensationDataModule
from dc_lightning.data.real import RealImages
from dc_lightning.errors import InputError, require_at_least, require_known
from dc_lightning.matching.gradients import Forward
from dc_lightning.methods.resume import (
    changes_of_pace,
    identity_of,
    pace_if_finished,
    pace_of,
    require_finite,
    require_same,
    source_of,
)
from dc_lightning.networks import Shape, check_network, make_network
from dc_lightning.parts import Spec, as_spec
from dc_lightning.seeds import derive_generator, derive_seed, seeded
from dc_lightning.synthetic import SyntheticSet
from dc_lightning.synthetic.formation import Formation, check_factor, decode, pack_classes
from dc_lightning.synthetic.initial import INITS, Init, initial_images
from dc_lightning.synthetic.synthetic_set import Space

PRECISIONS = ("32-true", "64-true", "bf16-mixed")
"""Of the Trainer, in which images are condensed; the first is the default."""


class Condenser(LightningModule):
    """Learns synthetic images, class by class, by a loss that a method defines.

    One Lightning epoch is one outer iteration, with a freshly initialised network; one training step is one matching
    step over all classes. Under a distributed strategy each process matches its own classes, and the derivatives are
    summed. Classes, channels and image size come from the datamodule.

    A method overrides `loss`, and where it differs the attributes below, `complete`, `starting_images`, `real_batch`,
    `synthetic_batch`, `decode`, `augment`, `prepare_network`, `train_network`, `match`; its state beyond images,
    network and that of `optimizer_of` it adds to the checkpoint, in ``on_save_checkpoint`` and ``on_load_checkpoint``.

    Args:
        network: to match in; see `make_network`.
        ipc: synthetic images per class.
        init: ``noise``, ``real``, ``k-means`` or ``nearest``; see `initial_images`.
        augmentation: of both in the matching; None, ``siamese`` (DSA), or a class with its ``pair`` and ``batch``.
        lr_images: learning rate of the images; None takes the paper's.
        lr_images_cooldown: share of the run, at its end, over which that falls linearly to zero, in [0, 1]; 0 in the
            papers. A finished run that is resumed for more iterations starts again at a higher rate.
        momentum_images: momentum of the images, kept through the whole run.
        pixels: ``unit`` keeps them inside [0, 1] after every update; ``any`` as in the papers.
        real_chunk_size: real images a pass, the same up to rounding; None takes all on a GPU, and 64 on the CPU.
        seed: of every random draw.

    Attributes:
        name: of the method, wherever it is named; that of the class where it sets none.
        outer_steps: matching steps an outer iteration.
        factor, formation, space: of the stored images; see `SyntheticSet`.
        resumed: where a resume changed the pace (`pace_of`), and what it was before, in words.
        finished_at: pace of a finished run that is only evaluated again; empty else.

    Raises:
        InputError: if a value is out of its range, or a part unknown.
    """

    name: str = "Condenser"
    outer_steps: int = 1
    factor: int = 1
    formation: Formation = "single"
    space: Space = "normalised"
    images: nn.Parameter
    labels: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def __init__(
        self,
        network: Spec = "ConvNet",
        ipc: int = 1,
        init: Init = "noise",
        augmentation: Spec | None = None,
        lr_images: float | None = None,
        lr_images_cooldown: float = 0.0,
        momentum_images: float = 0.5,
        pixels: Literal["any", "unit"] = "any",
        real_chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if ipc < 1:
            raise InputError(f"ipc must be at least 1 (synthetic images per class), got {ipc}.")
        require_at_least(lr_images=(lr_images, 0), momentum_images=(momentum_images, 0))
        require_at_least(real_chunk_size=(real_chunk_size, 1))
        if not 0 <= lr_images_cooldown <= 1:
            raise InputError(f"lr_images_cooldown is a share of the run, from 0 to 1, got {lr_images_cooldown}.")
        require_known("model.init", init, INITS)
        require_known("model.pixels", pixels, ("any", "unit"))
        check_augmentation(augmentation)
        self.save_hyperparameters()
        self.hparams.update({key: as_spec(value) for key, value in self.hparams.items() if callable(value)})
        self.automatic_optimization = False
        self.network_spec, self.seed, self.ipc, self.init = as_spec(network), seed, ipc, init
        self.augmentation_spec, self.augmentation = augmentation, None
        self.lr_images = cast(float, lr_images)  # None until `setup`
        self.lr_images_cooldown, self.momentum_images = lr_images_cooldown, momentum_images
        self.real_chunk_size, self.pixels = real_chunk_size, pixels
        self._unregistered: dict[str, nn.Module] = {}  # a registered network would be a part of the state and of DDP
        self._forward: Forward | None = None
        self._recorder = Recorder()
        self._resumed_network: dict[str, Tensor] | None = None
        self._network_optimizer: torch.optim.Optimizer | None = None
        self._resumed_optimizer: dict[str, Any] | None = None
        self._losses, self._steps = torch.zeros(()), 0  # sum over classes and the steps of this outer iteration
        self._curve = (0, 0.0)  # completed iterations, and the matching loss of the last
        self.resumed_at: int | None = None
        self.resumed, self.finished_at = "", dict[str, Any]()

    # What a method may override

    def complete(self, data: Shape) -> None:
        """Sets what was left to the method, such as the rate of the images, once the data are known."""
        self.lr_images = 0.1 if self.lr_images is None else self.lr_images

    def check_network(self) -> None:
        """Raises `InputError` where the method cannot take the network."""
        check_network(self.network_spec, self.data)

    def loss(self, network: nn.Module, real: Tensor, synthetic: Tensor, label: int) -> Tensor:
        """The method itself: how far the synthetic images of a class are from its real ones, a scalar.

        Args:
            network: of this outer iteration.
            real: float, ``(batch, C, H, W)``, normalised.
            synthetic: likewise, decoded, with a graph to the stored images.
            label: the class. For what else it may read where its work is recorded on a GPU see `replay_graphs`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss(network, real, synthetic, label).")

    def real_batch(self, label: int, step: int) -> Tensor:
        """Real images of a class for a matching step, float, ``(batch, C, H, W)``: random, without replacement."""
        return self.real.draw(label, self.generator("real", step, label)).to(self.images.dtype)

    def starting_images(self, count: int) -> Tensor:
        """Images before the first step, ``count`` a class: float, ``(classes * count, C, H, W)``, normalised."""
        return initial_images(self.init, count, self.real, self.seed)

    def synthetic_batch(self, stored: Tensor, label: int, step: int) -> Tensor:
        """Synthetic images of a class for a matching step: all that its stored ones decode to."""
        return self.decode(stored)

    def decode(self, stored: Tensor) -> Tensor:
        """Training images of stored ones, normalised."""
        if self.space == "pixels":
            return self.data.normalize(decode(stored, self.factor, self.formation))
        return decode(stored, self.factor, self.formation, self.data.grey)

    def augment(self, real: Tensor, synthetic: Tensor, label: int, step: int) -> tuple[Tensor, Tensor]:
        """Augments both batches alike, where `augmentation` is given."""
        if self.augmentation is None:
            return real, synthetic
        return self.augmentation.pair(real, synthetic, self.derived_seed("augmentation", step, label))

    def prepare_network(self, network: nn.Module, step: int) -> None:
        """Called before each matching step."""

    def train_network(self, network: nn.Module, step: int) -> None:
        """Called after each matching step but the last of an outer iteration."""

    def match(self, network: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        """Sum of the losses of this process' classes, and its derivative with respect to all stored images.

        Class by class: the same as one backward pass over the sum, as classes are independent given the network.
        """
        loss, derivative = torch.zeros_like(self._losses), torch.zeros_like(self.images)
        for label in range(self.global_rank, self.data.num_classes, self.trainer.world_size):
            stored = self.images_of(label).requires_grad_()
            batches = self.real_batch(label, step), self.synthetic_batch(stored, label, step)
            real, synthetic = self.augment(*batches, label, step)
            with self.seeded("match", step, label):
                value, slope = self._recorder(self.loss, network, real, synthetic, label, stored)
            derivative[self.rows_of(label)] = slope
            loss += value
        return loss, derivative

    # What a method may use

    @property
    def data(self) -> CondensationDataModule:
        """The datamodule of the run."""
        if not isinstance(data := getattr(self.trainer, "datamodule", None), CondensationDataModule):
            raise InputError(f"The data must be a CondensationDataModule, got {type(data).__name__}.")
        return data

    @property
    def real(self) -> RealImages:
        """The real training images."""
        assert self.data.real is not None
        return self.data.real

    def rows_of(self, label: int) -> slice:
        """Rows of the stored images of a class."""
        return slice(label * self.ipc, (label + 1) * self.ipc)

    def images_of(self, label: int) -> Tensor:
        """Stored images of a class, detached, ``(ipc, C, H, W)``."""
        return self.images.detach()[self.rows_of(label)]

    def pairs_of(self, stored: Tensor, step: int) -> tuple[list[Tensor], list[Tensor]]:
        """Real and synthetic batches of all classes, augmented; ``stored`` are all stored images."""
        pairs = [
            self.augment(self.real_batch(label, step), self.decode(stored[self.rows_of(label)]), label, step)
            for label in range(self.data.num_classes)
        ]
        return [real for real, _ in pairs], [synthetic for _, synthetic in pairs]

    def derived_seed(self, purpose: str, step: int, *label: int) -> int:
        """Seed of a draw in this outer iteration: the same on every process, and after a resume."""
        return derive_seed(self.seed, purpose, self.current_epoch, step, *label)

    def generator(self, purpose: str, step: int, *label: int) -> torch.Generator:
        """Generator on the CPU for a draw; see `derived_seed`."""
        return derive_generator(self.seed, purpose, self.current_epoch, step, *label)

    def seeded(self, purpose: str, step: int, *label: int) -> AbstractContextManager[None]:
        """For what a network itself draws, such as dropout; see `derived_seed`."""
        return seeded(self.derived_seed(purpose, step, *label), self.device)

    @property
    def network(self) -> nn.Module | None:
        """The network of this outer iteration; None before its first step."""
        return self._unregistered.get("network")

    def forward_of(self, network: nn.Module) -> Forward:
        """The network of this outer iteration, compiled or replayed if that is switched on."""
        if network is not self.network:
            return compiled(network)
        self._forward = self._forward or compiled(network)
        return self._forward

    def optimizer_of(self, network: nn.Module, **settings: Any) -> torch.optim.Optimizer:
        """SGD of the network of this outer iteration, with the momentum that it gathered there, also after a resume."""
        optimizer = self._network_optimizer
        if optimizer is None or optimizer.param_groups[0]["params"][0] is not next(network.parameters()):
            self._network_optimizer = optimizer = torch.optim.SGD(network.parameters(), **settings)
            if self._resumed_optimizer is not None:
                optimizer.load_state_dict(self._resumed_optimizer)
            self._resumed_optimizer = None
        return optimizer

    @property
    def chunk_size(self) -> int | None:
        """Real images a pass: 64 on the CPU, as fast as 256 there (ConvNet, 1x28x28) at a quarter of the memory."""
        return self.real_chunk_size or (64 if self.device.type == "cpu" else None)

    @property
    def matching_loss(self) -> Tensor:
        """Mean over classes and the steps so far of this outer iteration, a scalar on the device."""
        return self._losses / (self.data.num_classes * max(self._steps, 1))

    # The loop

    def setup(self, stage: str) -> None:
        """Makes the synthetic images, once the data are known."""
        data = self.data
        check_factor(self.factor, data.image_size)
        self.check_network()
        self.augmentation = make_pair_augmentation(self.augmentation_spec, data)
        if self.trainer.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {self.trainer.precision}: half "
                "precision would round small updates of the images away, and scaled losses scale what is matched."
            )
        if self.lr_images_cooldown and not (self.trainer.max_epochs or 0) > 0:
            raise InputError("model.lr_images_cooldown needs to know when the run ends; give trainer.max_epochs.")
        self.complete(data)
        if getattr(self, "images", None) is None:
            count = self.ipc * self.factor**2
            images = pack_classes(self.starting_images(count), count, self.factor)
            self.images = nn.Parameter(data.denormalize(images) if self.space == "pixels" else images)
        self.register_buffer("labels", torch.arange(data.num_classes).repeat_interleave(self.ipc), persistent=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD of the images."""
        return torch.optim.SGD([self.images], lr=self.lr_images, momentum=self.momentum_images)

    def on_fit_start(self) -> None:
        """Logs again the iteration that a resumed run starts from, at which the older curve is cut."""
        if self.resumed_at is not None:
            self._log_loss()

    def on_train_start(self) -> None:
        """Refuses a Trainer that would leave out matching steps."""
        self._losses = self._losses.to(self.device)
        steps = self.trainer.num_training_batches
        if steps != self.outer_steps and not getattr(self.trainer, "fast_dev_run", False):
            raise InputError(
                f"An outer iteration has {self.outer_steps} matching steps, but the Trainer would run {steps}: leave "
                "out trainer.limit_train_batches and trainer.overfit_batches; model.outer_steps sets their number."
            )

    def training_step(self, batch: RealImages, batch_idx: int) -> None:
        """One matching step: the loss class by class, one update of the images, then the network's own training."""
        network = self._network(batch_idx)
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.param_groups[0]["lr"] = self._cooled_lr(batch_idx)
        with uncached_autocast(self.device):
            self.prepare_network(network, batch_idx)
            loss, derivative = self.match(network, batch_idx)
            self.update_images(optimizer, self.trainer.strategy.reduce(derivative, reduce_op="sum"))
            if self.pixels == "unit":
                self.images.data.copy_(self.data.clamped(self.images.data, self.space))
            self._losses += self.trainer.strategy.reduce(loss, reduce_op="sum")
            self._steps = batch_idx + 1
            if batch_idx < self.outer_steps - 1:
                with self.seeded("train", batch_idx):
                    self.train_network(network, batch_idx)

    def _network(self, step: int) -> nn.Module:
        """The network of this outer iteration: fresh at its first step, from the checkpoint after a resume."""
        if step == 0 or "network" not in self._unregistered:
            network = make_network(self.network_spec, self.data, derive_seed(self.seed, "network", self.current_epoch))
            if self._resumed_network is not None and step > 0:
                network.load_state_dict(self._resumed_network)
            if step == 0:
                self._resumed_optimizer = None
            self._resumed_network, self._network_optimizer = None, None
            network = network.to(self.device, self.images.dtype, non_blocking=True)
            if not renew(self.network, network):
                self._unregistered["network"], self._forward, self._recorder = network, None, Recorder()
        return self._unregistered["network"]

    def update_images(self, optimizer: LightningOptimizer, derivative: Tensor) -> None:
        """One step, by the derivative with respect to all stored images."""
        self.images.grad = derivative
        optimizer.step()

    def _cooled_lr(self, step: int) -> float:
        """Learning rate of the images: a function of the step and the run's end, so that a resume finds it again."""
        if not self.lr_images_cooldown:
            return self.lr_images
        assert self.trainer.max_epochs is not None
        left = 1 - (self.current_epoch + step / self.outer_steps) / self.trainer.max_epochs  # of the run, above 0
        return self.lr_images * min(left / self.lr_images_cooldown, 1)

    def on_train_epoch_end(self) -> None:
        """Logs the matching loss of the outer iteration."""
        require_finite(self)
        self.trainer.callback_metrics["matching_loss"] = self.matching_loss  # self.log takes a millisecond
        self._curve = self.current_epoch + 1, float(self.matching_loss)
        self._log_loss()
        self._losses = torch.zeros_like(self._losses)

    def _log_loss(self) -> None:
        iteration, loss = self._curve
        for logger in self.loggers if iteration else []:
            logger.log_metrics({"matching_loss": loss}, step=iteration)

    # Files

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resume compares, and what the steps that are left of this outer iteration start from."""
        checkpoint |= {**identity_of(self), "curve": self._curve, "resumed": self.resumed}
        checkpoint["pace"] = pace_of(self) | self.finished_at
        if self.network is not None and self.outer_steps > 1:
            checkpoint |= {"network": self.network.state_dict(), "losses": self._losses}
        if self._network_optimizer is not None:
            checkpoint["network_optimizer"] = self._network_optimizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the network of an outer iteration that was interrupted, where the settings are the same."""
        require_same(checkpoint, self)
        self._unregistered.clear()
        self._resumed_optimizer = checkpoint.get("network_optimizer")
        self._resumed_network, self._losses = checkpoint.get("network"), checkpoint.get("losses", self._losses)
        self._curve = checkpoint["curve"]
        self.resumed_at = self._curve[0]
        self.finished_at = pace_if_finished(checkpoint, self)
        self.resumed = changes_of_pace(checkpoint, self)

    def synthetic_set(self, iteration: int) -> SyntheticSet:
        """A copy of the images as they are now, after so many completed iterations."""
        data, images = self.data, self.images.detach().float().cpu().clone()
        source = {**source_of(self), "iteration": iteration}
        found = SyntheticSet(images, self.labels.cpu(), data.mean, data.std, data.class_names, source)
        return replace(found, space=self.space, factor=self.factor, formation=self.formation)
