"""Selection of real images: herding, k-center and forgetting, as functions of features or of forgetting events."""

from typing import Literal

import torch
from torch import Tensor

Selection = Literal["herding", "k-center", "forgetting"]
Method = Literal["random", Selection]


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
        labels: int64, ``(n,)``, of the training images.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels, count = labels.cpu(), len(labels)
        self.right = torch.zeros(count, dtype=torch.bool)
        self.learnt = torch.zeros(count, dtype=torch.bool)
        self.forgotten = torch.zeros(count, dtype=torch.int64)

    def __call__(self, rows: Tensor, logits: Tensor) -> None:
        """Notes one batch of the training, before its update."""
        rows = rows.cpu()
        right = logits.detach().argmax(1).cpu() == self.labels[rows]
        self.forgotten[rows] += (self.right[rows] & ~right).long()
        self.right[rows] = right
        self.learnt[rows] |= right

    def events(self) -> Tensor:
        """int64, ``(n,)``; an image that was never right counts as forgotten more often than any other."""
        most = int(self.forgotten.max()) + 1
        return torch.where(self.learnt, self.forgotten, torch.full_like(self.forgotten, most))
