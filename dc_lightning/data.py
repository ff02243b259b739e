"""Real data: images of every class on demand for the matching, the test set for the evaluation.

Images are held once in memory, normalised once, and moved once to the device; a batch is an index. A dataset is one
small subclass of `CondensationDataModule`; any other comes in through `ImageFolder` or `TorchDataset`.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

from dc_lightning.errors import InputError
from dc_lightning.seeds import derive_generator

log = logging.getLogger(__name__)

_ONE_SHAPE = (
    "All images must have one shape, but there are {} and {}; give data.image_size and data.channels, or a dataset "
    "whose transform resizes."
)

Split = tuple[Tensor | Dataset, Tensor]
"""Images, ``(n, C, H, W)`` uint8 or float in [0, 1], or a dataset of them; and labels, ``(n,)`` int64."""


class _Images(Protocol):
    """Normalised images by row number."""

    def take(self, rows: Tensor) -> Tensor: ...
    def to(self, device: torch.device) -> "_Images": ...
    def __len__(self) -> int: ...


class _ImagesInMemory:
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def take(self, rows: Tensor) -> Tensor:
        return self.images.index_select(0, rows.to(self.images.device, non_blocking=True))

    def to(self, device: torch.device) -> "_ImagesInMemory":
        return self if self.images.device == device else _ImagesInMemory(self.images.to(device))

    def __len__(self) -> int:
        return len(self.images)


class _ImagesOnDisk:
    """Reads rows when they are asked for, in threads: decoding images releases Python's lock."""

    def __init__(self, dataset: Dataset, device: torch.device, threads: int = 8) -> None:
        self.dataset, self.device, self.threads = dataset, device, threads

    def take(self, rows: Tensor) -> Tensor:
        with ThreadPoolExecutor(self.threads) as pool:
            images = list(pool.map(lambda row: self.dataset[row][0], rows.tolist()))
        if len({image.shape for image in images}) > 1:
            raise InputError(_ONE_SHAPE.format(*sorted({tuple(image.shape) for image in images})[:2]))
        return torch.stack(images).to(self.device)

    def to(self, device: torch.device) -> "_ImagesOnDisk":
        return self if self.device == device else _ImagesOnDisk(self.dataset, device, self.threads)

    def __len__(self) -> int:
        return len(cast(Sequence, self.dataset))


class RealImages:
    """The real training images, drawn class by class.

    Args:
        images: normalised images by row number.
        labels: int64, ``(n,)``, in [0, num_classes).
        num_classes: number of classes.
        batch_real: images of one class a matching step.
    """

    def __init__(self, images: _Images, labels: Tensor, num_classes: int, batch_real: int) -> None:
        self._images = images
        self.labels = labels
        self.num_classes = num_classes
        self.batch_real = batch_real
        self.rows = [torch.nonzero(labels == label).flatten() for label in range(num_classes)]

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
        return self._images.take(rows[order[: self.batch_real if count is None else count]])

    def take(self, rows: Tensor) -> Tensor:
        """Images by row number, ``(n,)`` to ``(n, C, H, W)``, normalised."""
        return self._images.take(rows)

    def to(self, device: torch.device) -> "RealImages":
        """The same images on another device."""
        images = self._images.to(device)
        return self if images is self._images else RealImages(images, self.labels, self.num_classes, self.batch_real)


class _Steps(Dataset):
    """The same real images at every matching step: what is drawn from them is up to the step."""

    def __init__(self, real: RealImages, steps: int) -> None:
        self.real, self.steps = real, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> RealImages:
        return self.real


