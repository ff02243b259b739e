"""The real images, in plain torch: held once in memory or read from disk, drawn class by class."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from dc_lightning.errors import InputError

ONE_SHAPE = (
    "All images must have one shape, but there are {} and {}; give data.image_size and data.channels, or a dataset "
    "whose transform resizes."
)


class ImagesInMemory:
    """Normalised images in a tensor, ``(n, C, H, W)``."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def take(self, rows: Tensor) -> Tensor:
        """Images ``(n, C, H, W)`` of rows ``(n,)``."""
        return self.images.index_select(0, rows.to(self.images.device, non_blocking=True))

    def subset(self, rows: Tensor) -> "ImagesInMemory":
        """Those of some rows, ``(n,)``."""
        return ImagesInMemory(self.take(rows))

    def to(self, device: torch.device) -> "ImagesInMemory":
        """The same on another device."""
        return self if self.images.device == device else ImagesInMemory(self.images.to(device))


@dataclass(frozen=True)
class ImagesOnDisk:
    """Normalised images of a dataset, read when they are asked for, in threads: decoding releases Python's lock."""

    dataset: Dataset
    prepare: Callable[[Dataset, int], Tensor]
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    def take(self, rows: Tensor) -> Tensor:
        """See `ImagesInMemory`."""
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(lambda row: self.prepare(self.dataset, row), rows.tolist()))
        shapes = sorted({tuple(image.shape) for image in images})
        if len(shapes) > 1:
            raise InputError(ONE_SHAPE.format(*shapes[:2]))
        return torch.stack(images).to(self.device)

    def subset(self, rows: Tensor) -> "ImagesOnDisk":
        """See `ImagesInMemory`."""
        return replace(self, dataset=Subset(self.dataset, rows.tolist()))

    def to(self, device: torch.device) -> "ImagesOnDisk":
        """See `ImagesInMemory`."""
        return self if self.device == device else replace(self, device=device)


class RealImages:
    """Real images of a split, drawn class by class.

    Args:
        images: normalised images by row number.
        labels: int64, ``(n,)``, index into ``class_names``.
        class_names: one a class.
        image_shape: (C, H, W).
        batch_real: images of one class a matching step.
    """

    def __init__(
        self,
        images: ImagesInMemory | ImagesOnDisk,
        labels: Tensor,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        batch_real: int,
    ) -> None:
        self._images = images
        self.labels = labels
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.image_shape = image_shape
        self.batch_real = batch_real
        self.rows = [torch.nonzero(labels == label).flatten() for label in range(self.num_classes)]

    def counts(self) -> list[int]:
        """Number of images of every class."""
        return [len(rows) for rows in self.rows]

    def draw(self, label: int, generator: torch.Generator, count: int | None = None) -> Tensor:
        """Random images of one class without replacement; all there are where there are fewer.

        Args:
            label: the class.
            generator: on the CPU, so that every device and number of processes draws the same.
            count: number of images, `batch_real` if None.

        Returns:
            float, ``(count, C, H, W)``, normalised.
        """
        rows = self.rows[label]
        order = torch.randperm(len(rows), generator=generator)
        return self.take(rows[order[: self.batch_real if count is None else count]])

    def take(self, rows: Tensor) -> Tensor:
        """Images by row number, ``(n,)`` to ``(n, C, H, W)``, normalised."""
        if isinstance(self._images, ImagesOnDisk) and not len(rows):
            return torch.empty(0, *self.image_shape, device=self._images.device)
        return self._images.take(rows)

    def batch(self, rows: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images of rows ``(n,)``, ``(n, C, H, W)``, normalised, and their labels, ``(n,)``, on one device."""
        images, chosen = self.take(torch.as_tensor(rows)), self.labels[rows]
        return images, chosen.to(images.device, non_blocking=True)

    def of_classes(self, classes: Sequence[int]) -> "RealImages":
        """The images of some classes, which are numbered in the order given."""
        rows = torch.cat([self.rows[label] for label in classes])
        labels = torch.cat([torch.full((len(self.rows[label]),), number) for number, label in enumerate(classes)])
        names = [self.class_names[label] for label in classes]
        return RealImages(self._images.subset(rows), labels, names, self.image_shape, self.batch_real)

    def to(self, device: torch.device) -> "RealImages":
        """The same images on another device."""
        images = self._images.to(device)
        if images is self._images:
            return self
        return RealImages(images, self.labels, self.class_names, self.image_shape, self.batch_real)
