"""A synthetic set: stored images and what they decode to, labels, normalisation, what they came from."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.utils import make_grid

from dc_lightning.errors import InputError
from dc_lightning.files import save_whole, write_whole
from dc_lightning.synthetic.formation import Formation, decode, images_in_one
from dc_lightning.synthetic.picture import labelled_picture

FORMAT = "dc_lightning synthetic set 2"
METADATA = "synthetic.json"
Space = Literal["normalised", "pixels"]


@dataclass(frozen=True, eq=False, repr=False)
class SyntheticSet(Dataset):
    """Labelled images with all that is needed to use them: a torch Dataset of the decoded (image, label).

    Args:
        images: float, ``(n, C, H, W)``: stored, what the budget counts; not clamped.
        labels: int64, ``(n,)``, sorted, index into ``class_names``; or float, ``(n, classes)``, probabilities.
        mean: of each channel in [0, 1].
        std: of each channel in [0, 1].
        class_names: one a class.
        source: what made the set, as plain values; ``method`` is its name.
        normalized: whether `__getitem__` gives normalised images, or images in [0, 1].
        space: whether the stored images are normalised by ``mean`` and ``std``, or pixels in [0, 1].
        factor: of the multi-formation (`decode`); 1 stores one training image an image.
        formation: see `Formation`.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    source: dict[str, Any] = field(default_factory=dict)
    normalized: bool = True
    space: Space = "normalised"
    factor: int = 1
    formation: Formation = "single"

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, about: Mapping[str, Any]) -> "SyntheticSet":
        """A set by what `about` gives; space, factor and formation may be missing."""
        values: dict[str, Any] = {name: tuple(about[name]) for name in ("mean", "std", "class_names")}
        decoding = {name: about[name] for name in ("space", "factor", "formation") if name in about}
        return cls(images, labels, **values, source=dict(about["source"]), **decoding)

    def __repr__(self) -> str:
        shape = "x".join(str(side) for side in self.images.shape[1:])
        packed = f", {self.images_in_one} training images in each" if self.images_in_one > 1 else ""
        labels = "soft labels" if self.labels.dim() == 2 else "hard labels"
        return (
            f"SyntheticSet by {self.method}: {len(self.images)} images of {shape}{packed}, {labels} of "
            f"{self.num_classes} classes; {self.space}, mean {list(self.mean)}, std {list(self.std)}"
        )

    @property
    def checksum(self) -> str:
        """Of the stored images and labels, 32 hexadecimal digits."""
        return _checksum(self.images, self.labels)

    @cached_property
    def decoded_checksum(self) -> str:
        """Likewise of what a network trains on."""
        return _checksum(*self.decoded())

    def decoded(self) -> tuple[Tensor, Tensor]:
        """What a network trains on: images, float, ``(m, C, H, W)``, normalised, and their labels."""
        of_pixels = self.space == "pixels"
        images = decode(self.images, self.factor, self.formation, 0.5 if of_pixels else self._normalised(0.5))
        labels = self.labels.repeat(self.images_in_one, *[1] * (self.labels.dim() - 1))
        return self._normalised(images) if of_pixels else images, labels

    @property
    def images_in_one(self) -> int:
        """Training images in a stored one."""
        return images_in_one(self.factor, self.formation)

    def _channels(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values).to(self.images).view(-1, 1, 1)

    def _normalised(self, pixels: Tensor | float) -> Tensor:
        return (pixels - self._channels(self.mean)) / self._channels(self.std)

    def __len__(self) -> int:
        return len(self.labels) * self.images_in_one

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self._decoded
        image = images[index]
        return (image if self.normalized else self._to_unit_range(image)), labels[index]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def _decoded(self) -> tuple[Tensor, Tensor]:
        return self.decoded()

    @property
    def method(self) -> str:
        """Name of the method that made the set."""
        return str(self.source.get("method", "synthetic"))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def hard_labels(self) -> Tensor:
        """int64, ``(n,)``: of each stored image the class, or the one of highest probability."""
        return self.labels.argmax(dim=1) if self.labels.dim() == 2 else self.labels

    @property
    def counts(self) -> list[int]:
        """Stored images of each class."""
        return torch.bincount(self.hard_labels, minlength=self.num_classes).tolist()

    @property
    def ipc(self) -> int:
        """Stored images of the class that has most."""
        return max(self.counts)

    def _to_unit_range(self, normalised: Tensor) -> Tensor:
        return (normalised * self._channels(self.std) + self._channels(self.mean)).clamp(0, 1)

    def unit_range_images(self) -> Tensor:
        """The stored images as pixels, clamped: float in [0, 1], ``(n, C, H, W)``."""
        return self.denormalised().clamp(0, 1)

    def rounded_pixels(self) -> Tensor:
        """`unit_range_images` in steps of 1/255."""
        return self.unit_range_images().mul(255).round().div(255)

    def as_8_bit(self) -> "SyntheticSet":
        """What an image file of 8 bits holds: pixels clamped to [0, 1], in steps of 1/255."""
        pixels = self.rounded_pixels()
        images = pixels if self.space == "pixels" else self._normalised(pixels)
        return replace(self, images=images, source={**self.source, "stored_as": "8-bit images"})

    def with_normalized(self, normalized: bool) -> "SyntheticSet":
        """The same set whose items are normalised images, or images in [0, 1]."""
        return replace(self, normalized=normalized)

    def renormalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "SyntheticSet":
        """The same images under another normalisation."""
        if (self.mean, self.std) == (mean, std):
            return self
        found = replace(self, mean=tuple(mean), std=tuple(std))
        return found if self.space == "pixels" else replace(found, images=found._normalised(self.denormalised()))

    def viewable(self, decoded: bool = False) -> tuple[Tensor, Tensor]:
        """Images as a picture can show them, float in [0, 1], 1 or 3 channels, and their classes; see `grid`."""
        images = self._to_unit_range(self.decoded()[0]) if decoded else self.unit_range_images()
        if images.shape[1] not in (1, 3):
            images = images[:, :3] if images.shape[1] > 3 else images.mean(dim=1, keepdim=True)
        return images, self.hard_labels.repeat(self.images_in_one if decoded else 1)

    def denormalised(self) -> Tensor:
        """The stored images as pixels, not clamped: float, ``(n, C, H, W)``."""
        if self.space == "pixels":
            return self.images
        return self.images * self._channels(self.std) + self._channels(self.mean)

    def grid(self, decoded: bool = False) -> Tensor:
        """The images, one row a class (paper, figures 2 and 3): float in [0, 1], ``(3, height, width)``.

        The stored ones, or the decoded that a network trains on; of two channels the mean, of four or more three.
        """
        images, labels = self.viewable(decoded)
        width = int(torch.bincount(labels).max())
        rows = []
        for label in range(self.num_classes):
            row = images[labels == label]
            rows.append(torch.cat([row, row.new_ones(width - len(row), *row.shape[1:])]))
        return make_grid(torch.cat(rows), nrow=width, padding=2, pad_value=1.0)

    def picture(self, decoded: bool = False) -> Image.Image:
        """The images with the names of their classes, and where several are in one their numbers; see `grid`."""
        images, labels = self.viewable(decoded)
        foot = f"{len(self)} training images in {len(self.images)} stored ones" if self.images_in_one > 1 else ""
        return labelled_picture([as_picture(image) for image in images], labels, self.class_names, foot)

    def save_grid(self, path: str | Path, decoded: bool = False) -> None:
        """Writes `picture` as a PNG file."""
        buffer = io.BytesIO()
        self.picture(decoded).save(buffer, format="PNG")
        write_whole(path, buffer.getvalue())

    def tensors(self) -> dict[str, Tensor]:
        """Images and labels as a file holds them."""
        return {"images": self.images.cpu().contiguous(), "labels": self.labels.cpu().contiguous()}

    def about(self) -> dict[str, Any]:
        """All but images and labels, as plain values for a file."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "class_names": list(self.class_names),
            "source": self.source,
            "space": self.space,
            "factor": self.factor,
            "formation": self.formation,
        }

    def save(self, path: str | Path) -> None:
        """Writes tensors and plain values only: `torch.load` reads it with ``weights_only=True``."""
        save_whole(path, {"format": FORMAT, **self.tensors(), **self.about()})

    def export(self, folder: str | Path) -> None:
        """Writes a folder of PNG files of the stored images in ImageFolder layout, and what belongs to them as JSON.

        PNG has 8 bits a channel and no values outside [0, 1]: what lies outside is clamped, and the source of the
        exported set says so.

        Raises:
            InputError: if the folder is there and not empty, labels are soft, or channels are other than 1 or 3.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"'{folder}' is not empty; export to a new folder, so that no old image mixes in.")
        if self.labels.dim() == 2:
            raise InputError("A folder of images has hard labels only, and this set has soft ones; share synthetic.pt.")
        if self.images.shape[1] not in (1, 3):
            raise InputError(
                f"PNG files hold 1 or 3 channels, and this set has {self.images.shape[1]}; share synthetic.pt."
            )
        for index, (image, label) in enumerate(zip(self.unit_range_images(), self.labels, strict=True)):
            target = folder / folder_name(int(label), self.class_names) / f"{index:05d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            as_picture(image).save(target)
        metadata = {**self.about(), "source": {**self.source, "stored_as": "8-bit images"}}
        del metadata["space"]  # files hold pixels
        write_whole(folder / METADATA, json.dumps(metadata, indent=2).encode())


def _checksum(*tensors: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def as_picture(pixels: Tensor) -> Image.Image:
    """Of pixels in [0, 1], rounded; torchvision alone would cut off what is below a step of 1/255."""
    return v2.functional.to_pil_image(pixels.mul(255).round().to(torch.uint8))


def folder_name(label: int, class_names: Sequence[str]) -> str:
    """A folder for a class: sorted as the labels are, in letters that every file system takes."""
    digits = len(str(max(len(class_names) - 1, 1)))
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in class_names[label])
    return f"{label:0{digits}d}_{name}"
