"""Continual learning: classes, or datasets, come one after the other, and a small memory of each is kept.

The first is class-incremental learning by a memory alone (GDumb, Prabhu et al. 2020, as DM's paper and its code have
it); the second is DC's experiment (section 4.3) on E2E (Castro et al. 2018), whose code was never published.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean, pstdev
from textwrap import fill
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Timer
from torch import Tensor

from dc_lightning.data import Stream
from dc_lightning.data.datamodule import CondensationDataModule
from dc_lightning.errors import InputError, require_at_least
from dc_lightning.evaluation import Score
from dc_lightning.evaluation.baselines import WholeSet, random_set, whole_set
from dc_lightning.evaluation.pools import pool
from dc_lightning.evaluation.selection import Selection
from dc_lightning.evaluation.training import ContinuedJob, Distillation, Job, test, train
from dc_lightning.experiments.tables import Matrix, as_png
from dc_lightning.files import read_tensors, save_whole
from dc_lightning.methods import Condenser
from dc_lightning.networks import make_network
from dc_lightning.parts import part_name
from dc_lightning.run.evaluation_callback import EvaluationCallback
from dc_lightning.run.nested import agreed, fit_within
from dc_lightning.run.progress import say
from dc_lightning.run.results import images_in_words
from dc_lightning.seeds import derive_seed
from dc_lightning.synthetic import SyntheticSet, load_synthetic

Memory = Literal["condensed", "random", Selection]


@dataclass(frozen=True)
class Protocol:
    """What comes when, and what networks are trained on.

    Args:
        steps: stages into which the classes are divided; a `Stream` has its datasets as stages instead.
        orders: of the classes, by NumPy's permutation under the seeds 0, 1, ...; runs with other seeds of a stream.
        memories: how the images of a stage that are kept are made: ``condensed`` by the model, or selected.
        training: ``memory`` trains a fresh network after each stage on the memory alone; ``rehearsal`` trains that of
            the stage before further, on the new data and the memory of former stages.
        distillation: weight of `Distillation` in a rehearsal, from 0 for none; 1 in E2E.
        temperature: of the distillation, 2 in E2E.

    Raises:
        InputError: if a number is out of its range.
    """

    steps: int = 5
    orders: int = 5
    memories: Sequence[Memory] = ("condensed", "random")
    training: Literal["memory", "rehearsal"] = "memory"
    distillation: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        numbers = {"steps": (self.steps, 2), "orders": (self.orders, 1), "distillation": (self.distillation, 0)}
        require_at_least("protocol.", **numbers)
        if not self.temperature > 0:
            raise InputError(f"protocol.temperature must be above 0, got {self.temperature}.")
        if not self.memories:
            raise InputError("protocol.memories is empty: name at least one, such as condensed or random.")
        if len({*self.memories}) < len(self.memories):
            raise InputError(f"protocol.memories names one twice: {', '.join(self.memories)}.")
        if self.distillation and self.training == "memory":
            raise InputError(
                "protocol.distillation needs protocol.training rehearsal: what is trained on the memory alone "
                "is a fresh network."
            )


@dataclass(frozen=True)
class Stage:
    """What comes at once."""

    data: CondensationDataModule  # its images
    labels: tuple[int, ...]  # number of each of its classes among all

    def tests(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of its test images, labelled among all classes."""
        for images, labels in self.data.test_dataloader():
            yield images, torch.tensor(self.labels, device=labels.device)[labels]

    def labelled(self, synthetic: SyntheticSet) -> tuple[Tensor, Tensor]:
        """Decoded images of a set of its classes, and labels among all."""
        images, labels = synthetic.decoded()
        return images.cpu(), torch.tensor(self.labels)[labels.cpu()]


def stages_of(data: CondensationDataModule, steps: int, order: int) -> list[Stage]:
    """The stages of a stream, or those of the classes in the order that a seed gives.

    Raises:
        InputError: if the classes cannot be divided so.
    """
    count = data.num_classes
    if isinstance(data, Stream):
        return [Stage(each, tuple(range(count))) for each in data.stages]
    if count % steps or count // steps < 2:
        raise InputError(
            f"protocol.steps must divide the {count} classes of {data.title} into stages of two or more, got {steps}."
        )
    shuffled = np.random.RandomState(order).permutation(count).reshape(steps, -1).tolist()
    return [Stage(data.of_classes(classes), tuple(classes)) for classes in shuffled]


