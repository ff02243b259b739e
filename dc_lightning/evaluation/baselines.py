"""What a synthetic set is compared with: random and selected real images, and the whole training set."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dc_lightning.data.datamodule import CondensationDataModule
from dc_lightning.data.real import RealImages
from dc_lightning.errors import InputError
from dc_lightning.evaluation.evaluator import Evaluator, Score
from dc_lightning.evaluation.recipe import Recipe
from dc_lightning.evaluation.selection import Forgetting, Method, herding, k_center, most_forgotten
from dc_lightning.evaluation.training import Job, Report, train_and_test
from dc_lightning.files import read_tensors, save_whole
from dc_lightning.matching.embeddings import embed_chunks
from dc_lightning.networks import make_network
from dc_lightning.parts import Spec, part_name
from dc_lightning.seeds import derive_generator, derive_seed
from dc_lightning.synthetic import SyntheticSet

FORMAT = "dc_lightning whole-set network 1"


def _real(data: CondensationDataModule) -> RealImages:
    assert data.real is not None
    return data.real


def random_set(data: CondensationDataModule, ipc: int | Sequence[int], seed: int) -> SyntheticSet:
    """Random real training images, ``ipc`` of each class, one number for all or one each; all where it has fewer."""
    counts = _counts(data, ipc)
    draws = [
        _real(data).draw(label, derive_generator(seed, "random", label), count) for label, count in enumerate(counts)
    ]
    return _of_classes(data, draws, {"method": "random", "ipc": max(counts), "seed": seed})


def _counts(data: CondensationDataModule, ipc: int | Sequence[int]) -> list[int]:
    """How many images of each class."""
    return [ipc] * data.num_classes if isinstance(ipc, int) else list(ipc)


def _of_classes(data: CondensationDataModule, images: list[Tensor], source: dict[str, Any]) -> SyntheticSet:
    """A set of images of each class, ``(n, C, H, W)`` each."""
    labels = torch.cat([torch.full((len(each),), label) for label, each in enumerate(images)])
    held_out = {"validation": data.validation} if data.validation else {}
    source = {**source, "dataset": data.title, **held_out}
    return SyntheticSet(torch.cat(images).cpu(), labels, data.mean, data.std, data.class_names, source)


def whole_set(data: CondensationDataModule) -> SyntheticSet:
    """All training images in the order of the dataset: what a synthetic set is to come close to."""
    real = _real(data)
    source = {"method": "whole set", "dataset": data.title}
    images = real.take(torch.arange(len(real.labels)))
    return SyntheticSet(images, real.labels, data.mean, data.std, data.class_names, source)


@dataclass(frozen=True)
class WholeSetNetwork:
    """A network that was trained on all training images.

    Args:
        state: of the network.
        accuracy: on the test set, in [0, 1].
        events: int64, ``(n,)``, one a training image, in the order of the training set; see `Forgetting`.
    """

    state: dict[str, Tensor]
    accuracy: float
    events: Tensor


@dataclass(frozen=True)
class WholeSet:
    """Networks that are trained on the whole training set, which takes long, so that it is done once.

    Args:
        evaluator: whose data, device and processes are used.
        recipe: of the evaluation, with its learning rate, its drop after half of the epochs, its augmentation.
        epochs: over the training set.
        folder: where trained networks are kept, one file for everything that bears on them. A training that is stopped
            starts again.
    """

    evaluator: Evaluator
    recipe: Recipe
    epochs: int
    folder: Path

    @property
    def own_recipe(self) -> Recipe:
        """That of the evaluation for so many epochs, without CutMix: what is learnt is counted image by image."""
        return replace(self.recipe, cutmix=0.0).with_epochs(self.epochs - self.recipe.epochs_from_zero)

    def network(self, network: Spec, number: int, report: Report | None = None) -> WholeSetNetwork:
        """Trains a network on the whole training set, or reads the one that was; its number decides its seed.

        Raises:
            InputError: if the file of a network is something else.
        """
        data, real = self.evaluator.data, _real(self.evaluator.data)
        job = Job(network, self.own_recipe, self.evaluator.network_seed(network, number))
        path = self._path(job)
        if path.is_file():
            content = read_tensors(path)
            if isinstance(content, dict) and content.get("format") == FORMAT:
                return WholeSetNetwork(content["state"], content["accuracy"], content["events"])
            raise InputError(f"'{path}' is not a network that was trained on the whole set; remove it to train again.")
        counting = Forgetting(real.labels)
        accuracy, trained = train_and_test(whole_set(data), job, data, self.evaluator.device, counting, report)
        state = {name: tensor.cpu() for name, tensor in trained.state_dict().items()}
        found = WholeSetNetwork(state, accuracy, counting.events())
        save_whole(path, {"format": FORMAT, **vars(found)})
        return found

    def is_trained(self, network: Spec, number: int) -> bool:
        """Whether `network` would read it."""
        return self._path(Job(network, self.own_recipe, self.evaluator.network_seed(network, number))).is_file()

    def _path(self, job: Job) -> Path:
        data = self.evaluator.data
        identity = [asdict(job), job.recipe.augmentation_names(job.network, data), data.fingerprint]
        digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()
        return self.folder / f"{data.title}_{part_name(job.network)}_{self.epochs}_epochs_{digest}.pt"

    def score(self, networks: list[Spec], count: int) -> list[Score]:
        """The upper bound: accuracies of networks of each architecture on the whole set."""

        def train(number: int, job: Job, report: Report) -> float:
            return self.network(job.network, number, report).accuracy

        return self.evaluator.spread(networks, count, self.own_recipe, train, "whole set")

    def select(self, method: Method, ipc: int | Sequence[int], network: Spec) -> SyntheticSet:
        """Real images, ``ipc`` of each class, one number for all or one each; all where it has fewer.

        All but random ones are chosen by features or forgetting events of a network of the whole set.
        """
        evaluator, data = self.evaluator, self.evaluator.data
        if method == "random":
            chosen = random_set(data, ipc, derive_seed(evaluator.seed, "random set", 0))
            chosen.source.update(seed=evaluator.seed)
            return chosen
        data.move(evaluator.device)
        report = evaluator.report(f"{part_name(network)} on the whole set, for {method}", 0, 1)
        if evaluator.group.rank == 0:
            self.network(network, 0, report)
        evaluator.group.reduce(torch.zeros(1))  # the others wait, and read what the first has trained
        trained = self.network(network, 0)
        report(1.0)
        model = make_network(network, data, seed=0)
        model.load_state_dict(trained.state)
        model.to(evaluator.device).eval()

        counts = _counts(data, ipc)

        def choose(rows: Tensor, count: int) -> Tensor:
            count = min(count, len(rows))
            if method == "forgetting" or not count:
                return rows[most_forgotten(trained.events[rows], count)]
            chunks = (_real(data).take(chunk).to(evaluator.device) for chunk in rows.split(256))
            features = embed_chunks(model, chunks).cpu()
            return rows[(herding if method == "herding" else k_center)(features, count)]

        source = {
            "method": method,
            "ipc": max(counts),
            "features": part_name(network),
            "seed": evaluator.seed,
            "epochs": self.epochs,
        }
        real = _real(data)
        images = [real.take(choose(*each)) for each in zip(real.rows, counts, strict=True)]
        return _of_classes(data, images, source)
