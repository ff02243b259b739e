"""Evaluation: train freshly initialised networks on a synthetic set, test them on the real test set.

One code path scores every set: condensed, random, selected, the authors', the whole training set (paper, section 4.1;
``evaluate_synset`` and ``epoch`` in ``utils.py`` of the authors' code).
"""

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import islice
from statistics import fmean, pstdev
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from dc_lightning.augmentation import Augmentation, Operation
from dc_lightning.compilation import compiled
from dc_lightning.data import CondensationDataModule
from dc_lightning.errors import InputError
from dc_lightning.networks import NAMES
from dc_lightning.parts import Spec, check_network, find_operation, make_network, part_name
from dc_lightning.seeds import derive_generator, derive_seed
from dc_lightning.synthetic import SyntheticSet

POOLS: dict[str, list[Spec]] = {
    "M": ["MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"],
    "B": ["ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"],
    "W": ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"],
    "D": ["ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"],
    "A": ["ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"],
    "P": ["ConvNetNP", "ConvNetMP", "ConvNetAP"],
    "N": ["ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"],
}
"""Evaluation pools of the authors' code (``get_eval_pool``), besides ``S`` and ``SS``."""


def pool(networks: str | Sequence[Spec], condensed_with: Spec) -> list[Spec]:
    """The test networks that a pool's name or a list stands for.

    Args:
        networks: ``S``, the condensing network with its name cut at "BN", because a small set has no useful batch
            statistics; ``SS``, the condensing network itself; a key of `POOLS`; one network's name; or a list.
        condensed_with: the condensing network.

    Raises:
        InputError: if the list is empty, or the name unknown.
    """
    if not isinstance(networks, str):
        if not networks:
            raise InputError("evaluation.networks is empty: name at least one test network, or a pool such as S or M.")
        return list(networks)
    if networks == "SS":
        return [condensed_with]
    if networks == "S":
        is_plain = isinstance(condensed_with, str) and "." not in condensed_with
        return [condensed_with.split("BN")[0] if is_plain and isinstance(condensed_with, str) else condensed_with]
    if networks not in POOLS and networks not in NAMES and "." not in networks:
        raise InputError(
            f"Unknown pool or network '{networks}': expected one of the pools S, SS, {', '.join(POOLS)}, one of the "
            f"networks {', '.join(NAMES)}, the import path of your own, or a list of networks."
        )
    return POOLS.get(networks, [networks])


def _default_augmentation_by_network() -> dict[str, list[Spec]]:
    return {"ConvNetBN": ["crop", "noise"]}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on a synthetic set (paper, appendix A).

    Epochs are numbered 0..E as in the authors' code, so that E + 1 are run. After epoch E // 2 + 1 the learning rate
    drops to a tenth, and the momentum starts anew: the authors' code makes a new optimizer there.

    Args:
        epochs: E without augmentation.
        epochs_augmented: E with augmentation.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        batch_size: images a step.
        augmentation: operations of `dc_lightning.augmentation`, or import paths; None takes the dataset's
            (MNIST: crop, scale, rotate; the others none).
        augmentation_by_network: operations for single test networks, before all others (``get_daparam``).
    """

    epochs: int = 300
    epochs_augmented: int = 1000
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    augmentation: list[Spec] | None = None
    augmentation_by_network: dict[str, list[Spec]] = field(default_factory=_default_augmentation_by_network)

    def __post_init__(self) -> None:
        for name, least in (
            *(("epochs", 0), ("epochs_augmented", 0), ("batch_size", 1)),
            *(("lr", 0), ("momentum", 0), ("weight_decay", 0)),
        ):
            if not getattr(self, name) >= least:
                raise InputError(f"evaluation.recipe.{name} must be at least {least}, got {getattr(self, name)}.")
        for operations in (self.augmentation or [], *self.augmentation_by_network.values()):
            for operation in operations:
                find_operation(operation)

    def augmentation_for(self, network: Spec, data: CondensationDataModule) -> list[Spec]:
        """The operations for a test network on a dataset; an empty list is no augmentation."""
        if part_name(network) in self.augmentation_by_network:
            return self.augmentation_by_network[part_name(network)]
        return list(data.augmentation) if self.augmentation is None else self.augmentation


@dataclass(frozen=True)
class Score:
    """Accuracies of the networks of one architecture that were trained on one kind of set.

    Args:
        network: name of the architecture.
        accuracies: on the test set, in [0, 1], one a network.
        seeds: of each network: its weights, the order of its batches, its augmentation.
        epochs: E of the recipe; E + 1 were run.
        augmentation: names of the operations.
    """

    network: str
    accuracies: list[float]
    seeds: list[int]
    epochs: int
    augmentation: list[str]

    @property
    def mean(self) -> float:
        """Mean accuracy, in [0, 1]."""
        return fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Population standard deviation, as in the paper."""
        return pstdev(self.accuracies)

    def to_dict(self) -> dict[str, Any]:
        """All values, for results.json."""
        return {**asdict(self), "mean": self.mean, "std": self.std, "n": len(self.accuracies)}