class _StepLoader(DataLoader):
    """All its items are the same, so that it goes on anywhere; Lightning asks these two methods of such a loader."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class _Prepared(Dataset):
    """Any dataset of (image, label), as normalised tensors."""

    def __init__(self, dataset: Dataset, prepare: Callable[[Any], Tensor], labels: Tensor) -> None:
        self.dataset, self.prepare, self.labels = dataset, prepare, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.prepare(self.dataset[index][0]), self.labels[index]


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

    Attributes:
        augmentation: what evaluation on this dataset applies to the synthetic images, see `dc_lightning.augmentation`.
    """

    augmentation: tuple[str, ...] = ()
    default_mean: tuple[float, ...] | None = None
    default_std: tuple[float, ...] | None = None

    def __init__(
        self,
        batch_real: int = 256,
        test_batch_size: int = 256,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        in_memory: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("batch_real", batch_real), ("test_batch_size", test_batch_size)):
            if value < 1:
                raise InputError(f"data.{name} must be at least 1 (images), got {value}.")
        if (mean is None) != (std is None):
            raise InputError("data.mean and data.std go together: give both, or neither to have them measured.")
        if std is not None and not all(0 < value < math.inf for value in std):
            raise InputError(f"data.std must be above 0 in every channel, got {std}.")
        if mean is not None and not all(math.isfinite(value) for value in mean):
            raise InputError(f"data.mean must be a number in every channel, got {mean}.")
        self.batch_real = batch_real
        self.test_batch_size = test_batch_size
        self.given_mean, self.given_std = mean or self.default_mean, std or self.default_std
        self.in_memory = in_memory
        self.real: RealImages | None = None

    @abstractmethod
    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """Reads the training and the test split, and the names of the classes."""

    @property
    def dataset_name(self) -> str:
        """Name of the dataset, in results and titles."""
        return type(self).__name__

    def setup(self, stage: str | None = None) -> None:
        """Reads, checks and normalises the images, once."""
        if self.real is not None:
            return
        (train, train_labels), (test, test_labels), class_names = self.load()
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self._check_labels(train_labels, test_labels)
        first = train[:1] if isinstance(train, Tensor) else to_tensor(train[0][0])[None]
        self.channels, self.image_size = first.shape[1], (first.shape[2], first.shape[3])
        self._set_statistics(train)
        self.real = RealImages(
            self._prepared(train, train_labels), train_labels, self.num_classes, batch_real=self.batch_real
        )
        self._test = self._prepared(test, test_labels)
        self._test_labels = test_labels
        few = [n for n in self.real.counts() if n < self.batch_real]
        if few:
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
                    f"class name, got {int(labels.min())}..{int(labels.max())}."
                )
        counts = torch.bincount(train, minlength=self.num_classes)
        empty = [f"{label} ({self.class_names[label]})" for label in range(self.num_classes) if not counts[label]]
        if empty:
            raise InputError(
                f"{self.dataset_name}: every class needs at least one training image, but there is none of class "
                f"{', '.join(empty)}; add images or leave the class out."
            )

    def _set_statistics(self, train: Tensor | Dataset) -> None:
        if self.given_mean is None or self.given_std is None:
            mean, std = _measure(train)
        else:
            mean, std = tuple(self.given_mean), tuple(self.given_std)
            if len(mean) != self.channels or len(std) != self.channels:
                raise InputError(
                    f"data.mean and data.std need one value per channel: the images have {self.channels}, got "
                    f"{len(mean)} and {len(std)}."
                )
        self.mean, self.std = mean, std

    def _normalize(self, images: Tensor) -> Tensor:
        images = images.float().div_(255) if images.dtype == torch.uint8 else images.float().clone()
        shape = (-1, 1, 1)
        return images.sub_(torch.tensor(self.mean).view(shape)).div_(torch.tensor(self.std).view(shape))

    def _prepared(self, images: Tensor | Dataset, labels: Tensor) -> _Images:
        if isinstance(images, Tensor):
            return _ImagesInMemory(self._normalize(images))
        return _ImagesOnDisk(
            _Prepared(images, lambda image: self._normalize(to_tensor(image)), labels), torch.device("cpu")
        )

    def train_dataloader(self) -> DataLoader:
        """As many items as an outer iteration has matching steps, each the `RealImages` to draw from."""
        assert self.real is not None
        steps = 1 if self.trainer is None else getattr(self.trainer.lightning_module, "outer_steps", 1)
        return _StepLoader(_Steps(self.real, steps), batch_size=None)

    def test_dataloader(self) -> DataLoader:
        """Batches of (images, labels), normalised, in order."""
        if isinstance(self._test, _ImagesInMemory):
            tensors = TensorDataset(self._test.images, self._test_labels.to(self._test.images.device))
            return DataLoader(
                tensors, sampler=BatchSampler(SequentialSampler(tensors), self.test_batch_size, False), batch_size=None
            )
        return DataLoader(cast(_ImagesOnDisk, self._test).dataset, batch_size=self.test_batch_size)

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


