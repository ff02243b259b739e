"""Multi-formation: one stored image that holds several training images (IDC, section 3.2; ``decode`` of its code)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from dc_lightning.errors import InputError

Formation = Literal["single", "multi"]
"""How a stored image becomes training images: by one factor, or by 1, 2, .. up to it, one after the other."""

_PADDING = 0.5  # of pixels in [0, 1]: grey


def decode(images: Tensor, factor: int, formation: Formation = "single", fill: float | Tensor = _PADDING) -> Tensor:
    """Training images of stored ones, ``(n, C, H, W)``: float, ``(n * images_in_one(factor, formation), C, H, W)``.

    Cell by cell, image by image within; see `unfold` for ``fill``.
    """
    if formation == "single":
        return unfold(images, factor, fill)
    return torch.cat([unfold(images, each, fill) for each in range(1, factor + 1)])


def images_in_one(factor: int, formation: Formation = "single") -> int:
    """Training images in a stored one."""
    return factor**2 if formation == "single" else sum(each**2 for each in range(1, factor + 1))


def decode_bounded(images: Tensor, factor: int, bound: int) -> Tensor:
    """As many training images as ``bound`` allows: the first stored ones by the factor, the last ones as they are.

    Of n images ``(bound - n) // factor**2`` go by the factor, then, with what is left, some by each smaller one
    (``decode_zoom_bound`` of the authors' code).

    Args:
        images: float, ``(n, C, H, W)``, in [0, 1].
        factor: the largest.
        bound: training images; more where there are more stored ones.
    """
    parts, left, room = [], images, bound - len(images)
    for each in range(factor, 0, -1):
        count = len(left) if each == 1 else max(0, min(room // each**2, len(left)))
        parts.append(unfold(left[:count], each))
        left = left[count:]
        room = bound - sum(len(part) for part in parts) - len(left)
    return torch.cat([part for part in parts if len(part)])


def unfold(images: Tensor, factor: int, fill: float | Tensor = _PADDING) -> Tensor:
    """Cuts every image into ``factor * factor`` cells and enlarges each to the full size.

    Args:
        images: float, ``(n, C, H, W)``.
        factor: cells along a side; 1 gives the images as they are.
        fill: what pads right and bottom to a multiple of the factor, a number or ``(C,)``: grey in the space of the
            images.

    Returns:
        float, ``(factor * factor * n, C, H, W)``: cell by cell, rows first; within a cell image by image.

    Raises:
        InputError: if the factor is below 1 or above a side.
    """
    height, width = images.shape[2:]
    check_factor(factor, (height, width))
    if factor == 1 or not len(images):
        return images
    right, bottom = -width % factor, -height % factor
    if isinstance(fill, Tensor):
        grey = fill.to(images).view(1, -1, 1, 1)
        padded = pad(images - grey, (0, right, 0, bottom)) + grey
    else:
        padded = pad(images, (0, right, 0, bottom), value=fill)
    rows, columns = padded.shape[2] // factor, padded.shape[3] // factor
    cells = padded.unfold(2, rows, rows).unfold(3, columns, columns)  # (n, C, factor, factor, rows, columns)
    stacked = cells.permute(2, 3, 0, 1, 4, 5).flatten(0, 2)
    return interpolate(stacked, size=(height, width), mode="bilinear", align_corners=False)


def check_factor(factor: int, size: tuple[int, int]) -> None:
    """Raises `InputError` unless images of a size, height and width, can hold factor * factor others."""
    if factor not in range(1, min(size) + 1):
        raise InputError(f"factor must be in 1..{min(size)} for images of {size[0]}x{size[1]}, got {factor}.")


def pack(images: Tensor, factor: int) -> Tensor:
    """Shrinks images and lays ``factor * factor`` of them into each stored one (``mix`` of the authors' code).

    Where a side is no multiple of the factor, the first cells are a pixel larger; `unfold` cuts all alike, so that
    the two do not match there, as in the authors' code.

    Args:
        images: float, ``(factor * factor * n, C, H, W)``; number ``k * n + i`` goes to cell k of image i.
        factor: cells along a side; 1 gives the images as they are.

    Returns:
        float, ``(n, C, H, W)``.
    """
    if factor == 1:
        return images
    cells = images.view(factor, factor, -1, *images.shape[1:])
    heights, widths = (
        [side // factor + (place < side % factor) for place in range(factor)] for side in images.shape[2:]
    )
    rows = [
        torch.cat([interpolate(cell, (height, width)) for cell, width in zip(row, widths, strict=True)], dim=3)
        for row, height in zip(cells, heights, strict=True)
    ]
    return torch.cat(rows, dim=2)


def pack_classes(images: Tensor, count: int, factor: int) -> Tensor:
    """`pack` for every ``count`` images, which are those of a class.

    Raises:
        InputError: if the factor is below 1 or above a side.
    """
    check_factor(factor, (images.shape[2], images.shape[3]))
    return torch.cat([pack(of_class, factor) for of_class in images.split(count)])
