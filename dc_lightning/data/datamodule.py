"""The data of a condensation: per-class real batches for the matching, the test set for the evaluation.

Images are held once in memory, normalised once, and moved once to the device; a batch is an index. A dataset is one
small subclass of `CondensationDataModule`; any other comes in through `ImageFolder` or `TorchDataset`.
"""

import copy
import hashlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2

from dc_lightning.data.real import ONE_SHAPE, ImagesInMemory, ImagesOnDisk, RealImages
from dc_lightning.errors import InputError, require_at_least
from dc_lightning.parts import Spec
from dc_lightning.pictures import in_unit_range
from dc_lightning.seeds import derive_generator
from dc_lightning.threads import fit_threads

log = logging.getLogger(__name__)

Split = tuple[Tensor | Dataset, Tensor]
"""Images, ``(n, C, H, W)`` uint8 or float in [0, 1], or a dataset of them; and labels, ``(n,)`` int64."""

_BATCH_REAL = 256  # paper, appendix A
_HELD_OUT = " validation "  # in a title, before the share


def dataset_of(title: str) -> str:
    """The name of the dataset in a `CondensationDataModule.title`, of its test images or of those held out."""
    return title.partition(_HELD_OUT)[0]


class _StepLoader(DataLoader):
    """Resumes at any step: all its items are the same, so it has no state. Lightning requires these two methods."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class CondensationDataModule(LightningDataModule, ABC):
    """Per-class real batches for the matching and a test loader for the evaluation.

    After `setup` it has ``num_classes``, ``class_names``, ``channels``, ``image_size`` (height, width), ``mean``,
    ``std``, ``real`` (`RealImages`).

    Args:
        batch_real: real images of each class a matching step, 256 in the paper.
        test_batch_size: images a forward pass in testing; changes speed only.
        mean: of each channel in [0, 1]; of the paper where None, or else measured on the training images.
        std: likewise.
        in_memory: hold all images in memory, on the device; False reads them from the dataset when needed.
        validation: share of the training images of each class, always the same, that is held out, so that settings can
            be chosen without the test set; neither matching nor clusters nor statistics see them. See `held_out`.

    Attributes:
        augmentation: operations that DC's recipe applies to the synthetic images of this dataset, none for most.
        strategy: of the siamese augmentation (DSA) for this dataset.
        network_images: real images on which IDC trains its network between two matching steps.
        usual_side: of its images in pixels, on which IDC's image rate is 1e-4 (5e-3) times ipc / 10.
    """

    augmentation: Sequence[Spec] = ()
    strategy: str = "color_crop_cutout_flip_scale_rotate"
    network_images: int = 500
    usual_side: int = 32
    default_mean: tuple[float, ...] | None = None
    default_std: tuple[float, ...] | None = None

    def __init__(
        self,
        batch_real: int = _BATCH_REAL,
        test_batch_size: int = 256,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        in_memory: bool = True,
        validation: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= validation < 1:
            raise InputError(f"data.validation is a share of the training images, from 0 to below 1, got {validation}.")
        require_at_least("data.", batch_real=(batch_real, 1), test_batch_size=(test_batch_size, 1))
        if (mean is None) != (std is None):
            raise InputError("data.mean and data.std go together: give both, or neither to have them measured.")
        if std is not None and not all(0 < value < math.inf for value in std):
            raise InputError(f"data.std must be above 0 in every channel, got {std}.")
        if mean is not None and not all(math.isfinite(value) for value in mean):
            raise InputError(f"data.mean must be a number in every channel, got {mean}.")
        self.batch_real = batch_real
        self.test_batch_size = test_batch_size
        self.given_mean, self.given_std = mean or self.default_mean, std or self.default_std
        self.own_statistics = mean is not None
        self.in_memory, self.validation = in_memory, validation
        self.real: RealImages | None = None
        self.split: Literal["test", "validation"] = "test"
        self._held: RealImages | None = None
        self._fingerprint: str | None = None
        self._warned = False

    @abstractmethod
    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """Reads the training and the test split, and the names of the classes."""

    @property
    def dataset_name(self) -> str:
        """Name of the dataset, in results and titles."""
        return type(self).__name__

    @property
    def title(self) -> str:
        """Name in results and titles: of the dataset, and of what takes the place of its test set."""
        return self.dataset_name if self.split == "test" else f"{self.dataset_name}{_HELD_OUT}{self.validation}"

    @property
    def grey(self) -> Tensor:
        """A pixel of 0.5, normalised, ``(C,)``."""
        return (0.5 - torch.tensor(self.mean)) / torch.tensor(self.std)

    @property
    def test_labels(self) -> Tensor:
        """Labels of the test images, int64, ``(n,)``."""
        return self._test.labels

    def _channels(self, values: Sequence[float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype).view(-1, 1, 1).to(like.device, non_blocking=True)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], float, ``(n, C, H, W)``, minus the mean, over the standard deviation."""
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.std, pixels)

    def denormalize(self, images: Tensor) -> Tensor:
        """Pixels of normalised images, float, ``(n, C, H, W)``; not clamped."""
        return images * self._channels(self.std, images) + self._channels(self.mean, images)

    def clamped(self, images: Tensor, space: str) -> Tensor:
        """Images, normalised or pixels, with their pixels inside [0, 1]."""
        if space == "pixels":
            return images.clamp(0, 1)
        return images.clamp(self.normalize(torch.zeros_like(images[:1])), self.normalize(torch.ones_like(images[:1])))

    def setup(self, stage: str | None = None) -> None:
        """Reads, checks and normalises the images, once."""
        if self.real is not None:
            return
        train, test, class_names = self.load()
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self._check_labels(train[1], test[1])
        held: Split | None = None
        if self.validation:
            kept, others = hold_out(train[1], self.validation)
            train, held = _part(train, kept), _part(train, others)
        images = train[0]
        first = images[0] if isinstance(images, Tensor) else to_tensor(item_of(images, 0, class_names)[0])
        self.channels, self.image_size = first.shape[0], (first.shape[1], first.shape[2])
        fit_threads(first.shape)
        self._set_statistics(images)
        self.real, self._test = self._prepared(train), self._prepared(test)
        self._held = held and self._prepared(held)
        if self.batch_real != _BATCH_REAL:  # nobody asked for the paper's
            self.warn_of_small_classes()

    def warn_of_small_classes(self) -> None:
        """Says, once, which classes have fewer real images than a matching step asks for."""
        assert self.real is not None
        few = [n for n in self.real.counts() if n < self.batch_real]
        if few and not self._warned:
            self._warned = True
            rank_zero_only(log.warning)(
                f"{self.dataset_name}: {len(few)} of {self.num_classes} classes have fewer than "
                f"batch_real={self.batch_real} training images (the smallest {min(few)}); "
                "their matching steps use all they have."
            )

    def _check_labels(self, train: Tensor, test: Tensor) -> None:
        if self.num_classes < 2:
            raise InputError(
                f"{self.dataset_name} needs at least two classes, but has {list(self.class_names)}; images lie in one "
                "folder a class."
            )
        if not len(test):
            raise InputError(
                f"{self.dataset_name} has no test images, so nothing could be evaluated; add a test split."
            )
        for split, labels in (("training", train), ("test", test)):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise InputError(
                    f"{self.dataset_name}: {split} labels must be in 0..{self.num_classes - 1}, one for each "
                    f"class name, got {int(labels.min())}..{int(labels.max())}; a target_transform can shift them."
                )
        counted = [torch.bincount(labels, minlength=self.num_classes) for labels in (train, test)]
        names = [f"{label} ({name})" for label, name in enumerate(self.class_names)]
        untrained, untested = (
            ", ".join(name for name, count in zip(names, counts.tolist(), strict=True) if not count)
            for counts in counted
        )
        if untrained:
            raise InputError(
                f"{self.dataset_name}: every class needs at least one training image, but there is none of class "
                f"{untrained}; add images or leave the class out."
            )
        if untested:
            rank_zero_only(log.warning)(
                f"{self.dataset_name} has no test image of class {untested}: accuracies say nothing of it."
            )

    def _set_statistics(self, train: Tensor | Dataset) -> None:
        if self.given_mean is None or self.given_std is None:
            self.mean, self.std = measure(train, self.class_names)
            return
        self.mean, self.std = tuple(self.given_mean), tuple(self.given_std)
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise InputError(
                f"data.mean and data.std need one value per channel: the images have {self.channels}, got "
                f"{len(self.mean)} and {len(self.std)}."
            )

    def _normalize(self, images: Tensor) -> Tensor:
        images = images.float().div_(255) if images.dtype == torch.uint8 else images.float().clone()
        return images.sub_(self._channels(self.mean, images)).div_(self._channels(self.std, images))

    def _prepared(self, split: Split) -> RealImages:
        data, labels = split
        images = ImagesInMemory(self._normalize(data)) if isinstance(data, Tensor) else ImagesOnDisk(data, self._read)
        return RealImages(images, labels, self.class_names, (self.channels, *self.image_size), self.batch_real)

    def _read(self, dataset: Dataset, row: int) -> Tensor:
        return self._normalize(to_tensor(item_of(dataset, row, self.class_names)[0]))

    def held_out(self) -> "CondensationDataModule":
        """The same with the training images that were held out in place of the test set.

        Raises:
            InputError: if none were.
        """
        if self.split == "validation":
            return self
        if self._held is None:
            raise InputError(
                f"{self.dataset_name} has no training images held out to test on; give data.validation, such as 0.1."
            )
        found = copy.copy(self)
        found._fingerprint, found.split, found._test = None, "validation", self._held
        return found

    def of_classes(self, classes: Sequence[int]) -> "CondensationDataModule":
        """The images of two or more classes, which are numbered in the order given; mean and std stay those of all."""
        assert self.real is not None
        found = copy.copy(self)
        found._fingerprint = None
        found.real, found._test = self.real.of_classes(classes), self._test.of_classes(classes)
        found._held = self._held and self._held.of_classes(classes)
        found.class_names, found.num_classes = found.real.class_names, len(classes)
        return found

    @property
    def fingerprint(self) -> str:
        """Of what a training or a test depends on: names, shape, statistics, labels, some images of both splits."""
        if self._fingerprint is None:
            assert self.real is not None
            about = [self.title, self.class_names, self.channels, self.image_size, self.mean, self.std]
            digest = hashlib.blake2b(repr(about).encode(), digest_size=16)
            for split in (self.real, self._test):
                some = torch.arange(len(split.labels))[:: max(len(split.labels) // 32, 1)]
                for tensor in (split.labels, split.take(some)):
                    digest.update(tensor.cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def train_dataloader(self) -> DataLoader:
        """As many items as an outer iteration has matching steps, each the `RealImages` to draw from."""
        assert self.real is not None
        steps = 1 if self.trainer is None else getattr(self.trainer.lightning_module, "outer_steps", 1)
        return _StepLoader(cast(Dataset, [self.real] * steps), batch_size=None)

    def test_dataloader(self) -> DataLoader:
        """Batches of (images, labels), normalised, in order."""
        rows = cast(Dataset, range(len(self.test_labels)))
        return DataLoader(rows, batch_size=self.test_batch_size, collate_fn=self._test.batch)

    def move(self, device: torch.device) -> None:
        """Moves the images to a device, once."""
        assert self.real is not None
        self.real = self.real.to(device)
        self._test = self._test.to(device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves all images at the first step, so that no later one copies any."""
        if not isinstance(batch, RealImages):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if self.real is batch:
            self.move(device)
        assert self.real is not None
        return self.real


def hold_out(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Rows of two parts of a dataset, in order; the second has the share of each class, rounded, at least one.

    Raises:
        InputError: if a class has a single image.
    """
    held = []
    for label in labels.unique().tolist():
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) < 2:
            raise InputError(f"data.validation needs two training images of every class, but class {label} has one.")
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held.append(rows[torch.randperm(len(rows), generator=derive_generator(0, "validation", label))[:count]])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(held)] = True
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()


def _part(split: Split, rows: Tensor) -> Split:
    images, labels = split
    return images[rows] if isinstance(images, Tensor) else Subset(images, rows.tolist()), labels[rows]


def to_tensor(image: Any) -> Tensor:
    """PIL image, array or tensor to a tensor ``(C, H, W)``, uint8 or float in [0, 1]."""
    tensor = v2.functional.to_image(image).as_subclass(Tensor) if not isinstance(image, Tensor) else image
    if tensor.dim() == 2:
        tensor = tensor[None]
    if tensor.dim() != 3:
        raise InputError(f"An image must have shape (C, H, W) or (H, W), got {tuple(tensor.shape)}.")
    if tensor.dtype == torch.uint8:
        return tensor
    if tensor.is_floating_point() and float(tensor.min()) >= 0 and float(tensor.max()) <= 1:
        return tensor.float()
    raise InputError(
        f"A dataset must give images as uint8 or as floats in [0, 1], got {tensor.dtype} in "
        f"[{float(tensor.min()):.3g}, {float(tensor.max()):.3g}]; leave normalisation to the data module."
    )


def measure(images: Tensor | Dataset, names: Sequence[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1]; of a dataset on disk from at most 10,000 images."""
    if isinstance(images, Tensor):
        batches = images.split(1000)
    else:
        count = len(cast(Sequence, images))
        chosen = torch.randperm(count, generator=derive_generator(0, "statistics"))[:10_000]
        batches = tuple(to_tensor(item_of(images, row, names)[0])[None] for row in chosen.tolist())
    pixels, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for batch in batches:
        values = (batch.double() / 255 if batch.dtype == torch.uint8 else batch.double()).transpose(0, 1).flatten(1)
        pixels += values.shape[1]
        total = total + values.sum(1)
        squares = squares + values.square().sum(1)
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(max(value, 1e-6) for value in std.tolist())


def item_of(dataset: Any, row: int, names: Sequence[str] | None = None) -> tuple[Any, int]:
    """Image and label of an item: (image, label), or a mapping with the keys image (or img) and label.

    A label is an integer, a vector with a single one in it, or one of the names of the classes.

    Raises:
        InputError: if the item is of another form; shows it.
    """
    item = dataset[row]
    if isinstance(item, Mapping):
        image = item.get("image", item.get("img"))
        label = item.get("label")
    else:
        image, label = item if isinstance(item, tuple | list) and len(item) == 2 else (None, None)
    number = None if image is None else _as_number(label, names)
    if number is None:
        raise InputError(
            "The items of a dataset must be (image, label) with an integer label, or mappings with image and label; "
            f"item {row} is {_described(item)}."
        )
    return image, number


def _as_number(label: Any, names: Sequence[str] | None) -> int | None:
    if isinstance(label, str):
        return list(names).index(label) if names is not None and label in names else None
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    try:
        values = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        return None
    if values.numel() == 1 and not values.is_floating_point() and values.dtype != torch.bool:
        return int(values)
    if values.dim() == 1 and len(values) > 1 and int((values == 1).sum()) == int((values != 0).sum()) == 1:
        return int(values.argmax())
    return None


def _described(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a mapping with the keys {', '.join(map(str, item))}"
    if isinstance(item, tuple | list):
        return f"({', '.join(_described(part) for part in item)})"
    if hasattr(item, "shape"):
        return f"{type(item).__name__}{tuple(item.shape)}"
    return repr(item) if isinstance(item, str | int | float | type(None)) else type(item).__name__


def stack(dataset: Dataset, names: Sequence[str] | None = None) -> Split:
    """All images of a dataset, of one size, in memory; see `item_of`."""
    images: list[Tensor] = []
    labels: list[int] = []
    for row in range(len(cast(Sequence, dataset))):
        image, label = item_of(dataset, row, names)
        tensor = to_tensor(image)
        if images and tensor.shape != images[0].shape:
            raise InputError(ONE_SHAPE.format(tuple(images[0].shape), tuple(tensor.shape)))
        images.append(tensor)
        labels.append(label)
    if not images:
        raise InputError("The dataset has no images.")
    if any(image.is_floating_point() for image in images):
        images = [in_unit_range(image) for image in images]
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)


def labels_of(dataset: Any, names: Sequence[str] | None = None) -> Tensor:
    """Labels of all items: ``targets``, as reading images takes long, where nothing transforms them and items agree."""
    count, targets = len(dataset), getattr(dataset, "targets", None)
    if targets is not None and len(targets) == count and getattr(dataset, "target_transform", None) is None:
        found = [_as_number(target, names) for target in targets]
        rows = range(0, count, max(count // 20, 1))
        if None not in found and all(found[row] == item_of(dataset, row, names)[1] for row in rows):
            return torch.tensor(cast(list[int], found))
    return torch.tensor([item_of(dataset, row, names)[1] for row in range(count)])
