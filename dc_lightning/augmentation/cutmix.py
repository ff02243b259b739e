"""CutMix: a box of each image comes from another image of the batch (Yun et al., ICCV 2019; IDC's ``train_epoch``)."""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from dc_lightning.errors import InputError

Box = tuple[int, int, int, int]
"""First row, row after the last, first column, column after the last."""


def box_of(kept: float, centre: tuple[int, int], size: tuple[int, int]) -> Box:
    """The box that covers the share ``1 - kept`` of an image of a size, about a centre, cut off at the border."""
    limits: list[int] = []
    for middle, side in zip(centre, size, strict=True):
        half = int(side * math.sqrt(1 - kept)) // 2
        limits += [max(middle - half, 0), min(middle + half, side)]
    return limits[0], limits[1], limits[2], limits[3]


def cut_mix(images: Tensor, labels: Tensor, box: Box, permutation: Tensor) -> tuple[Tensor, Tensor]:
    """Fills the box of image i from image ``permutation[i]``, and mixes their labels by the areas.

    Args:
        images: float, ``(n, C, H, W)``.
        labels: float, ``(n, classes)``, probabilities.
        box: the same for all images.
        permutation: int64, ``(n,)``.

    Returns:
        Images and labels, of the same shapes. The cross-entropy with them is the sum of those with both labels,
        weighted by the areas.
    """
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[permutation, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    return mixed, kept * labels + (1 - kept) * labels[permutation]


class CutMix:
    """Mixes a batch with some probability, by a box of uniform area and centre.

    Args:
        probability: of mixing a batch, in [0, 1].
        num_classes: of the labels.
    """

    def __init__(self, probability: float, num_classes: int) -> None:
        self.probability, self.num_classes = probability, num_classes

    def __call__(self, images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch, mixed or as they were; the generator is on the CPU."""
        draw, kept = torch.rand(2, generator=generator).tolist()
        if draw >= self.probability:
            return images, labels
        height, width = images.shape[2:]
        row, column = (int(torch.randint(side, (), generator=generator)) for side in (height, width))
        permutation = torch.randperm(len(images), generator=generator).to(images.device, non_blocking=True)
        shares = one_hot(labels, self.num_classes).to(images.dtype) if labels.dim() == 1 else labels
        return cut_mix(images, shares, box_of(kept, (row, column), (height, width)), permutation)


def check_probability(name: str, probability: float) -> None:
    """Raises `InputError` unless it is one."""
    if not 0 <= probability <= 1:
        raise InputError(f"{name} is the probability that a batch is mixed, from 0 to 1, got {probability}.")