@dataclass(frozen=True)
class Learnt:
    """Accuracies of one kind of memory."""

    name: str  # of the memory
    accuracies: list[list[list[list[float]]]]  # [order][network][stage][task], in [0, 1], on each task so far
    sizes: list[list[int]] | None  # [order][task], test images; None weighs all tasks alike
    images: int  # in the memory after the last stage, as networks see them
    stored: int  # likewise, as they are kept

    def to_dict(self) -> dict[str, Any]:
        """For results.json."""
        return {**asdict(self), "by_stage": self.by_stage(), "forgetting": self.forgetting()}

    def by_stage(self) -> list[list[float]]:
        """Accuracy on all that was seen, ``[stage][order and network]``."""
        found: list[list[float]] = [[] for _ in self.accuracies[0][0]]
        for order, networks in enumerate(self.accuracies):
            for network in networks:
                for stage, tasks in enumerate(network):
                    weights = self.sizes[order][: len(tasks)] if self.sizes else None
                    found[stage].append(float(np.average(tasks, weights=weights)))
        return found

    def forgetting(self) -> list[float]:
        """How far tasks fell in the end from the best before (Chaudhry et al. 2018), one an order and network."""
        found = []
        for *before, last in (network for networks in self.accuracies for network in networks):
            best = [max(after[task] for after in before[task:]) for task in range(len(before))]
            found.append(fmean(most - end for most, end in zip(best, last, strict=False)))
        return found


