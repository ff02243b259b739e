"""The one scoring path: fresh networks are trained on a set and tested, for every kind of set (paper, section 4.1)."""

import hashlib
import json
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from statistics import fmean, pstdev
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, distributed

from dc_lightning.data.datamodule import CondensationDataModule
from dc_lightning.errors import InputError
from dc_lightning.evaluation.recipe import Recipe
from dc_lightning.evaluation.training import Job, Report, train_and_test
from dc_lightning.networks import check_network
from dc_lightning.parts import Spec, part_name
from dc_lightning.seeds import derive_seed
from dc_lightning.synthetic import SyntheticSet


@dataclass(frozen=True)
class Score:
    """Accuracies of the networks of one architecture that were trained on one kind of set by one recipe.

    Args:
        network: name of the architecture.
        accuracies: on the test set, in [0, 1], one a network.
        seeds: of each network: its weights, the order of its batches, its augmentation.
        epochs: E of the recipe; see `Recipe.epochs_run`.
        augmentation: names of the operations.
        recipe: its name.
        loss: its loss.
    """

    network: str
    accuracies: list[float]
    seeds: list[int]
    epochs: int
    augmentation: list[str]
    recipe: str = "DC"
    loss: str = "cross_entropy"

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


@dataclass(frozen=True)
class Group:
    """Who shares the work: this process' number, how many there are, and how they sum a tensor."""

    rank: int = 0
    size: int = 1
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @classmethod
    def of(cls, trainer: Trainer) -> "Group":
        """The processes of a Trainer, all of which must call this.

        They sum on the CPU, in a group whose time-out does not end the wait for one that has long networks to train.
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
"""Called with a title, the number of finished networks (a fraction counts the current one), and their total."""

TrainNumber = Callable[[int, Job, Report], float]
"""Trains the network of a number within its architecture, and gives its accuracy in [0, 1]."""


@dataclass
class Evaluator:
    """Scores sets; the networks are spread over the processes, whose number changes neither seeds nor accuracies.

    Args:
        data: gives the test set.
        device: where this process trains.
        seed: every network's own seed is derived from it, from the architecture and from its number.
        group: processes that share the work.
        progress: see `Progress`.
        known: accuracies found before, by `identity`; new ones are added.
    """

    data: CondensationDataModule
    device: torch.device
    seed: int = 0
    group: Group = Group()
    progress: Progress | None = None
    known: MutableMapping[str, float] | None = None

    def score(
        self,
        sets: Sequence[SyntheticSet],
        networks: Sequence[Spec],
        num_networks: int,
        recipe: Recipe,
        title: str = "evaluation",
    ) -> list[Score]:
        """Accuracies of ``num_networks`` fresh networks of each architecture on each set; a set is an experiment.

        Args:
            sets: to train on.
            networks: the architectures.
            num_networks: of each architecture on each set.
            recipe: how to train.
            title: for the progress.

        Returns:
            One `Score` an architecture, with ``len(sets) * num_networks`` accuracies, set by set.

        Raises:
            InputError: if a set does not fit the data.
        """
        for synthetic in sets:
            check_fits(synthetic, self.data)
        fitted = [synthetic.renormalized(self.data.mean, self.data.std) for synthetic in sets]
        known = {} if self.known is None else self.known

        def train(number: int, job: Job, report: Report) -> float:
            chosen = fitted[number // num_networks]
            key = self.identity(chosen, job)
            if key not in known:
                known[key], _ = train_and_test(chosen, job, self.data, self.device, report=report)
            return known[key]

        return self.spread(networks, len(sets) * num_networks, recipe, train, title)

    def spread(
        self, networks: Sequence[Spec], count: int, recipe: Recipe, train: TrainNumber, title: str
    ) -> list[Score]:
        """Runs a `TrainNumber` for ``count`` networks of each architecture, spread over the processes; see `score`."""
        jobs = [Job(network, recipe, self.network_seed(network, n)) for network in networks for n in range(count)]
        accuracies = torch.zeros(len(jobs), dtype=torch.float64)  # on the CPU, where they are added up
        self.data.move(self.device)
        mine = range(self.group.rank, len(jobs), self.group.size)
        for done, index in enumerate(mine):
            report = self.report(f"{title}, {part_name(jobs[index].network)}", done, len(mine))
            report(0.0)
            accuracies[index] = train(index % count, jobs[index], report)
        self.report(title, len(mine), len(mine))(0.0)
        values = self.group.reduce(accuracies).tolist()
        return [
            Score(
                network=part_name(network),
                accuracies=values[first : first + count],
                seeds=[job.seed for job in jobs[first : first + count]],
                epochs=recipe.epochs_for(network, self.data),
                augmentation=recipe.augmentation_names(network, self.data),
                recipe=recipe.name,
                loss=part_name(recipe.loss),
            )
            for first, network in zip(range(0, len(jobs), count), networks, strict=True)
        ]

    def report(self, title: str, done: int, total: int) -> Report:
        """Tells `Progress` the share of the network that is trained after ``done`` others."""

        def report(share: float) -> None:
            if self.progress:
                self.progress(title, done + share, total)

        return report

    def network_seed(self, network: Spec, number: int) -> int:
        """Seed of the ``number``-th network of an architecture."""
        return derive_seed(self.seed, "evaluation", part_name(network), number)

    def identity(self, chosen: SyntheticSet, job: Job) -> str:
        """A digest of everything that affects the accuracy of a network but the machine."""
        data = self.data
        settings = [job.network, job.recipe.augmentation_names(job.network, data), asdict(job.recipe), job.seed]
        text = json.dumps([*settings, data.fingerprint, chosen.decoded_checksum], default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def check_fits(synthetic: SyntheticSet, data: CondensationDataModule) -> None:
    """Makes sure that a set belongs to the data.

    Raises:
        InputError: if classes, channels or image size differ; names what differs.
    """
    channels, *size = synthetic.images.shape[1:]
    compared = {
        "classes": (synthetic.num_classes, data.num_classes),
        "channels": (channels, data.channels),
        "image size": (tuple(size), tuple(data.image_size)),
    }
    differing = [f"{key} {ours} against {theirs}" for key, (ours, theirs) in compared.items() if ours != theirs]
    if not differing and tuple(synthetic.class_names) != tuple(data.class_names):
        foreign = sorted(set(synthetic.class_names) ^ set(data.class_names)) or "their order"
        differing = [f"names of the classes ({foreign})"]
    if differing:
        raise InputError(
            f"The synthetic set does not fit the data {data.title}: {', '.join(differing)}; take the data it "
            "was made for."
        )


def check_networks(networks: Sequence[Spec], data: CondensationDataModule) -> None:
    """Makes sure that every test network exists and takes the images, before anything long starts."""
    for network in networks:
        check_network(network, data)