def _measure(images: Tensor | Dataset, most: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1]; of a dataset on disk from at most ``most`` images."""
    if isinstance(images, Tensor):
        batches = images.split(1000)
    else:
        count = len(cast(Sequence, images))
        chosen = torch.randperm(count, generator=derive_generator(0, "statistics"))[:most]
        batches = tuple(to_tensor(images[row][0])[None] for row in chosen.tolist())
    pixels, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for batch in batches:
        values = (batch.double() / 255 if batch.dtype == torch.uint8 else batch.double()).transpose(0, 1).flatten(1)
        pixels += values.shape[1]
        total = total + values.sum(1)
        squares = squares + values.square().sum(1)
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(max(value, 1e-6) for value in std.tolist())


def _stack(dataset: Dataset) -> Split:
    """All images of a dataset of (image, label), of one size, in memory."""
    images: list[Tensor] = []
    labels: list[int] = []
    for row in range(len(cast(Sequence, dataset))):
        image, label = dataset[row]
        tensor = to_tensor(image)
        if images and tensor.shape != images[0].shape:
            raise InputError(_ONE_SHAPE.format(tuple(images[0].shape), tuple(tensor.shape)))
        images.append(tensor)
        labels.append(int(label))
    if not images:
        raise InputError("The dataset has no images.")
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)


class Digits(CondensationDataModule):
    """scikit-learn's handwritten digits: 1,797 images of 8x8 pixels inside the package, no download.

    A fifth of each class, drawn once and for all, is the test set.
    """

    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """See `CondensationDataModule.load`."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        labels = torch.from_numpy(digits.target).long()
        train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=digits.target, random_state=0)
        return (images[train], labels[train]), (images[test], labels[test]), [str(name) for name in range(10)]


class _Torchvision(CondensationDataModule):
    """A dataset of torchvision's, downloaded where it is missing.

    Args:
        root: folder of the data.
        download: fetch the files if they are not there.
        batch_real: see `CondensationDataModule`.
        test_batch_size: see `CondensationDataModule`.
        mean: see `CondensationDataModule`.
        std: see `CondensationDataModule`.
    """

    files: tuple[str, ...] = ()

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        batch_real: int = 256,
        test_batch_size: int = 256,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__(batch_real, test_batch_size, mean, std)
        self.root = root
        self.download = download

    @abstractmethod
    def _dataset(self, train: bool, download: bool = False) -> Any:
        """Torchvision's dataset of one split."""

    @abstractmethod
    def _tensors(self, dataset: Any) -> Split:
        """Its images and labels, without a loop over the dataset."""

    def _names(self, dataset: Any) -> Sequence[str]:
        return cast(Sequence[str], dataset.classes)

    def prepare_data(self) -> None:
        """Downloads what is missing, on one process.

        Raises:
            InputError: if the files are not there and cannot be downloaded; names them and their place.
        """
        for train in (True, False):
            try:
                self._dataset(train)
            except Exception as missing:  # not there, or damaged in whatever way
                reason: Exception = missing
                if self.download:
                    try:
                        self._dataset(train, download=True)
                        continue
                    except Exception as failed:  # whatever the network, the mirror or the disk answers
                        reason = failed
                expected = ", ".join(str(Path(self.root, file)) for file in self.files)
                cause = "could not be downloaded" if self.download else "data.download is false"
                raise InputError(
                    f"{self.dataset_name} is not complete in '{self.root}' and {cause} "
                    f"({' '.join(str(reason).split())[:200]}); put these files there, or point data.root at them: "
                    f"{expected}."
                ) from reason

    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """See `CondensationDataModule.load`."""
        train, test = self._dataset(True), self._dataset(False)
        return self._tensors(train), self._tensors(test), self._names(train)


_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class MNIST(_Torchvision):
    """MNIST, 28x28, one channel; the paper evaluates it with augmentation."""

    augmentation = ("crop", "scale", "rotate")
    default_mean, default_std = (0.1307,), (0.3081,)
    files = tuple(f"MNIST/raw/{file}" for file in _IDX_FILES)

    def _dataset(self, train: bool, download: bool = False) -> Any:
        return datasets.MNIST(self.root, train=train, download=download)

    def _tensors(self, dataset: Any) -> Split:
        return dataset.data[:, None], dataset.targets.long()

    def _names(self, dataset: Any) -> Sequence[str]:
        return [str(digit) for digit in range(10)]


