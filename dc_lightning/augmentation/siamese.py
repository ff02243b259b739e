"""Differentiable augmentation: siamese (Zhao and Bilen, ICML 2021, section 3), and several in a row (IDC).

Images are float, ``(n, C, H, W)``, normalised, so that the zeros which come in are the mean of the dataset. Parameters
are tensors ``(n,)``, one an image, or ``(1,)``, one for all. Every operation is differentiable in the images.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample

from dc_lightning.errors import require_known
from dc_lightning.seeds import derive_generator, derive_seed

_CROP = 0.125  # of a side; this and the rest are from ParamDiffAug of the authors' code
_CUTOUT = 0.5
_SCALE = 1.2
_ROTATION = 15.0  # degrees


def _each(parameter: Tensor) -> Tensor:
    return parameter.view(-1, 1, 1, 1)


def brightness(images: Tensor, shift: Tensor) -> Tensor:
    """Adds a number to all pixels of an image."""
    return images + _each(shift)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Stretches the distance of each pixel from its mean over the channels; leaves grey images as they are."""
    mean = images.mean(dim=1, keepdim=True)
    return mean + (images - mean) * _each(factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Stretches the distance of each pixel from the mean of its image."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * _each(factor)


def color(images: Tensor, shift: Tensor, saturation_factor: Tensor, contrast_factor: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast."""
    return contrast(saturation(brightness(images, shift), saturation_factor), contrast_factor)


def crop(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Shifts: pixel (i, j) comes from (i + rows, j + columns), zero from outside."""
    count, channels, height, width = images.shape
    row = torch.arange(height, device=images.device) + rows.view(-1, 1)
    column = torch.arange(width, device=images.device) + columns.view(-1, 1)
    inside = ((row >= 0) & (row < height))[:, None, :, None] & ((column >= 0) & (column < width))[:, None, None, :]
    by_row = row.clamp(0, height - 1)[:, None, :, None].expand(count, channels, height, width)
    by_column = column.clamp(0, width - 1)[:, None, None, :].expand(count, channels, height, width)
    return images.gather(2, by_row).gather(3, by_column) * inside


def _hole(side: int) -> int:
    return int(side * _CUTOUT + 0.5)


def cutout(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Zeros a hole of half the height and width, centred at (rows, columns) and cut off at the border."""
    height, width = images.shape[2:]
    row = torch.arange(height, device=images.device) - rows.view(-1, 1) + _hole(height) // 2
    column = torch.arange(width, device=images.device) - columns.view(-1, 1) + _hole(width) // 2
    in_rows, in_columns = (row >= 0) & (row < _hole(height)), (column >= 0) & (column < _hole(width))
    return images * ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirrors left and right where the boolean says so."""
    return torch.where(_each(mirrored), images.flip(3), images)


def _affine(images: Tensor, theta: Tensor) -> Tensor:
    theta = theta.to(images.dtype).view(-1, 2, 3).expand(len(images), 2, 3)
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def scale(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Resizes about the centre: above 1 the content shrinks, by x in width and y in height."""
    zero = torch.zeros_like(x)
    return _affine(images, torch.stack([x, zero, zero, zero, y, zero], 1))


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotates about the centre, anticlockwise for positive degrees; the authors' shears images that are not square."""
    radians = degrees * math.pi / 180
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    height, width = images.shape[2:]  # whose halves are the units of rows and columns
    return _affine(images, torch.stack([cos, -sin * (height / width), zero, sin * (width / height), cos, zero], 1))


_UNIFORM = {
    "color": {"shift": (-0.5, 0.5), "saturation_factor": (0.0, 2.0), "contrast_factor": (0.5, 1.5)},
    "scale": {"x": (1 / _SCALE, _SCALE), "y": (1 / _SCALE, _SCALE)},
    "rotate": {"degrees": (-_ROTATION, _ROTATION)},
}  # limits of the parameters that are real numbers

_FUNCTIONS: list[Callable[..., Tensor]] = [color, crop, cutout, flip, scale, rotate]
OPERATIONS = {function.__name__: function for function in _FUNCTIONS}
"""By the names of which a strategy is made, such as ``color_crop_cutout_flip_scale_rotate``."""


def draw_parameters(name: str, count: int, size: tuple[int, int], generator: Generator) -> dict[str, Tensor]:
    """Parameters of an operation for ``count`` images of a size."""
    if name in _UNIFORM:
        return {
            key: low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
            for key, (low, high) in _UNIFORM[name].items()
        }
    if name == "flip":
        return {"mirrored": torch.rand(count, generator=generator) < 0.5}
    if name == "crop":
        most = [int(side * _CROP + 0.5) for side in size]
        limits = [(-side, side + 1) for side in most]
    else:
        limits = [(0, side + 1 - _hole(side) % 2) for side in size]  # a hole of odd side ends its draw one earlier
    rows, columns = (torch.randint(low, high, (count,), generator=generator) for low, high in limits)
    return {"rows": rows, "columns": columns}


class Siamese:
    """One operation of a strategy for a batch, each as likely as the others (``aug_mode`` S of the authors' code).

    Args:
        strategy: names of operations, joined by ``_``; None is all, or that of the dataset where one is at hand.

    Raises:
        InputError: if a name is unknown.
    """

    def __init__(self, strategy: str | None = None) -> None:
        self.strategy = strategy
        self.names = strategy.split("_") if strategy else list(OPERATIONS)
        require_known("operation", self.names, OPERATIONS, f", joined by _ in the strategy '{strategy}'")

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()}({self.strategy})"

    def of_data(self, strategy: str) -> "Siamese":
        """The same with the strategy of a dataset, where none was given."""
        return self if self.strategy else type(self)(strategy)

    def chosen(self, seed: int) -> list[str]:
        """The operations that fall to a batch, in the order they are applied."""
        return [self.names[derive_seed(seed, "operation") % len(self.names)]]

    def _apply(self, count: int, batches: Sequence[Tensor], seed: int) -> list[Tensor]:
        """The same operations for all batches, with ``count`` parameters: 1, or as many as there are images."""
        generator = derive_generator(seed, "parameters")
        found, size = list(batches), (batches[0].shape[2], batches[0].shape[3])
        for name in self.chosen(seed):
            like, drawn = found[0], draw_parameters(name, count, size, generator)
            parameters = {
                key: value.to(like.device, like.dtype if value.is_floating_point() else None, non_blocking=True)
                for key, value in drawn.items()
            }
            found = [OPERATIONS[name](images, **parameters) for images in found]
        return found

    def pair(self, real: Tensor, synthetic: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The same operations with the same parameters for all images of both batches: the siamese way."""
        real, synthetic = self._apply(1, (real, synthetic), seed)
        return real, synthetic

    def batch(self, images: Tensor, seed: int) -> Tensor:
        """The same operations for a batch, with parameters for every image: how networks are trained."""
        return self._apply(len(images), (images,), seed)[0]

    def __call__(self, images: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        """`batch`, as the augmentation of a recipe."""
        return self.batch(images, int(torch.randint(2**62, (), generator=generator)))


class DiffAugment(Siamese):
    """All operations of a strategy: flip, color, one of crop, scale and rotate, cutout (``DiffAug`` of IDC's code).

    Args:
        strategy: see `Siamese`; that of a dataset is taken without cutout, which IDC replaces by CutMix.
    """

    def of_data(self, strategy: str) -> "Siamese":
        """See `Siamese`."""
        return super().of_data("_".join(name for name in strategy.split("_") if name != "cutout"))

    def chosen(self, seed: int) -> list[str]:
        """See `Siamese`."""
        choices = [name for name in ("crop", "scale", "rotate") if name in self.names]
        one = [choices[derive_seed(seed, "operation") % len(choices)]] if choices else []
        return [name for name in ("flip", "color", *one, "cutout") if name in self.names]
