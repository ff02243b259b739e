"""The evaluation's augmentation: for every image one operation, drawn uniformly, all images of many batches at once.

The distributions are those of ``augment`` (``utils.py`` of the authors' code), which goes image by image.
An operation is any callable ``(images, generator, mean) -> images``: the images it gets, ``(n, C, H, W)``, may be of
several batches; the mean is that of each image's batch, ``(n, C)``; it gives one image for each.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

Operation = Callable[[Tensor, torch.Generator, Tensor], Tensor]

_CROP_PADDING = 4  # pixels; this and the next three are from get_daparam of the authors' code
_SCALE = 0.2
_ROTATION = 45  # degrees
_NOISE = 0.001


class OperationPerImage:
    """For every image one of the operations, of which there is at least one, each as likely as the others."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations

    def __call__(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented images of one batch, float, ``(n, C, H, W)``."""
        return self.of_batches(images, generator, [len(images)])

    def of_batches(self, images: Tensor, generator: torch.Generator, batch_sizes: Sequence[int]) -> Tensor:
        """Augmented images of several batches, one after the other, float, ``(n, C, H, W)``.

        The generator is on the CPU, so that every device draws the same numbers.
        """
        device, kinds, sizes = images.device, len(self.operations), torch.tensor(batch_sizes)
        batch = torch.arange(len(sizes)).repeat_interleave(sizes).to(device, non_blocking=True)
        means = images.mean(dim=(2, 3))
        sums = means.new_zeros(len(sizes), means.shape[1]).index_add_(0, batch, means)
        mean = (sums / sizes[:, None].to(device, non_blocking=True)).index_select(0, batch)

        choice = torch.randint(kinds, (len(images),), generator=generator)
        order = choice.argsort(stable=True)
        shares = torch.bincount(choice, minlength=kinds).tolist()
        there, back = (places.to(device, non_blocking=True) for places in (order, order.argsort()))
        images_of, means_of = (tensor.index_select(0, there).split(shares) for tensor in (images, mean))
        parts = zip(images_of, means_of, self.operations, strict=True)
        augmented = [operation(part, generator, its_mean) for part, its_mean, operation in parts if len(part)]
        return torch.cat(augmented).index_select(0, back)


def crop(images: Tensor, generator: torch.Generator, mean: Tensor) -> Tensor:
    """Pads by 4 pixels of the batch's mean, and cuts a window of the old size at a random offset in 0..7.

    Args:
        images: float, ``(n, C, H, W)``.
        generator: on the CPU.
        mean: of each channel of the batch that the image belongs to, ``(n, C)``.

    Returns:
        float, ``(n, C, H, W)``.
    """
    count, _, height, width = images.shape
    top, left = torch.randint(2 * _CROP_PADDING, (2, count), generator=generator).to(images.device, non_blocking=True)
    padded = mean[:, :, None, None].repeat(1, 1, height + 2 * _CROP_PADDING, width + 2 * _CROP_PADDING)
    padded[:, :, _CROP_PADDING:-_CROP_PADDING, _CROP_PADDING:-_CROP_PADDING] = images
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]


def scale(images: Tensor, generator: torch.Generator, mean: Tensor) -> Tensor:
    """Resizes height and width each by a factor uniform in 0.8..1.2, nearest neighbour, centred, padded by zeros.

    Where the authors' code scales the height for both sides (its images are square), each side scales itself.
    Arguments and result as in `crop`.
    """
    count, channels, height, width = images.shape
    factors = 1 - _SCALE + 2 * _SCALE * torch.rand(2, count, 1, generator=generator, dtype=torch.float64)
    scaled = (factors * torch.tensor([height, width]).view(2, 1, 1)).long().clamp(min=1)
    canvas = scaled.amax(dim=0).clamp(min=max(height, width))  # a square that holds the image before and after
    sources, insides = [], []
    for size, sides in zip((height, width), scaled, strict=True):
        position = torch.arange(size) + (canvas - size) // 2 - (canvas - sides) // 2
        insides.append(((position >= 0) & (position < sides)).to(images.device, non_blocking=True))
        sources.append((position * size // sides).clamp(0, size - 1).to(images.device, non_blocking=True))
    pixels = (sources[0][:, :, None] * width + sources[1][:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    resized = images.flatten(2).gather(2, pixels).view(images.shape)
    return resized.mul_(insides[0][:, None, :, None]).mul_(insides[1][:, None, None, :])


def rotate(images: Tensor, generator: torch.Generator, mean: Tensor) -> Tensor:
    """Rotates by a whole angle in [-45, 45) degrees about the centre, cubic spline, filled with the mean.

    The same as ``scipy.ndimage.rotate(image, angle, axes=(-2, -1), cval=mean)`` cut to the old size, which places the
    centre of rotation up to half a pixel off where the enlarged frame has an odd number of pixels to cut. Arguments
    and result as in `crop`.
    """
    count, channels, height, width = images.shape
    angles = torch.randint(2 * _ROTATION, (count,), generator=generator).to(images.device, non_blocking=True)
    table = _rotations(height, width, images.device, images.dtype)
    positions, weights = (part.index_select(0, angles) for part in (table.positions, table.weights))
    coefficients = table.spline_rows @ images @ table.spline_columns.T
    taps = grid_sample(coefficients, positions, align_corners=True)
    rotated = taps.view(count, channels, 4, height, width).mul_(weights[:, None]).sum(dim=2)
    inside = table.inside.index_select(0, angles)
    return torch.where(inside[:, None], rotated, mean.mean(dim=1).view(-1, 1, 1, 1))


class _Rotations(NamedTuple):
    """What `rotate` needs to know of every angle; made once for an image size.

    A cubic B-spline has four weights along each axis, all positive, and so is two linear interpolations between
    neighbouring coefficients: four bilinear ones in the plane.
    """

    positions: Tensor  # (angles, 4 * height, width, 2), x and y in [-1, 1], of the four interpolations
    weights: Tensor  # (angles, 4, height, width)
    inside: Tensor  # (angles, height, width)
    spline_rows: Tensor  # (height + 2, height), to the coefficients with their mirror images
    spline_columns: Tensor  # (width + 2, width)


@lru_cache(maxsize=2)  # 3.5 MB for images of 28x28, and grows with their pixels
def _rotations(height: int, width: int, device: torch.device, dtype: torch.dtype) -> _Rotations:
    angles = torch.arange(-_ROTATION, _ROTATION, dtype=torch.float64).mul(math.pi / 180)
    cos, sin = angles.cos(), angles.sin()
    # height and width of the whole rotated image
    frame = [(a.abs() * height + b.abs() * width + 0.5).floor() for a, b in ((cos, sin), (sin, cos))]
    y, x = (
        torch.arange(size) + ((whole - size) / 2).trunc()[:, None] - (whole[:, None] - 1) / 2
        for size, whole in zip((height, width), frame, strict=True)
    )
    y, x, cos, sin = y[:, :, None], x[:, None, :], cos[:, None, None], sin[:, None, None]
    source_y = cos * y + sin * x + (height - 1) / 2
    source_x = -sin * y + cos * x + (width - 1) / 2
    inside = (source_y >= 0) & (source_y <= height - 1) & (source_x >= 0) & (source_x <= width - 1)
    positions, weights = [], []
    for at_y, weight_y in _linear_taps(source_y, height):
        for at_x, weight_x in _linear_taps(source_x, width):
            positions.append(torch.stack([at_x, at_y], dim=-1))
            weights.append(weight_y * weight_x)
    return _Rotations(
        torch.cat(positions, dim=1).to(device, dtype),
        torch.stack(weights, dim=1).to(device, dtype),
        inside.to(device),
        _spline_matrix(height).to(device, dtype),
        _spline_matrix(width).to(device, dtype),
    )


def _linear_taps(source: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two linear interpolations that make a cubic B-spline: position in [-1, 1] of `_spline_matrix`, and weight."""
    first = source.floor()
    t = source - first
    weights = [w / 6 for w in ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)]
    low, high = weights[0] + weights[1], weights[2] + weights[3]
    positions = first - 1 + weights[1] / low, first + 1 + weights[3] / high
    return [(2 * (at + 1) / (size + 1) - 1, weight) for at, weight in zip(positions, (low, high), strict=True)]


def noise(images: Tensor, generator: torch.Generator, mean: Tensor) -> Tensor:
    """Adds normal noise of standard deviation 0.001. Arguments and result as in `crop`."""
    return images + _NOISE * torch.randn(images.shape, generator=generator).to(images.device, non_blocking=True)


def _spline_matrix(size: int) -> Tensor:
    """Takes ``size`` samples to the coefficients -1..size of the cubic B-spline through them, mirrored at the ends."""
    mirrored = [size - 1 - abs(size - 1 - abs(row)) if size > 1 else 0 for row in range(-1, size + 1)]
    matrix = torch.eye(size, dtype=torch.float64) * 4
    for row in range(size):
        for neighbour in (mirrored[row], mirrored[row + 2]):
            matrix[row, neighbour] += 1
    return torch.linalg.inv(matrix / 6)[mirrored]


OPERATIONS: dict[str, Operation] = {"crop": crop, "scale": scale, "rotate": rotate, "noise": noise}
"""By the names of the authors' ``get_daparam``."""
