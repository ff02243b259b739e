"""Multi-formation: one stored image that holds several training images (IDC, section 3.2; ``decode`` of its code)."""

from torch import Tensor
from torch.nn.functional import interpolate, pad

from dc_lightning.errors import InputError

_PADDING = 0.5  # of pixels in [0, 1]: grey


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
    if not 1 <= factor <= min(height, width):
        raise InputError(f"factor must be in 1..{min(height, width)} for images of {height}x{width}, got {factor}.")
    if factor == 1:
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
