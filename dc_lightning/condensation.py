"""The condensation: synthetic images as parameters, learned by matching gradients (paper, algorithm 1)."""

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dc_lightning.compilation import compiled
from dc_lightning.data import CondensationDataModule, RealImages
from dc_lightning.errors import InputError, first_line
from dc_lightning.initial import INITS, Init, initial_images
from dc_lightning.matching import Forward, freeze_batch_norm, has_batch_norm, match_class, match_classes
from dc_lightning.parts import Spec, as_spec, check_network, find_distance, make_network, part_name
from dc_lightning.seeds import derive_generator, derive_seed, seeded
from dc_lightning.synthetic import SyntheticSet, read_tensors

_INNER_EPOCHS = {1: 1, 10: 50, 20: 25, 30: 20, 40: 15, 50: 10}  # paper, appendix A; get_loops of the authors' code


def default_loops(ipc: int) -> tuple[int, int]:
    """Matching steps an outer iteration, and epochs of network training between two of them.

    The paper's table has ipc 1, 10, 20, 30, 40, 50. For any other ipc there are ipc matching steps, as in all its
    rows. The epochs are interpolated linearly between the rows, rounded half up; from 10 downwards they stay 50
    (with ipc 1 there is no second step, so its single epoch is never run), from 50 upwards they stay 10.

    Args:
        ipc: synthetic images per class, at least 1.

    Returns:
        outer steps and inner epochs.
    """
    if ipc in _INNER_EPOCHS:
        return ipc, _INNER_EPOCHS[ipc]
    low = max((row for row in _INNER_EPOCHS if 10 <= row < ipc), default=10)
    high = min((row for row in _INNER_EPOCHS if row > max(ipc, 9)), default=50)
    share = min(max((ipc - low) / max(high - low, 1), 0), 1)
    return ipc, math.floor(_INNER_EPOCHS[low] + share * (_INNER_EPOCHS[high] - _INNER_EPOCHS[low]) + 0.5)


def default_chunk_size(device: torch.device) -> int | None:
    """Real images a pass: all on a GPU; 64 on the CPU, as fast as 256 (ConvNet, 1x28x28) at a quarter of the memory."""
    return 64 if device.type == "cpu" else None


_MAY_CHANGE = (
    *("real_chunk_size", "batch_classes"),  # on a resume: memory and speed,
    *("lr_images", "lr_images_cooldown"),  # and what a run that diverged, or is to end, needs
)


def require_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of a condensation, before anything is built for it.

    Raises:
        InputError: if it is missing, damaged, of something else, or would have to run code to be read.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint at '{path}'; give the path of a .ckpt file.")
    content = read_tensors(path)
    state, curve = (content.get(key) for key in ("state_dict", "curve")) if isinstance(content, dict) else (None, None)
    if not isinstance(state, dict) or "images" not in state or not isinstance(curve, tuple):
        raise InputError(f"'{path}' is not a checkpoint of a condensation; give a .ckpt file that a run of it wrote.")
    return content


