"""Training of one network by a recipe, and its test (``evaluate_synset`` and ``epoch`` of the authors' code)."""

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from dc_lightning.augmentation import Augment, OperationPerImage
from dc_lightning.augmentation.cutmix import CutMix
from dc_lightning.compilation import compiled
from dc_lightning.data.datamodule import CondensationDataModule
from dc_lightning.evaluation.recipe import Recipe
from dc_lightning.networks import make_network
from dc_lightning.parts import Spec
from dc_lightning.seeds import derive_generator, derive_seed, seeded
from dc_lightning.synthetic import SyntheticSet

Observe = Callable[[Tensor, Tensor], None]
"""Called at every training step with row numbers and logits of the batch."""

Report = Callable[[float], None]
"""Called now and then with the share of a training that is done, in [0, 1]."""

# Numbers in the images that are augmented at once: 2,675 of MNIST's. It decides what is drawn for which image, and so
# changes every accuracy with augmentation.
_TOGETHER = 2**21


class Batches:
    """The shuffled batches of all epochs in a row: one loop over many batches is faster than many short ones.

    Args:
        images: float, ``(n, C, H, W)``, normalised.
        labels: int64, ``(n,)``, or float, ``(n, classes)``.
        batch_size: images a batch; the last one of an epoch may have fewer.
        epochs: how often every image is seen.
        seed: of the order, and of the augmentation.
        augmentation: None for none. That of one operation an image goes over several batches at once: many batches of
            ten images take hardly longer than one.
        mix: CutMix, after that; None for none.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        epochs: int,
        seed: int,
        augmentation: Augment | None = None,
        mix: CutMix | None = None,
    ) -> None:
        self.images, self.labels = images, labels
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.augmentation, self.mix = augmentation, mix
        self.steps_per_epoch = -(-len(labels) // batch_size)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch

    def release(self) -> None:
        """Lets go of the images: a Trainer holds its batches until Python's collector of cycles comes by."""
        self.images, self.labels = self.images[:0].clone(), self.labels[:0].clone()

    def rows(self) -> Iterator[Tensor]:
        """Row numbers of the images of each batch, on the CPU."""
        generator = derive_generator(self.seed, "order")
        for _ in range(self.epochs):
            yield from torch.randperm(len(self.labels), generator=generator).split(self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, labels and row numbers of each batch."""
        batches, generator = self.rows(), derive_generator(self.seed, "augmentation")
        count = max(1, _TOGETHER // self.images[: self.batch_size].numel())
        while block := list(islice(batches, count)):
            sizes = [len(rows) for rows in block]
            rows = torch.cat(block).to(self.images.device, non_blocking=True)
            images, labels = self.images.index_select(0, rows), self.labels.index_select(0, rows)
            augmentation = self.augmentation
            if isinstance(augmentation, OperationPerImage):
                images, augmentation = augmentation.of_batches(images, generator, sizes), None
            for batch, its_labels, its_rows in zip(
                images.split(sizes), labels.split(sizes), rows.split(sizes), strict=True
            ):
                for augment in (augmentation, self.mix):
                    if augment is None:
                        continue
                    made = augment(batch, its_labels, generator)
                    batch, its_labels = (made, its_labels) if isinstance(made, Tensor) else made
                yield batch, its_labels, its_rows


class Distillation:
    """Keeps a network's outputs for old classes near those of the network before (Castro et al. 2018, equation 3).

    Args:
        before: the network before; it is not trained.
        labels: of the old classes.
        weight: of this loss beside that of the labels.
        temperature: that both logits are divided by, 2 in the paper.
    """

    def __init__(self, before: nn.Module, labels: Sequence[int], weight: float = 1.0, temperature: float = 2.0) -> None:
        self.before, self.labels = before.eval().requires_grad_(False), list(labels)
        self.weight, self.temperature = weight, temperature

    def __call__(self, images: Tensor, logits: Tensor) -> Tensor:
        """Cross-entropy with the old network's softened probabilities: images ``(n, C, H, W)``, logits of them."""
        wanted = (self.before(images)[:, self.labels] / self.temperature).softmax(dim=1)
        return self.weight * cross_entropy(logits[:, self.labels] / self.temperature, wanted)


class ClassifierModule(LightningModule):
    """One network in training by a recipe, whose learning rate drops before ``drop_steps``, and in testing."""

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        recipe: Recipe,
        drop_steps: list[int],
        distillation: Distillation | None = None,
        observe: Observe | None = None,
        report: Report | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe, self.loss, self.distillation = recipe, recipe.make_loss(), distillation
        self.drop_steps = drop_steps
        self.observe, self.report, self._reported_at = observe, report, time.monotonic()
        # Processes evaluate networks of their own: a metric that synchronised over them would mix or hang.
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", sync_on_compute=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum and weight decay."""
        recipe = self.recipe
        return torch.optim.SGD(
            self.network.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def setup(self, stage: str) -> None:
        """Compiles or records the network if that is switched on."""
        self._forward = compiled(self.network)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Drops the learning rate, and momentum buffers, where the recipe says."""
        if batch_idx in self.drop_steps:
            optimizer = self.trainer.optimizers[0]
            if self.recipe.fresh_momentum:
                optimizer.state.clear()
            for group in optimizer.param_groups:
                group["lr"] *= self.recipe.lr_factor

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch of images, labels and row numbers."""
        images, labels, rows = batch
        logits = self._forward(images)
        if self.observe:
            self.observe(rows, logits)
        if self.report and time.monotonic() - self._reported_at > 1:
            self._reported_at = time.monotonic()
            self.report(batch_idx / self.trainer.num_training_batches)
        loss = self.loss(logits, labels)
        return loss if self.distillation is None else loss + self.distillation(images, logits)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Counts what is classified right."""
        images, labels = batch
        self.accuracy.update(self._forward(images), labels)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what Lightning says at every start of a Trainer from being said for each of many networks."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class Job:
    """One network to train and test.

    Args:
        network: see `dc_lightning.networks.make_network`.
        recipe: how to train.
        seed: of the weights, the order of the batches and the augmentation.
    """

    network: Spec
    recipe: Recipe
    seed: int


@dataclass(frozen=True)
class ContinuedJob(Job):
    """One network to train further: a copy of ``before``, with ``distillation`` added to the loss."""

    before: nn.Module
    distillation: Distillation | None = None


def train(
    synthetic: SyntheticSet,
    job: Job,
    data: CondensationDataModule,
    device: torch.device,
    observe: Observe | None = None,
    report: Report | None = None,
) -> ClassifierModule:
    """Trains one network on a set; see `train_and_test`."""
    if isinstance(job, ContinuedJob):
        network, distillation = copy.deepcopy(job.before), job.distillation
    else:
        network, distillation = make_network(job.network, data, job.seed), None
    recipe, epochs = job.recipe, job.recipe.epochs_for(job.network, data)
    images, labels = (tensor.to(device) for tensor in synthetic.decoded())
    augmentation = recipe.make_augmentation(job.network, data)
    mix = CutMix(recipe.cutmix, data.num_classes) if recipe.cutmix else None
    batches = Batches(images, labels, recipe.batch_size, recipe.epochs_run(epochs), job.seed, augmentation, mix)
    drop_steps = [epoch * batches.steps_per_epoch for epoch in recipe.drops(epochs)]
    module = ClassifierModule(network, data.num_classes, recipe, drop_steps, distillation, observe, report)
    with _quiet(), seeded(derive_seed(job.seed, "training"), device):  # dropout draws
        _trainer(device).fit(module, train_dataloaders=batches)
    batches.release()
    return module


def test(module: ClassifierModule, batches: Any, device: torch.device) -> float:
    """Accuracy in [0, 1] on batches of images and labels."""
    module.accuracy.reset()
    with _quiet():
        _trainer(device).test(module, dataloaders=batches, verbose=False)
    right, wrong = (int(torch.as_tensor(counted).sum()) for counted in (module.accuracy.tp, module.accuracy.fn))
    return right / (right + wrong)  # the metric's own quotient has seven digits


def _trainer(device: torch.device) -> Trainer:
    return Trainer(
        max_epochs=1,
        strategy=SingleDeviceStrategy(device=device),
        accelerator=device.type if device.type in ("cpu", "cuda", "mps") else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def train_and_test(
    synthetic: SyntheticSet,
    job: Job,
    data: CondensationDataModule,
    device: torch.device,
    observe: Observe | None = None,
    report: Report | None = None,
) -> tuple[float, nn.Module]:
    """Trains one network on a set: its accuracy on the test set of the data, in [0, 1], and the network."""
    module = train(synthetic, job, data, device, observe, report)
    return test(module, data.test_dataloader(), device), module.network