class FashionMNIST(_Torchvision):
    """Fashion-MNIST, 28x28, one channel."""

    default_mean, default_std = (0.2861,), (0.3530,)
    files = tuple(f"FashionMNIST/raw/{file}" for file in _IDX_FILES)

    def _dataset(self, train: bool, download: bool = False) -> Any:
        return datasets.FashionMNIST(self.root, train=train, download=download)

    def _tensors(self, dataset: Any) -> Split:
        return dataset.data[:, None], dataset.targets.long()


class SVHN(_Torchvision):
    """Street View House Numbers, 32x32, three channels; the "extra" images are not used, as in the paper."""

    default_mean, default_std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    files = ("train_32x32.mat", "test_32x32.mat")

    def _dataset(self, train: bool, download: bool = False) -> Any:
        return datasets.SVHN(self.root, split="train" if train else "test", download=download)

    def _tensors(self, dataset: Any) -> Split:
        return torch.from_numpy(dataset.data), torch.from_numpy(dataset.labels).long()

    def _names(self, dataset: Any) -> Sequence[str]:
        return [str(digit) for digit in range(10)]


class CIFAR10(_Torchvision):
    """CIFAR10, 32x32, three channels."""

    default_mean, default_std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    files = (
        *(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        *("cifar-10-batches-py/test_batch", "cifar-10-batches-py/batches.meta"),
    )

    def _dataset(self, train: bool, download: bool = False) -> Any:
        return datasets.CIFAR10(self.root, train=train, download=download)

    def _tensors(self, dataset: Any) -> Split:
        return torch.from_numpy(dataset.data).permute(0, 3, 1, 2), torch.tensor(dataset.targets)


class CIFAR100(CIFAR10):
    """CIFAR100, 32x32, three channels."""

    default_mean, default_std = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
    files = ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta")

    def _dataset(self, train: bool, download: bool = False) -> Any:
        return datasets.CIFAR100(self.root, train=train, download=download)


def _open(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except OSError as error:
        raise InputError(f"'{path}' is no image that can be read ({error}); mend or remove it.") from error


class ImageFolder(CondensationDataModule):
    """A tree of image files, one folder a class.

    ``root`` has either ``train`` and ``test`` (or ``val``) with the classes' folders below, or ``train`` alone, or the
    classes' folders themselves; then a seeded share of every class becomes the test set.

    Args:
        root: folder of the tree.
        image_size: height and width to resize to; None if all files have one size.
        channels: 1 (grey) or 3 (RGB); None takes that of the first file.
        test_fraction: share of every class for testing, where ``root`` has no ``test`` or ``val``.
        batch_real: see `CondensationDataModule`.
        test_batch_size: see `CondensationDataModule`.
        mean: see `CondensationDataModule`.
        std: see `CondensationDataModule`.
        in_memory: see `CondensationDataModule`.
    """

    def __init__(
        self,
        root: str,
        image_size: tuple[int, int] | None = None,
        channels: int | None = None,
        test_fraction: float = 0.2,
        batch_real: int = 256,
        test_batch_size: int = 256,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        in_memory: bool = True,
    ) -> None:
        super().__init__(batch_real, test_batch_size, mean, std, in_memory)
        if channels not in (None, 1, 3):
            raise InputError(f"data.channels must be 1 (grey) or 3 (RGB), got {channels}.")
        if image_size is not None and min(image_size) < 1:
            raise InputError(f"data.image_size must be at least 1x1 pixel (height, width), got {image_size}.")
        if not 0 < test_fraction < 1:
            raise InputError(f"data.test_fraction must be between 0 and 1, got {test_fraction}.")
        self.root = root
        self.resize_to = image_size
        self.force_channels = channels
        self.test_fraction = test_fraction

    @property
    def dataset_name(self) -> str:
        """Name of the folder."""
        return Path(self.root).resolve().name

    def _tree(self, folder: Path) -> datasets.ImageFolder:
        if not folder.is_dir():
            raise InputError(f"data.root must be a folder with one folder of images a class; '{folder}' is none.")
        try:
            tree = datasets.ImageFolder(str(folder), loader=_open)
        except FileNotFoundError as empty:  # a class without a file, or no class at all
            raise InputError(f"ImageFolder: {' '.join(str(empty).split())}") from empty
        if self.force_channels is None:
            self.force_channels = 1 if _open(tree.samples[0][0]).mode in ("1", "L", "I", "I;16", "LA") else 3
        convert = v2.Grayscale(1) if self.force_channels == 1 else v2.RGB()
        resize = [v2.Resize(self.resize_to, antialias=True)] if self.resize_to else []
        tree.transform = v2.Compose([lambda image: image.convert("RGB"), convert, *resize, v2.PILToTensor()])
        return tree

    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """See `CondensationDataModule.load`."""
        root = Path(self.root)
        test_folder = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
        if (root / "train").is_dir() and test_folder is not None:
            train_tree, test_tree = self._tree(root / "train"), self._tree(test_folder)
            if train_tree.classes != test_tree.classes:
                differing = sorted(set(train_tree.classes) ^ set(test_tree.classes))
                raise InputError(
                    f"'{root}/train' and '{test_folder}' must have the same class folders; they differ in {differing}."
                )
            return self._split(train_tree), self._split(test_tree), train_tree.classes
        from sklearn.model_selection import train_test_split

        tree = self._tree(root / "train" if (root / "train").is_dir() else root)
        try:
            train, test = train_test_split(
                range(len(tree)), test_size=self.test_fraction, stratify=tree.targets, random_state=0
            )
        except ValueError as few:
            raise InputError(
                f"'{root}' has no test or val folder and too few images to set a share of every class aside ({few})"
            ) from few
        return self._split(tree, train), self._split(tree, test), tree.classes

    def _split(self, tree: datasets.ImageFolder, rows: Sequence[int] | None = None) -> Split:
        rows = range(len(tree)) if rows is None else rows
        subset = Subset(tree, rows)
        if self.in_memory:
            return _stack(subset)
        return subset, torch.tensor([tree.targets[row] for row in rows])


class TorchDataset(CondensationDataModule):
    """Any dataset class whose items are (image, label), such as torchvision's, given by class path.

    Args:
        train: makes the training set; images as PIL images, uint8 or floats in [0, 1], labels from 0.
        test: makes the test set.
        class_names: one name a class; None takes the dataset's ``classes``, or else numbers.
        batch_real: see `CondensationDataModule`.
        test_batch_size: see `CondensationDataModule`.
        mean: see `CondensationDataModule`.
        std: see `CondensationDataModule`.
        in_memory: see `CondensationDataModule`.
    """

    def __init__(
        self,
        train: Callable[[], Dataset],
        test: Callable[[], Dataset],
        class_names: list[str] | None = None,
        batch_real: int = 256,
        test_batch_size: int = 256,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        in_memory: bool = True,
    ) -> None:
        super().__init__(batch_real, test_batch_size, mean, std, in_memory)
        self.make_train, self.make_test = train, test
        self.given_class_names = class_names
        self._name = type(self).__name__

    def prepare_data(self) -> None:
        """Makes both sets once on one process, so that one alone downloads."""
        self.load()

    @property
    def dataset_name(self) -> str:
        """Name of the dataset's class."""
        return self._name

    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """See `CondensationDataModule.load`."""
        try:
            train, test = self.make_train(), self.make_test()
        except Exception as error:  # whatever a dataset of the user's raises
            reason = " ".join(str(error).split())
            raise InputError(
                f"The dataset cannot be made ({type(error).__name__}: {reason}); see the arguments of data.train and "
                "data.test, and whether its files are there."
            ) from error
        self._name = type(train).__name__
        splits = [self._split(train), self._split(test)]
        names = self.given_class_names or getattr(train, "classes", None)
        return splits[0], splits[1], names or [str(label) for label in range(int(splits[0][1].max()) + 1)]

    def _split(self, dataset: Dataset) -> Split:
        if self.in_memory:
            return _stack(dataset)
        labels = getattr(dataset, "targets", None)
        if labels is None:
            labels = [int(dataset[row][1]) for row in range(len(cast(Sequence, dataset)))]
        return dataset, torch.as_tensor(labels, dtype=torch.int64)