class CondensationModule(LightningModule):
    """Learns synthetic images such that they give a network the same gradients as the real ones.

    One Lightning epoch is one outer iteration, with a freshly initialised network; one training step is one matching
    step over all classes. Under a distributed strategy each rank matches its own classes, and the derivatives are
    summed. Classes, channels and image size come from the datamodule.

    Args:
        network: to match gradients in; a name of the paper, an import path, or class_path and init_args.
        distance: of two gradients; ``ours``, ``mse``, ``cos``, or as for the network.
        ipc: synthetic images per class.
        init: ``noise``, standard normal in normalised space, ``real``, random real images of the class, or ``k-means``,
            cluster centres of them; see `initial_images`.
        outer_steps: matching steps an outer iteration; None takes `default_loops`.
        inner_epochs: epochs of network training after every matching step but the last; None takes `default_loops`.
        lr_images: learning rate of the images; the paper's is 0.1, and 0.01 for the MLP.
        lr_images_cooldown: share of the outer iterations, the last ones, over which that rate falls linearly to zero,
            in [0, 1]; the paper's is 0. They end at ``trainer.max_epochs``: a finished run that goes on to more
            iterations starts again at a higher rate.
        momentum_images: momentum of the images, kept through the whole run.
        lr_network: learning rate of the inner loop.
        batch_synthetic: batch size of the inner loop.
        batch_norm_images: real images per class whose statistics BatchNorm layers take before every matching step.
        real_chunk_size: real images a pass; None passes the whole batch on a GPU, and 64 on the CPU, which are as fast
            there as all at once. The result is the same up to rounding; a small one needs little memory. Four times as
            many pass together for the statistics of BatchNorm layers, where nothing is kept for a derivative.
        batch_classes: match all classes in one pass instead of one by one: fewer and larger operations, for a GPU, at
            the memory of all classes. The result is the same up to rounding, unless the network draws itself (dropout).
        seed: of every random draw.

    Raises:
        InputError: if a value is out of its range, or network or distance are unknown.
    """

    images: nn.Parameter
    labels: Tensor

    def __init__(
        self,
        network: Spec = "ConvNet",
        distance: Spec = "ours",
        ipc: int = 1,
        init: Init = "noise",
        outer_steps: int | None = None,
        inner_epochs: int | None = None,
        lr_images: float = 0.1,
        lr_images_cooldown: float = 0.0,
        momentum_images: float = 0.5,
        lr_network: float = 0.01,
        batch_synthetic: int = 256,
        batch_norm_images: int = 16,
        real_chunk_size: int | None = None,
        batch_classes: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        network, distance = as_spec(network), as_spec(distance)
        if ipc < 1:
            raise InputError(f"ipc must be at least 1 (synthetic images per class), got {ipc}.")
        for name, value, least in (
            *(("outer_steps", outer_steps, 1), ("inner_epochs", inner_epochs, 0), ("lr_images", lr_images, 0)),
            *(("momentum_images", momentum_images, 0), ("lr_network", lr_network, 0)),
            *(("batch_synthetic", batch_synthetic, 1), ("batch_norm_images", batch_norm_images, 1)),
            ("real_chunk_size", real_chunk_size, 1),
        ):
            if value is not None and not value >= least:
                raise InputError(f"{name} must be at least {least}, got {value}.")
        if not 0 <= lr_images_cooldown <= 1:
            raise InputError(f"lr_images_cooldown is a share of the run, from 0 to 1, got {lr_images_cooldown}.")
        if init not in INITS:
            raise InputError(f"init must be one of {', '.join(INITS)}, got '{init}'.")
        own, plain = type(self), CondensationModule
        if batch_classes and own.match is not plain.match and own.match_classes is plain.match_classes:
            raise InputError(
                f"batch_classes matches by match_classes, which {own.__name__} does not override as it does match; "
                "override both, or leave batch_classes off."
            )
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.network_spec, self.seed, self.ipc, self.init = network, seed, ipc, init
        self.distance_spec, self.distance = distance, find_distance(distance)
        default_steps, default_epochs = default_loops(ipc)
        self.outer_steps = default_steps if outer_steps is None else outer_steps
        self.inner_epochs = default_epochs if inner_epochs is None else inner_epochs
        self.lr_images, self.momentum_images, self.lr_network = lr_images, momentum_images, lr_network
        self.lr_images_cooldown = lr_images_cooldown
        self.batch_synthetic, self.batch_norm_images = batch_synthetic, batch_norm_images
        self.real_chunk_size, self.batch_classes = real_chunk_size, batch_classes
        # A registered network would be a part of the state, the optimizers and of DDP: only the images are.
        self._unregistered: dict[str, nn.Module] = {}
        self._forward: Forward | None = None
        self._resumed_network: dict[str, Tensor] | None = None
        self._losses = torch.zeros(())  # sum over classes and the steps of this outer iteration
        self._steps = 0
        self._curve = (0, 0.0)  # the last outer iteration that ended, and its matching loss
        self.resumed_at: int | None = None

    @property
    def data(self) -> CondensationDataModule:
        """The datamodule of the run."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, CondensationDataModule):
            raise InputError(f"The data must be a CondensationDataModule, got {type(data).__name__}.")
        return data

    def setup(self, stage: str) -> None:
        """Makes the synthetic images, once the data are known."""
        data = self.data
        check_network(self.network_spec, data.channels, data.num_classes, data.image_size)
        if self.batch_classes:
            self._check_batch_classes()
        if self.trainer.precision == "16-mixed":
            raise InputError(
                "precision 16-mixed scales losses, and gradients that are matched are not of a loss to be scaled; take "
                "bf16-mixed or 32-true."
            )
        if getattr(self, "images", None) is None:
            self.images = nn.Parameter(initial_images(self.init, self.ipc, data, self.seed))
            labels = torch.arange(data.num_classes).repeat_interleave(self.ipc)
            self.register_buffer("labels", labels, persistent=False)

    def _check_batch_classes(self) -> None:
        data = self.data
        network = make_network(self.network_spec, data.channels, data.num_classes, data.image_size, seed=0)
        images, labels = torch.zeros(2, 2, data.channels, *data.image_size), torch.arange(2)
        if has_batch_norm(network):
            freeze_batch_norm(network, images.flatten(0, 1))
        try:
            match_classes(network, images, images, labels, self.distance)
        except Exception as error:
            raise InputError(
                f"{part_name(self.network_spec)} with the distance {part_name(self.distance_spec)} cannot be matched "
                f"in one pass ({first_line(error)}); leave model.batch_classes off."
            ) from error

    def on_train_start(self) -> None:
        """Refuses a Trainer that would leave out matching steps.

        Raises:
            InputError: if so.
        """
        self._losses = self._losses.to(self.device)
        steps = self.trainer.num_training_batches
        if steps != self.outer_steps and not getattr(self.trainer, "fast_dev_run", False):
            raise InputError(
                f"An outer iteration has {self.outer_steps} matching steps, but the Trainer would run {steps}: leave "
                "out trainer.limit_train_batches and trainer.overfit_batches; model.outer_steps sets their number."
            )
        if self.lr_images_cooldown and not (self.trainer.max_epochs or 0) > 0:
            raise InputError(
                "model.lr_images_cooldown needs to know when the run ends; give trainer.max_epochs, the number of "
                "outer iterations."
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD of the images."""
        return torch.optim.SGD([self.images], lr=self.lr_images, momentum=self.momentum_images)

    def training_step(self, batch: RealImages, batch_idx: int) -> None:
        """One matching step: gradients class by class, one update of the images, then the inner loop."""
        network = self._network(batch_idx)
        if has_batch_norm(network):
            with self._seeded("statistics", batch_idx):
                freeze_batch_norm(
                    network,
                    self._batch_norm_images(batch, batch_idx),
                    self.chunk_size and 4 * self.chunk_size,  # without derivatives: about the same memory
                )

        loss, derivative = self._match(network, batch, batch_idx)
        self.images.grad = self.trainer.strategy.reduce(derivative, reduce_op="sum")
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        if self.lr_images_cooldown:
            for group in optimizer.param_groups:
                group["lr"] = self._cooled_lr(batch_idx)
        optimizer.step()
        self._losses += self.trainer.strategy.reduce(loss, reduce_op="sum")
        self._steps = batch_idx + 1

        if batch_idx < self.outer_steps - 1:
            with self._seeded("train", batch_idx):
                self.train_network(network, batch_idx)

    def _cooled_lr(self, batch_idx: int) -> float:
        """Learning rate of the images; a function of the step and the run's end, so that a resume finds it again."""
        epochs = self.trainer.max_epochs
        assert epochs is not None
        left = 1 - (self.current_epoch + batch_idx / self.outer_steps) / epochs  # of the run, above 0
        return self.lr_images * min(left / self.lr_images_cooldown, 1)

    def _match(self, network: nn.Module, batch: RealImages, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Sum of the distances of this process' classes, and its derivative with respect to all images."""
        loss, derivative = torch.zeros_like(self._losses), torch.zeros_like(self.images)
        by_class = derivative.view(self.data.num_classes, self.ipc, *derivative.shape[1:])  # the same memory
        synthetic = self.images.detach().view_as(by_class)
        by_size: dict[int, list[tuple[int, Tensor]]] = {}  # classes that can go together
        for label in range(self.global_rank, self.data.num_classes, self.trainer.world_size):
            real = batch.draw(label, self._generator("real", batch_idx, label)).to(self.images.dtype)
            if self.batch_classes:
                by_size.setdefault(len(real), []).append((label, real))
                continue
            with self._seeded("match", batch_idx, label):
                distance, by_class[label] = self.match(network, real, synthetic[label], label)
            loss += distance.detach()
        for group in by_size.values():
            numbers, reals = zip(*group, strict=True)
            labels = torch.tensor(numbers).to(self.device, non_blocking=True)
            with self._seeded("match", batch_idx, *numbers):
                distances, derivatives = self.match_classes(network, torch.stack(reals), synthetic[labels], labels)
            by_class.index_copy_(0, labels, derivatives.to(by_class.dtype))
            loss += distances.detach().sum()
        return loss, derivative

    @property
    def matching_loss(self) -> Tensor:
        """Mean over classes and the steps so far of this outer iteration, a scalar on the device."""
        return self._losses / (self.data.num_classes * max(self._steps, 1))

    def on_train_epoch_end(self) -> None:
        """Logs the matching loss of the outer iteration, and stops where it, or an image, is no number.

        Raises:
            InputError: if so; the checkpoints are from before.
        """
        self.require_finite()
        self.trainer.callback_metrics["matching_loss"] = self.matching_loss  # self.log takes a millisecond
        self._curve = self.current_epoch + 1, float(self.matching_loss)
        self._log_loss()
        self._losses = torch.zeros_like(self._losses)

    def require_finite(self) -> None:
        """Makes sure that what is about to be logged or saved is worth it.

        Raises:
            InputError: if the matching loss or an image is no finite number; names the outer iteration.
        """
        loss = self.matching_loss
        if not (bool(loss.isfinite()) and bool(self.images.isfinite().all())):
            raise InputError(
                f"The matching loss or the images became NaN or infinite in outer iteration {self.current_epoch + 1} "
                f"(loss {float(loss)}); the last good checkpoint is kept. Go on from it with a smaller model.lr_images "
                f"than {self.lr_images}."
            )

    def _log_loss(self) -> None:
        iteration, loss = self._curve
        if self.logger is not None and iteration:
            self.logger.log_metrics({"matching_loss": loss}, step=iteration)

    def on_fit_start(self) -> None:
        """Logs the iteration that a resume goes on from again: the older curve is cut before it."""
        if self.resumed_at is not None:
            self._log_loss()

    def match(self, network: nn.Module, real: Tensor, synthetic: Tensor, label: int) -> tuple[Tensor, Tensor]:
        """Loss of one class and its derivative; the place where another method differs.

        Args:
            network: of this outer iteration.
            real: float, ``(batch, C, H, W)``, normalised.
            synthetic: float, ``(ipc, C, H, W)``, normalised.
            label: the class.

        Returns:
            Detached scalar, and the derivative with respect to ``synthetic``.
        """
        forward = self._compiled(network)
        chunk_size = self.chunk_size
        return match_class(network, real, synthetic, label, self.distance, real_chunk_size=chunk_size, forward=forward)

    def match_classes(
        self, network: nn.Module, real: Tensor, synthetic: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`match` of several classes at once, for ``batch_classes``; see `dc_lightning.matching.match_classes`."""
        return match_classes(network, real, synthetic, labels, self.distance, real_chunk_size=self.chunk_size)

    def _compiled(self, network: nn.Module) -> Forward:
        """The network of this outer iteration, compiled if that is switched on."""
        if network is not self._unregistered.get("network"):
            return compiled(network)
        if self._forward is None:
            self._forward = compiled(network)
        return self._forward

    @property
    def chunk_size(self) -> int | None:
        """Real images a pass."""
        return self.real_chunk_size or default_chunk_size(self.device)

    def train_network(self, network: nn.Module, batch_idx: int) -> None:
        """The inner loop: plain SGD epochs on the detached synthetic set (paper, algorithm 1, line 11)."""
        network.train()
        forward = self._compiled(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=self.lr_network)
        images, generator = self.images.detach(), self._generator("inner", batch_idx)
        for _ in range(self.inner_epochs):
            order = torch.randperm(len(images), generator=generator).to(images.device, non_blocking=True)
            for rows in order.split(self.batch_synthetic):
                optimizer.zero_grad()
                cross_entropy(forward(images[rows]), self.labels[rows]).backward()
                optimizer.step()

    def _generator(self, purpose: str, batch_idx: int, *label: int) -> torch.Generator:
        return derive_generator(self.seed, purpose, self.current_epoch, batch_idx, *label)

    def _seeded(self, purpose: str, batch_idx: int, *label: int) -> AbstractContextManager[None]:
        """For what a network itself draws, such as dropout: the same on every process, and after a resume."""
        return seeded(derive_seed(self.seed, purpose, self.current_epoch, batch_idx, *label), self.device)

    def _batch_norm_images(self, batch: RealImages, batch_idx: int) -> Tensor:
        return torch.cat(
            [
                batch.draw(label, self._generator("batch_norm", batch_idx, label), self.batch_norm_images)
                for label in range(self.data.num_classes)
            ]
        ).to(self.images.dtype)

    def _network(self, batch_idx: int) -> nn.Module:
        """The network of this outer iteration: fresh at its first step, from the checkpoint after a resume."""
        if batch_idx == 0 or "network" not in self._unregistered:
            data = self.data
            seed = derive_seed(self.seed, "network", self.current_epoch)
            network = make_network(self.network_spec, data.channels, data.num_classes, data.image_size, seed)
            if self._resumed_network is not None and batch_idx > 0:
                network.load_state_dict(self._resumed_network)
            self._resumed_network = None
            self._unregistered["network"] = network.to(self.device, self.images.dtype, non_blocking=True)
            self._forward = None
        return self._unregistered["network"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resume compares, and what the steps that are left of this outer iteration go on with."""
        checkpoint["data"] = self._data_identity()
        checkpoint["curve"] = self._curve
        if "network" in self._unregistered and self.outer_steps > 1:
            checkpoint["network"] = self._unregistered["network"].state_dict()
            checkpoint["losses"] = self._losses

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the network of an outer iteration that was interrupted.

        Raises:
            InputError: if the checkpoint was made with other settings, which are named.
        """
        made_with = {**checkpoint.get("hyper_parameters", {}), **checkpoint.get("data", {})}
        now = {**self.hparams, **self._data_identity()}
        differing = [
            f"{key} was {made_with[key]} and is {now[key]}"
            for key in now
            if key in made_with and key not in _MAY_CHANGE and made_with[key] != now[key]
        ]
        if differing:
            raise InputError(
                f"The checkpoint was made with other settings: {'; '.join(differing)}. Go on with the configuration it "
                "was made with (config.yaml in its run's folder), or start anew without a checkpoint."
            )
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                group["lr"] = self.lr_images  # the optimizer's state would bring back the old one
        self._resumed_network = checkpoint.get("network")
        self._losses = checkpoint.get("losses", self._losses)
        self._curve = checkpoint["curve"]
        self.resumed_at = self._curve[0]

    def _data_identity(self) -> dict[str, Any]:
        data = self.data
        return {
            "dataset": data.dataset_name,
            "batch_real": data.batch_real,
            "mean": list(data.mean),
            "std": list(data.std),
            "classes": data.num_classes,
            "image_shape": [data.channels, *data.image_size],
            "images": sum(data.real.counts()) if data.real is not None else 0,
        }

    def synthetic_set(self, iteration: int) -> SyntheticSet:
        """A copy of the images as they are now, with all that is needed to use them.

        Args:
            iteration: outer iterations done, to be noted in the set.
        """
        data = self.data
        return SyntheticSet(
            images=self.images.detach().float().cpu().clone(),
            labels=self.labels.cpu().clone(),
            mean=data.mean,
            std=data.std,
            class_names=data.class_names,
            source={
                "method": "gradient matching",
                "dataset": data.dataset_name,
                "network": self.network_spec,
                "distance": self.distance_spec,
                "ipc": self.ipc,
                "init": self.init,
                "seed": self.seed,
                "iteration": iteration,
                "batch_real": data.batch_real,
                "outer_steps": self.outer_steps,
                "inner_epochs": self.inner_epochs,
                "lr_images": self.lr_images,
                "lr_images_cooldown": self.lr_images_cooldown,
                "max_epochs": self.trainer.max_epochs,  # the end that the cooldown was planned for
                "momentum_images": self.momentum_images,
                "lr_network": self.lr_network,
                "batch_synthetic": self.batch_synthetic,
                "batch_norm_images": self.batch_norm_images,
                "class": type(self).__name__,
                "precision": str(self.trainer.precision),
            },
        )
