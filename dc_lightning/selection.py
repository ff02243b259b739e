"""Selections of real images, the baselines of the paper's table 1: herding, k-center, forgetting.

The paper names them and its authors never released them, so what is computed is said here in full. All are done class
by class, and start from one network that was trained on the whole training set by the recipe of the evaluation
(`WholeSetNetwork`): its features before the last linear layer, or how often it forgot an image while it was trained.
Plain torch on tensors; ties go to the lower row. Random images are `dc_lightning.evaluation.random_set`.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dc_lightning.data import CondensationDataModule
from dc_lightning.errors import InputError
from dc_lightning.evaluation import Recipe, train_and_test
from dc_lightning.parts import Spec, make_network, part_name
from dc_lightning.synthetic import SyntheticSet, read_tensors, save_whole

Selection = Literal["herding", "k-center", "forgetting"]
Method = Literal["random", Selection]
FORMAT = "dc_lightning whole-set network 1"


def herding(features: Tensor, count: int) -> Tensor:
    """Greedily the unused image that brings the mean of the chosen closest to the mean of all (Welling 2009).

    Args:
        features: float, ``(n, d)``, of one class.
        count: images to choose, at most n.

    Returns:
        int64, ``(count,)``, rows in the order in which they were chosen.
    """
    features = features.double()
    centre, total = features.mean(0), torch.zeros_like(features[0])
    chosen: list[int] = []
    for number in range(1, count + 1):
        distances = (centre - (total + features) / number).norm(dim=1)
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total += features[chosen[-1]]
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """First the image nearest to the mean, then always the one farthest from its nearest chosen one (Sener 2018).

    Args:
        features: see `herding`.
        count: see `herding`.

    Returns:
        See `herding`.
    """
    features = features.double()
    chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
    nearest = (features - features[chosen[0]]).norm(dim=1)
    while len(chosen) < count:
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
        nearest = nearest.minimum((features - features[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen)


def most_forgotten(events: Tensor, count: int) -> Tensor:
    """The images that were forgotten most often, those never learnt before all others (Toneva 2019).

    Args:
        events: int64, ``(n,)``, of one class; see `Forgetting`.
        count: images to choose, at most n.

    Returns:
        See `herding`.
    """
    return events.argsort(descending=True, stable=True)[:count]


class Forgetting:
    """Counts how often each image was classified right in one epoch and wrong in the next, as it was trained on.

    Args:
        count: number of training images.
    """

    def __init__(self, count: int) -> None:
        self.right = torch.zeros(count, dtype=torch.bool)
        self.learnt = torch.zeros(count, dtype=torch.bool)
        self.forgotten = torch.zeros(count, dtype=torch.int64)

    def __call__(self, rows: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Notes one batch of the training, before its update."""
        rows, right = rows.cpu(), (logits.detach().argmax(1) == labels).cpu()
        self.forgotten[rows] += (self.right[rows] & ~right).long()
        self.right[rows] = right
        self.learnt[rows] |= right

    def events(self) -> Tensor:
        """int64, ``(n,)``; an image that was never right counts as forgotten more often than any other."""
        most = int(self.forgotten.max()) + 1
        return torch.where(self.learnt, self.forgotten, torch.full_like(self.forgotten, most))


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


def whole_set_network(
    network: Spec,
    data: CondensationDataModule,
    recipe: Recipe,
    epochs: int,
    seed: int,
    device: torch.device,
    folder: Path,
    progress: Callable[[float], None] | None = None,
) -> WholeSetNetwork:
    """Trains a network on the whole training set, or reads the one that was: it takes long, so it is done once.

    Args:
        network: see `dc_lightning.parts`.
        data: the training and the test images.
        recipe: of the evaluation, with its learning rate, its drop after half of the epochs, its augmentation.
        epochs: E + 1 of the recipe.
        seed: of the weights and the order of the batches.
        device: where to train.
        folder: where trained networks are kept, one file for everything that bears on them. A training that is stopped
            starts anew.
        progress: called with the share that is done, in [0, 1].
    """
    assert data.real is not None
    rows = torch.arange(len(data.real.labels))
    some = data.real.take(rows[:: max(len(rows) // 16, 1)]).cpu()  # tells datasets of one name and size apart
    settings = {key: value for key, value in asdict(recipe).items() if not key.startswith("epochs")}
    identity = {
        **settings,
        "augmentation": [part_name(operation) for operation in recipe.augmentation_for(network, data)],
        "network": network,
        "epochs": epochs,
        "seed": seed,
        "classes": data.class_names,
        "images": hashlib.blake2b(some.numpy().tobytes() + data.real.labels.numpy().tobytes()).hexdigest(),
    }
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()
    path = folder / f"{data.dataset_name}_{part_name(network)}_{epochs}_epochs_{digest}.pt"
    if path.is_file():
        content = read_tensors(path)
        if isinstance(content, dict) and content.get("format") == FORMAT:
            return WholeSetNetwork(content["state"], content["accuracy"], content["events"])
        raise InputError(f"'{path}' is not a network that was trained on the whole set; remove it to train one anew.")
    counting = Forgetting(len(rows))
    accuracy, trained = train_and_test(
        *(data.real.take(rows), data.real.labels, network, data, recipe, seed, device, epochs - 1, counting, progress)
    )
    found = WholeSetNetwork({k: v.cpu() for k, v in trained.state_dict().items()}, accuracy, counting.events())
    save_whole(path, {"format": FORMAT, **vars(found), "identity": json.dumps(identity)})
    return found


def require_embed(network: Spec, data: CondensationDataModule) -> None:
    """Makes sure that a network has features to select by.

    Raises:
        InputError: if it has no method ``embed``.
    """
    model = make_network(network, data.channels, data.num_classes, data.image_size, seed=0)
    if not callable(getattr(model, "embed", None)):
        raise InputError(
            f"Herding and k-center need a features_network with a method embed(images) that gives (n, d) features; "
            f"{part_name(network)} has none."
        )


def embed(
    network: Spec, state: dict[str, Tensor], data: CondensationDataModule, label: int, device: torch.device
) -> Tensor:
    """Features of all training images of a class before the last linear layer, ``(n, d)``, on the CPU."""
    assert data.real is not None
    model: Any = make_network(network, data.channels, data.num_classes, data.image_size, seed=0)
    model.load_state_dict(state)
    model = model.to(device).eval()
    with torch.no_grad():
        chunks = data.real.rows[label].split(256)
        return torch.cat([model.embed(data.real.take(rows).to(device)).flatten(1).cpu() for rows in chunks])


def select(
    method: Selection,
    ipc: int,
    network: Spec,
    trained: WholeSetNetwork,
    data: CondensationDataModule,
    device: torch.device,
) -> SyntheticSet:
    """The chosen real images as a set like any other.

    Args:
        method: how to choose.
        ipc: images per class; all where a class has fewer.
        network: that of ``trained``.
        trained: see `WholeSetNetwork`.
        data: whose training images are chosen from.
        device: where to compute features.
    """
    assert data.real is not None
    images, labels = [], []
    for label, rows in enumerate(data.real.rows):
        count = min(ipc, len(rows))
        if method == "forgetting":
            chosen = most_forgotten(trained.events[rows], count)
        else:
            features = embed(network, trained.state, data, label, device)
            chosen = (herding if method == "herding" else k_center)(features, count)
        images.append(data.real.take(rows[chosen]).cpu())
        labels.append(torch.full((count,), label))
    source = {"method": method, "dataset": data.dataset_name, "ipc": ipc, "features": part_name(network)}
    return SyntheticSet(torch.cat(images), torch.cat(labels), data.mean, data.std, data.class_names, source)