class Continual:
    """Continual learning in the processes of a Trainer.

    Args:
        trainer: whose settings and processes are used.
        callback: its evaluation: recipe, networks, seed.
        model: condenses; never trained itself.
        data: after its setup.
        protocol: see `Protocol`.
        output: folder of the memories and networks, by what they were made from: a run that is stopped continues.
    """

    def __init__(
        self,
        trainer: Trainer,
        callback: EvaluationCallback,
        model: Condenser,
        data: CondensationDataModule,
        protocol: Protocol,
        output: Path,
    ) -> None:
        self.trainer, self.callback, self.model, self.data = trainer, callback, model, data
        self.protocol, self.output = protocol, output
        networks = pool(callback.networks, model.network_spec)
        if len(networks) > 1 or len(callback.recipes) > 1:
            raise InputError(
                f"Continual learning takes one test network and one recipe, got {len(networks)} and "
                f"{len(callback.recipes)}; see evaluation.networks and evaluation.other_recipes."
            )
        if callback.choose_iteration:
            raise InputError(
                "Condensations of a continual run end with their last iteration; leave out evaluation.choose_iteration."
            )
        timed = any(isinstance(each, Timer) for each in trainer.callbacks)  # type: ignore[attr-defined]
        if timed or not (trainer.max_epochs or 0) > 0:
            raise InputError(
                "Every condensation of a continual run ends after trainer.max_epochs outer iterations: give that, and "
                "no trainer.max_time."
            )
        self.recipe, self.network = callback.recipes[0], networks[0]
        self.evaluator = callback.evaluator(trainer, data)
        self.rehearses = protocol.training == "rehearsal"

    def run(self) -> list[Learnt]:
        """All orders of every kind of memory."""
        return [self._learn(memory) for memory in self.protocol.memories]

    def stage_names(self) -> list[str]:
        """Of the stages, for tables: the datasets, or how many classes have come."""
        if not isinstance(self.data, Stream):
            each, steps = self.data.num_classes // self.protocol.steps, self.protocol.steps
            return [f"{number * each} classes" for number in range(1, steps + 1)]
        titles = [stage.title for stage in self.data.stages]
        repeated = len(set(titles)) < len(titles)
        return [f"{title} ({number})" if repeated else title for number, title in enumerate(titles, 1)]

    def score(self, learnt: Learnt) -> Score:
        """After the last stage, on all that was seen; each network by its seed."""
        networks = range(self.callback.num_networks)
        return Score(
            network=part_name(self.network),
            accuracies=learnt.by_stage()[-1],
            seeds=[self._seed(order, number) for order in range(self.protocol.orders) for number in networks],
            epochs=self.recipe.epochs_for(self.network, self.data),
            augmentation=self.recipe.augmentation_names(self.network, self.data),
            recipe=self.recipe.name,
            loss=part_name(self.recipe.loss),
        )

    def _seed(self, order: int, number: int) -> int:
        return derive_seed(self.callback.seed, "continual", order, number)

    def name(self, memory: Memory) -> str:
        """Of a kind of memory in tables."""
        return self.model.name if memory == "condensed" else memory

    def _learn(self, memory: Memory) -> Learnt:
        found: list[list[list[list[float]]]] = []
        sizes: list[list[int]] = []
        images, stored, orders = 0, 0, self.protocol.orders
        for order in range(orders):
            stages = stages_of(self.data, self.protocol.steps, order)
            kept: list[SyntheticSet] = []
            by_stage: list[list[list[float]]] = []
            for number, stage in enumerate(stages, 1):
                title = f"{self.name(memory)}, order {order + 1}/{orders}, stage {number}/{len(stages)}"
                if not self.rehearses:
                    kept.append(self._remember(memory, stage, order, title))
                by_stage.append(self._train(stages[:number], kept, order, title))
                if self.rehearses and number < len(stages):
                    kept.append(self._remember(memory, stage, order, title))
            found.append([list(network) for network in zip(*by_stage, strict=True)])
            sizes.append([len(stage.data.test_labels) for stage in stages])
            images, stored = sum(len(each) for each in kept), sum(len(each.images) for each in kept)
        return Learnt(self.name(memory), found, None if isinstance(self.data, Stream) else sizes, images, stored)

    # Memories

    def _remember(self, memory: Memory, stage: Stage, order: int, title: str) -> SyntheticSet:
        """The images of a stage that are kept: those that were made before, or new ones."""
        model, data, callback = self.model, stage.data, self.callback
        made: list[Any] = [data.fingerprint, order, callback.seed, model.ipc]
        if memory == "condensed":
            settings = {key: value for key, value in model.hparams.items() if key != "seed"}
            made += [type(model).__name__, settings, data.batch_real, self.trainer.max_epochs, self.trainer.precision]
        elif memory != "random":
            made += [callback.features_network, callback.whole_set_epochs, asdict(self.recipe)]
        digest = _digest([memory, *made])
        folder = self.output / "memories" / f"{data.title}_{self.name(memory)}_{digest}"
        path = folder / "synthetic.pt"
        if not agreed(self.trainer, path.is_file()):
            seed = callback.seed + order
            if memory == "condensed":
                found = self._condense(data, seed, folder, title)
            elif memory == "random":
                found = random_set(data, model.ipc, derive_seed(seed, "memory"))
            else:
                evaluator = replace(self.evaluator, data=data, seed=seed)
                whole = WholeSet(evaluator, self.recipe, callback.whole_set_epochs, callback.cache)
                found = whole.select(memory, model.ipc, callback.features_network)
            if self.trainer.is_global_zero:
                found.save_grid(path.with_suffix(".png"))
                found.save(path)
            self.trainer.strategy.barrier("memory")
        return load_synthetic(path)[0]

    def _condense(self, data: CondensationDataModule, seed: int, folder: Path, title: str) -> SyntheticSet:
        """An ordinary fit of a copy of the model, in a folder of its own."""
        if self.trainer.is_global_zero:
            say(f"{title}: condensing {', '.join(data.class_names)}")
        model = copy.deepcopy(self.model)
        model.seed = model.hparams["seed"] = seed
        fit_within(self.trainer, model, data, folder)
        return model.synthetic_set(model.trainer.current_epoch)

    # Networks

    def _train(
        self, stages: Sequence[Stage], kept: Sequence[SyntheticSet], order: int, title: str
    ) -> list[list[float]]:
        """Accuracies of each network on each task so far, after the last of these stages."""
        count, group = self.callback.num_networks, self.evaluator.group
        accuracies = torch.zeros(count, len(stages), dtype=torch.float64)
        mine = range(group.rank, count, group.size)
        for done, number in enumerate(mine):
            self.evaluator.report(title, done, len(mine))(0.0)
            seed = self._seed(order, number)
            path = self._path(stages, kept, seed)
            if not path.is_file():
                save_whole(path, self._trained(stages, kept, seed))
            accuracies[number] = torch.tensor(read_tensors(path)["accuracies"], dtype=torch.float64)
        self.evaluator.report(title, len(mine), len(mine))(0.0)
        found: list[list[float]] = group.reduce(accuracies).tolist()
        return found

    def _path(self, stages: Sequence[Stage], kept: Sequence[SyntheticSet], seed: int) -> Path:
        """Of a network and its accuracies; everything that bears on them is in its name."""
        protocol = [self.protocol.training, self.protocol.distillation, self.protocol.temperature]
        seen = [[stage.data.fingerprint, *map(str, stage.labels)] for stage in stages]
        remembered = [synthetic.decoded_checksum for synthetic in kept]
        names = self.recipe.augmentation_names(self.network, self.data)
        made = [self.data.fingerprint, seen, remembered, protocol, self.network, asdict(self.recipe), names, seed]
        return self.output / "networks" / f"{_digest(made)}.pt"

    def _trained(self, stages: Sequence[Stage], kept: Sequence[SyntheticSet], seed: int) -> dict[str, Any]:
        """Accuracies of a network on each task so far, with its state where it is trained further."""
        device, data, job = self.evaluator.device, self.data, Job(self.network, self.recipe, seed)
        for stage in stages:
            stage.data.move(device)
        parts = [stage.labelled(synthetic) for stage, synthetic in zip(stages, kept, strict=False)]
        if self.rehearses:
            parts.append(stages[-1].labelled(whole_set(stages[-1].data)))
            if len(stages) > 1:
                before = read_tensors(self._path(stages[:-1], kept[:-1], seed))
                job = self._continued(job, before["state"], stages[:-1])
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        joined = SyntheticSet(images, labels, data.mean, data.std, tuple(data.class_names))
        trained = train(joined, job, data, device)
        content: dict[str, Any] = {"accuracies": [test(trained, stage.tests(), device) for stage in stages]}
        if self.rehearses:
            content["state"] = {name: tensor.cpu() for name, tensor in trained.network.state_dict().items()}
        return content

    def _continued(self, job: Job, state: Mapping[str, Tensor], stages: Sequence[Stage]) -> ContinuedJob:
        network, protocol, distillation = make_network(job.network, self.data, job.seed), self.protocol, None
        network.load_state_dict(state)
        if protocol.distillation:
            old = sorted({label for stage in stages for label in stage.labels})
            teacher = copy.deepcopy(network).to(self.evaluator.device)
            distillation = Distillation(teacher, old, protocol.distillation, protocol.temperature)
        seed = derive_seed(job.seed, "rehearsal", len(stages))
        return ContinuedJob(job.network, job.recipe, seed, network, distillation)