# Numbers in the images that are augmented at once: 2,675 of MNIST's. It decides what is drawn for which image, and so
# changes every accuracy with augmentation.
_TOGETHER = 2**21


class _Batches:
    """The shuffled batches of all epochs in a row: one loop over many batches is faster than many short ones.

    Several batches are augmented together: many batches of ten images take hardly longer than one.

    Args:
        images: float, ``(n, C, H, W)``, normalised.
        labels: int64, ``(n,)``.
        batch_size: images a batch; the last one of an epoch may have fewer.
        epochs: how often every image is seen.
        seed: of the order, and of the augmentation.
        operations: augmentation, empty for none.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        epochs: int,
        seed: int,
        operations: Sequence[Operation] = (),
    ) -> None:
        self.images, self.labels = images, labels
        self.batch_size, self.epochs, self.seed, self.operations = batch_size, epochs, seed, operations
        self.steps_per_epoch = -(-len(labels) // batch_size)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch

    def rows(self) -> Iterator[Tensor]:
        """Row numbers of the images of each batch, on the CPU."""
        generator = derive_generator(self.seed, "order")
        for _ in range(self.epochs):
            yield from torch.randperm(len(self.labels), generator=generator).split(self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, labels and row numbers of each batch."""
        batches, generator = self.rows(), derive_generator(self.seed, "augmentation")
        augment = Augmentation(self.images, self.operations, uses=self.epochs) if self.operations else None
        count = max(1, _TOGETHER // self.images[: self.batch_size].numel())
        while block := list(islice(batches, count)):
            sizes = [len(rows) for rows in block]
            rows = torch.cat(block).to(self.images.device, non_blocking=True)
            images = augment(rows, generator, sizes) if augment else self.images.index_select(0, rows)
            labels = self.labels.index_select(0, rows)
            yield from zip(*(part.split(sizes) for part in (images, labels, rows)), strict=True)


class ClassifierModule(LightningModule):
    """One network in training by the recipe, and in testing.

    Args:
        network: the network.
        num_classes: number of classes.
        recipe: see `Recipe`.
        lr_drop_step: step before which the learning rate drops and the momentum starts anew.
        observe: called at every training step with row numbers, logits and labels of the batch.
        progress: called now and then with the share of the training that is done, in [0, 1].
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        recipe: Recipe,
        lr_drop_step: int,
        observe: Callable[[Tensor, Tensor, Tensor], None] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.lr_drop_step = lr_drop_step
        self.observe, self.progress, self._said_at = observe, progress, time.monotonic()
        # Ranks evaluate networks of their own: a metric that synchronised over them would mix or hang.
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", sync_on_compute=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum and weight decay."""
        recipe = self.recipe
        return torch.optim.SGD(
            self.network.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def on_train_start(self) -> None:
        """Compiles the network if that is switched on."""
        self._forward = compiled(self.network)

    def on_test_start(self) -> None:
        """Likewise."""
        self._forward = compiled(self.network)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Drops learning rate and momentum buffers where the recipe says."""
        if batch_idx == self.lr_drop_step:
            optimizer = self.trainer.optimizers[0]
            optimizer.state.clear()
            for group in optimizer.param_groups:
                group["lr"] *= 0.1

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch of images, labels and row numbers."""
        images, labels, rows = batch
        logits = self._forward(images)
        if self.observe:
            self.observe(rows, logits, labels)
        if self.progress and time.monotonic() - self._said_at > 1:
            self._said_at = time.monotonic()
            self.progress(batch_idx / self.trainer.num_training_batches)
        return cross_entropy(logits, labels)

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


def train_and_test(
    images: Tensor,
    labels: Tensor,
    network: Spec,
    data: CondensationDataModule,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    epochs: int | None = None,
    observe: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[float, nn.Module]:
    """Trains one fresh network on the images and tests it on the test set.

    Args:
        images: float, ``(n, C, H, W)``, normalised.
        labels: int64, ``(n,)``.
        network: see `dc_lightning.parts`.
        data: gives the test set.
        recipe: how to train.
        seed: of the weights, the order of the batches and the augmentation.
        device: where to train.
        epochs: E in place of the recipe's.
        observe: see `ClassifierModule`.
        progress: see `ClassifierModule`.

    Returns:
        Accuracy on the test set in [0, 1], and the network.
    """
    model = make_network(network, data.channels, data.num_classes, data.image_size, seed)
    augmentation = recipe.augmentation_for(network, data)
    if epochs is None:
        epochs = recipe.epochs_augmented if augmentation else recipe.epochs
    batches = _Batches(
        images.detach().to(device),
        labels.to(device),
        recipe.batch_size,
        epochs + 1,
        seed,
        [find_operation(name) for name in augmentation],
    )
    module = ClassifierModule(
        model,
        data.num_classes,
        recipe,
        lr_drop_step=(epochs // 2 + 2) * batches.steps_per_epoch,
        observe=observe,
        progress=progress,
    )
    # Trainer's own hooks must not run under the inference mode of a surrounding test loop.
    with _quiet(), torch.inference_mode(False), torch.enable_grad():
        trainer = Trainer(
            max_epochs=1,
            strategy=SingleDeviceStrategy(device=device),
            accelerator=device.type if device.type in ("cpu", "cuda", "mps") else "auto",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, train_dataloaders=batches)
        trainer.test(module, dataloaders=data.test_dataloader(), verbose=False)
    return float(module.accuracy.compute()), module.network


@dataclass(frozen=True)
class Group:
    """Who shares the work: this process' number, how many there are, and how they sum a tensor."""

    rank: int = 0
    size: int = 1
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @classmethod
    def of(cls, trainer: Trainer) -> "Group":
        """The processes of a Trainer; every one of them must call this.

        They sum over a group of their own, on the CPU, whose time-out does not end the wait for one that has long
        networks to train.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(trainer.global_rank, trainer.world_size)
        patient: Any = distributed.new_group(timeout=timedelta(days=30), backend="gloo")

        def reduce(tensor: Tensor) -> Tensor:
            total = tensor.cpu()
            distributed.all_reduce(total, group=patient)
            return total

        return cls(trainer.global_rank, trainer.world_size, reduce)


Progress = Callable[[str, float, int], None]
"""Called with what is going on, how many networks are done, with the share of the one at hand, and of how many."""

Train = Callable[[SyntheticSet, Spec, int, Callable[[float], None]], float]
"""Trains a network on a set by a seed, says the share that is done now and then, and gives the accuracy in [0, 1]."""


def evaluate_sets(
    sets: Sequence[SyntheticSet],
    data: CondensationDataModule,
    networks: Sequence[Spec],
    num_networks: int,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    group: Group | None = None,
    progress: Progress | None = None,
    title: str = "evaluation",
    epochs: int | None = None,
    train: Train | None = None,
    known: MutableMapping[str, float] | None = None,
) -> list[Score]:
    """Accuracies of fresh networks of each architecture, each trained on one of the sets.

    The networks are spread over the processes of the group; seeds and accuracies do not depend on their number.

    Args:
        sets: as many as there are experiments.
        data: see `train_and_test`.
        networks: the architectures.
        num_networks: of each architecture on each set.
        recipe: how to train.
        seed: every network's own seed is derived from it, from the architecture and from its number.
        device: where this process trains.
        group: processes that share the work.
        progress: see `Progress`.
        title: what is evaluated, for ``progress``.
        epochs: E in place of the recipe's.
        train: see `Train`; None is `train_and_test`.
        known: accuracies that `train_and_test` found before, by all that bears on them; what it finds is added.

    Returns:
        One `Score` an architecture, with ``len(sets) * num_networks`` accuracies, set by set.
    """
    group = group or Group()
    for synthetic in sets:
        check_fits(synthetic, data)
    sets = [synthetic.renormalized(data.mean, data.std) for synthetic in sets]
    jobs = [(network, number) for network in networks for number in range(len(sets) * num_networks)]
    seeds = [evaluation_seed(seed, network, number) for network, number in jobs]
    accuracies = torch.zeros(len(jobs), dtype=torch.float64, device=device if device.type != "mps" else "cpu")
    data.move(device)
    mine = range(group.rank, len(jobs), group.size)

    def train_by_recipe(chosen: SyntheticSet, network: Spec, seed: int, report: Callable[[float], None]) -> float:
        images, labels = chosen.images, chosen.labels
        job = _identity(chosen, network, data, recipe, seed, epochs) if known is not None else ""
        if known is None or job not in known:
            found, _ = train_and_test(images, labels, network, data, recipe, seed, device, epochs, progress=report)
            if known is None:
                return found
            known[job] = found
        return known[job]

    for done, index in enumerate(mine):
        network, number = jobs[index]

        def report(share: float, done: int = done, network: Spec = network) -> None:
            if progress:
                progress(f"{title}, {part_name(network)}", done + share, len(mine))

        report(0.0)
        accuracies[index] = (train or train_by_recipe)(sets[number // num_networks], network, seeds[index], report)
    if progress:
        progress(title, len(mine), len(mine))
    values = group.reduce(accuracies).tolist()
    scores, each = [], len(sets) * num_networks
    for position, network in enumerate(networks):
        rows = slice(position * each, (position + 1) * each)
        augmentation = recipe.augmentation_for(network, data)
        default = recipe.epochs_augmented if augmentation else recipe.epochs
        scores.append(
            Score(
                part_name(network),
                values[rows],
                seeds[rows],
                default if epochs is None else epochs,
                [part_name(operation) for operation in augmentation],
            )
        )
    return scores


def _identity(
    chosen: SyntheticSet, network: Spec, data: CondensationDataModule, recipe: Recipe, seed: int, epochs: int | None
) -> str:
    """A digest of all that bears on the accuracy of a network but the machine."""
    settings = [network, data.dataset_name, [part_name(name) for name in recipe.augmentation_for(network, data)]]
    text = json.dumps([*settings, asdict(recipe), seed, epochs, *data.mean, *data.std], default=str)
    tensors = b"".join(tensor.cpu().contiguous().numpy().tobytes() for tensor in (chosen.images, chosen.labels))
    return hashlib.blake2b(text.encode() + tensors, digest_size=16).hexdigest()


def evaluation_seed(seed: int, network: Spec, number: int) -> int:
    """Seed of the ``number``-th network of an architecture in an evaluation."""
    return derive_seed(seed, "evaluation", part_name(network), number)


def check_fits(synthetic: SyntheticSet, data: CondensationDataModule) -> None:
    """Makes sure that a set belongs to the data.

    Raises:
        InputError: if classes, channels or image size differ; names what differs.
    """
    ours = {
        "classes": synthetic.num_classes,
        "channels": synthetic.images.shape[1],
        "image size": tuple(synthetic.images.shape[2:]),
    }
    theirs = {"classes": data.num_classes, "channels": data.channels, "image size": tuple(data.image_size)}
    differing = [f"{key} {ours[key]} against {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    if not differing and tuple(synthetic.class_names) != tuple(data.class_names):
        foreign = sorted(set(synthetic.class_names) ^ set(data.class_names)) or "their order"
        differing = [f"names of the classes ({foreign})"]
    if differing:
        raise InputError(
            f"The synthetic set does not fit the data {data.dataset_name}: {', '.join(differing)}; take the data it "
            "was made for."
        )


def check_networks(networks: Sequence[Spec], data: CondensationDataModule) -> None:
    """Makes sure that every test network exists and takes the images, before anything long starts."""
    for network in networks:
        check_network(network, data.channels, data.num_classes, data.image_size)


def random_set(data: CondensationDataModule, ipc: int, seed: int) -> SyntheticSet:
    """Random real training images, ``ipc`` of each class (fewer where a class has fewer)."""
    assert data.real is not None
    draws = [data.real.draw(label, derive_generator(seed, "random", label), ipc) for label in range(data.num_classes)]
    labels = torch.cat([torch.full((len(draw),), label) for label, draw in enumerate(draws)])
    source: Mapping[str, Any] = {"method": "random", "dataset": data.dataset_name, "ipc": ipc, "seed": seed}
    return SyntheticSet(torch.cat(draws).cpu(), labels, data.mean, data.std, data.class_names, dict(source))


def whole_set(data: CondensationDataModule) -> SyntheticSet:
    """All training images: what a synthetic set is to come close to."""
    assert data.real is not None
    labels, order = data.real.labels.sort(stable=True)
    source = {"method": "whole set", "dataset": data.dataset_name}
    return SyntheticSet(data.real.take(order), labels, data.mean, data.std, data.class_names, source)
