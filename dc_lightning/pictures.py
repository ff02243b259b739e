"""Image files as a viewer shows them: upright, on a background where they are transparent, whatever their mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2.functional import pil_to_tensor

from dc_lightning.errors import InputError

_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_COLOURED = ("P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV")
_BITS, _PHOTOMETRIC = 258, 262  # tags of a TIFF: BitsPerSample, PhotometricInterpretation (0: WhiteIsZero)
_EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".jp2", ".tga", ".pnm", ".apng", ".avif")
_SCALED = ("PNG", "PPM")  # formats whose integers Pillow gives as 16 bits


@contextmanager
def _opened(path: str | Path | BinaryIO) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            if image.mode not in (*_GREY, *_COLOURED) or (image.mode == "I" and image.format not in _SCALED):
                raise InputError(
                    f"'{path}' has pixels of the mode {image.mode}, whose range is not known; save it with 8 or 16 "
                    "bits."
                )
            yield image
    except InputError:
        raise
    except Exception as error:  # whatever Pillow raises: OSError, ValueError, SyntaxError, DecompressionBombError, ...
        reason = " ".join(str(error).split()).replace(f" '{path}'", "")
        raise InputError(f"'{path}' is no image that can be read ({reason}); fix or remove it.") from error


def is_grey(path: str | Path | BinaryIO) -> bool:
    """Whether a file has no colours, by its header.

    Raises:
        InputError: see `read_picture`.
    """
    with _opened(path) as image:
        return image.mode in _GREY


def read_picture(path: str | Path | BinaryIO, channels: int, background: str = "white") -> Tensor:
    """The pixels of a file, turned as its EXIF orientation says.

    Args:
        path: of the file, or the open file; of an animation its first picture.
        channels: 1 (grey) or 3 (RGB).
        background: of what is transparent, a colour's name or ``#rrggbb``.

    Returns:
        uint8, ``(channels, H, W)``; float in [0, 1] where the file has 16 bits.

    Raises:
        InputError: if the file cannot be read, or has pixels of a mode whose range is not known.
    """
    with _opened(path) as image:
        tiles: Any = getattr(image, "tile", ())
        stored = str(tiles[0][3]) if tiles else ""
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            return _grey_16(image, upright, background).expand(channels, -1, -1).clone()
        if "transparency" in upright.info:
            upright.info["transparency"] = _transparent_value(upright.info["transparency"], stored)
        if upright.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in upright.info:
            whole = upright.convert({"La": "LA", "RGBa": "RGBA"}.get(upright.mode, "RGBA")).convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", whole.size, background), whole)
        if upright.mode not in ("1", "L", "RGB"):
            upright = upright.convert("RGB")
        return pil_to_tensor(upright.convert("L" if channels == 1 else "RGB"))


def _transparent_value(value: Any, stored: str) -> Any:
    """What stands for transparency, in the range of the pixels as Pillow gives them: it leaves it as it is stored."""
    if ";16" in stored and isinstance(value, tuple):
        return tuple(part >> 8 for part in value)
    for bits, most in (("L;2", 3), ("L;4", 15)):
        if bits in stored and isinstance(value, int):
            return value * 255 // most
    return value


def _grey_16(file: Image.Image, image: Image.Image, background: str) -> Tensor:
    """Grey pixels in [0, 1]; a TIFF says how many bits count, and whether 0 is white."""
    values, tags = np.asarray(image, dtype=np.int64), getattr(file, "tag_v2", {})
    most = 2 ** int(tags.get(_BITS, (16,))[0]) - 1
    pixels = torch.from_numpy(values / most).float()[None]
    pixels = 1 - pixels if tags.get(_PHOTOMETRIC) == 0 else pixels
    if isinstance(image.info.get("transparency"), int):
        shade = ImageColor.getcolor(background, "L")
        pixels[:, torch.from_numpy(values == image.info["transparency"])] = shade / 255 if isinstance(shade, int) else 0
    return pixels


def in_unit_range(pixels: Tensor) -> Tensor:
    """uint8 or float in [0, 1] to float in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def _is_hidden(name: str) -> bool:
    """Whether a file or folder of a name is no data: it starts with a dot, or a Mac made it."""
    return name.startswith(".") or name == "__MACOSX"


class PictureTree(ImageFolder):
    """Image files below a root, one folder a class; hidden files and folders, at any depth, are left out.

    Raises:
        FileNotFoundError: if there is no class, or one without a file.
    """

    def __init__(self, root: str | Path) -> None:
        self.top = Path(root)
        super().__init__(str(root), is_valid_file=self._is_picture)

    def _is_picture(self, path: str) -> bool:
        below = Path(path).relative_to(self.top)
        return below.suffix.lower() in _EXTENSIONS and not any(map(_is_hidden, below.parts))

    def file(self, row: int) -> str:
        """The path of an image."""
        return self.samples[row][0]

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Names of the folders that are not hidden, sorted, and their numbers."""
        names = sorted(path.name for path in Path(directory).iterdir() if path.is_dir() and not _is_hidden(path.name))
        if not names:
            raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
        return names, {name: number for number, name in enumerate(names)}