def _digest(parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=6).hexdigest()


def _percent(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f} ± {100 * pstdev(values):.1f}"


def table(learnt: Sequence[Learnt], title: str, stages: Sequence[str]) -> Matrix:
    """Accuracy by stage in percent, mean and population standard deviation over orders and networks; forgetting."""
    matrix = Matrix(title, "memory")
    for each in learnt:
        row = f"{each.name}, {images_in_words(each.images, each.stored)}"
        for stage, values in zip(stages, each.by_stage(), strict=True):
            matrix.cells[row, stage] = _percent(values)
        matrix.cells[row, "forgetting"] = _percent(each.forgetting())
        matrix.cells[row, "n"] = str(len(each.forgetting()))
    return matrix


def plots(results: Iterable[Mapping[str, Any]]) -> list[bytes]:
    """One `plot` of all kinds of memory in the results of one title."""
    found: dict[str, tuple[list[str], dict[str, Learnt]]] = {}
    for content in results:
        _, learnt = found.setdefault(content["table"]["title"], (content.get("stages", []), {}))
        for each in content.get("learnt", []):
            learnt.setdefault(each["name"], Learnt(**{field.name: each[field.name] for field in fields(Learnt)}))
    return [plot([*learnt.values()], title, stages) for title, (stages, learnt) in found.items() if learnt]


def plot(learnt: Sequence[Learnt], title: str, stages: Sequence[str]) -> bytes:
    """Accuracy by stage, as the content of a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for each in learnt:
        values = each.by_stage()
        means, stds = [100 * fmean(stage) for stage in values], [100 * pstdev(stage) for stage in values]
        axes.errorbar(range(len(stages)), means, yerr=stds, marker="o", ms=4, capsize=3, label=each.name)
    axes.set_xticks(range(len(stages)), stages, fontsize=8)
    axes.set_ylabel("test accuracy in % on all seen so far")
    axes.set_title(fill(title, 80), fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return as_png(figure)
