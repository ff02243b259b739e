"""Datasets: scikit-learn's digits, torchvision's of the paper, and any other dataset class."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2

from dc_lightning.data.datamodule import CondensationDataModule, Split, labels_of, stack
from dc_lightning.errors import InputError, require_at_least, with_place

_WITHOUT_FLIP = "color_crop_cutout_scale_rotate"  # mirrored digits are others; authors' code of DSA
_DIGITS = tuple(str(digit) for digit in range(10))
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")


class Digits(CondensationDataModule):
    """scikit-learn's handwritten digits: 1,797 images of 8x8 pixels inside the package, no download.

    A fifth of each class, always the same, is the test set.
    """

    strategy = _WITHOUT_FLIP

    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """See `CondensationDataModule.load`."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        labels = torch.from_numpy(digits.target).long()
        train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=digits.target, random_state=0)
        return (images[train], labels[train]), (images[test], labels[test]), _DIGITS


class _Torchvision(CondensationDataModule):
    """A dataset of torchvision's, downloaded where it is missing.

    Args:
        root: folder of the data.
        download: fetch the files if they are not there.
        image_size: height and width in pixels that images are resized to; None keeps theirs.
        channels: 3 repeats the channel of grey images; None keeps what there is.
        **kwargs: see `CondensationDataModule`.

    Raises:
        InputError: if images would get another number of channels, or no pixel.

    Attributes:
        source: torchvision's class.
        files: of the dataset, below ``root``.
        names: of the classes; None takes the dataset's.
    """

    source: Any
    files: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        image_size: int | None = None,
        channels: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if channels not in (None, 3):
            raise InputError(f"data.channels must be 3 (grey images repeated), or left out, got {channels}.")
        require_at_least("data.", image_size=(image_size, 1))
        self.root = root
        self.download = download
        self.resize_to, self.wanted_channels = image_size, channels
        if channels and len(self.given_mean or ()) == len(self.given_std or ()) == 1:
            self.given_mean, self.given_std = 3 * tuple(self.given_mean or ()), 3 * tuple(self.given_std or ())

    def make_dataset(self, train: bool, download: bool = False) -> Any:
        """Torchvision's dataset of one split."""
        return self.source(self.root, train=train, download=download)

    def prepare_data(self) -> None:
        """Downloads what is missing, on one process."""
        for train in (True, False):
            try:
                self.make_dataset(train, self.download)
            except Exception as error:  # missing or damaged, or whatever the network or the disk answers
                expected = ", ".join(str(Path(self.root, file)) for file in self.files)
                cause = "could not be downloaded" if self.download else "data.download is false"
                raise InputError(
                    f"{self.dataset_name} is not complete in '{self.root}' and {cause} "
                    f"({' '.join(str(error).split())[:200]}); put these files there, or point data.root at them: "
                    f"{expected}."
                ) from error

    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """See `CondensationDataModule.load`."""
        train, test = self.make_dataset(True), self.make_dataset(False)
        return self._tensors(train), self._tensors(test), self.names or train.classes

    def _tensors(self, dataset: Any) -> Split:
        """Images and labels, without a loop over the dataset."""
        images, labels = torch.as_tensor(dataset.data), getattr(dataset, "targets", None)
        if images.dim() == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2)
        if self.resize_to:
            images = v2.functional.resize(images, [self.resize_to, self.resize_to], antialias=True)
        if self.wanted_channels:
            images = images.expand(-1, self.wanted_channels, -1, -1)
        return images, torch.as_tensor(dataset.labels if labels is None else labels).long()


class MNIST(_Torchvision):
    """MNIST, 28x28, one channel; the paper evaluates it with augmentation."""

    augmentation = ("crop", "scale", "rotate")
    strategy = _WITHOUT_FLIP
    usual_side = 28
    default_mean, default_std = (0.1307,), (0.3081,)
    source, names = datasets.MNIST, _DIGITS
    files = tuple(f"MNIST/raw/{file}" for file in _IDX_FILES)


class FashionMNIST(_Torchvision):
    """Fashion-MNIST, 28x28, one channel."""

    default_mean, default_std = (0.2861,), (0.3530,)
    source = datasets.FashionMNIST
    files = tuple(f"FashionMNIST/raw/{file}" for file in _IDX_FILES)


class SVHN(_Torchvision):
    """Street View House Numbers, 32x32, three channels; the "extra" images are not used, as in the paper."""

    strategy = _WITHOUT_FLIP
    default_mean, default_std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    source, names = datasets.SVHN, _DIGITS
    files = ("train_32x32.mat", "test_32x32.mat")

    def make_dataset(self, train: bool, download: bool = False) -> Any:
        """See `_Torchvision`."""
        return datasets.SVHN(self.root, split="train" if train else "test", download=download)


class CIFAR10(_Torchvision):
    """CIFAR10, 32x32, three channels."""

    network_images = 2000
    default_mean, default_std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    source = datasets.CIFAR10
    files = tuple(f"cifar-10-batches-py/{name}" for name in _CIFAR10_FILES)


class CIFAR100(_Torchvision):
    """CIFAR100, 32x32, three channels."""

    network_images = 2000
    default_mean, default_std = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
    source = datasets.CIFAR100
    files = ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta")


class TorchDataset(CondensationDataModule):
    """Any dataset class whose items are (image, label), such as torchvision's, given by class path.

    Args:
        train: makes the training set; images as PIL images, uint8 or floats in [0, 1], labels from 0.
        test: makes the test set.
        class_names: one name a class; None takes the dataset's ``classes``, or else numbers.
        **kwargs: see `CondensationDataModule`.
    """

    def __init__(
        self,
        train: Callable[[], Dataset],
        test: Callable[[], Dataset],
        class_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
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
            raise InputError(
                f"The dataset cannot be made: {with_place(error)}; see the arguments of data.train and "
                "data.test, and whether its files are there."
            ) from error
        self._name = type(train).__name__
        names = self.given_class_names or getattr(train, "classes", None)
        first, second = (
            stack(dataset, names) if self.in_memory else (dataset, labels_of(dataset, names))
            for dataset in (train, test)
        )
        return first, second, names or [str(label) for label in range(int(first[1].max()) + 1)]


class USPS(_Torchvision):
    """USPS, handwritten digits of 16x16, one channel."""

    strategy = _WITHOUT_FLIP
    source, names = datasets.USPS, _DIGITS
    files = ("usps.bz2", "usps.t.bz2")


class Stream(CondensationDataModule):
    """Datasets of the same classes and image shape that come one after the other; by itself it is the first of them.

    Args:
        stages: the datasets, two or more.

    Raises:
        InputError: if there are fewer, or (at `setup`) if their classes or shapes differ.
    """

    def __init__(self, stages: list[CondensationDataModule]) -> None:
        if len(stages) < 2:
            raise InputError(f"data.stages must be two datasets or more, got {len(stages)}.")
        first = stages[0]
        super().__init__(first.batch_real, first.test_batch_size, validation=first.validation)
        self.stages = stages
        self.augmentation, self.strategy, self.network_images = first.augmentation, first.strategy, first.network_images

    @property
    def dataset_name(self) -> str:
        """Names of the datasets in their order."""
        return "-".join(stage.dataset_name for stage in self.stages)

    def prepare_data(self) -> None:
        """Downloads what is missing, on one process."""
        for stage in self.stages:
            stage.prepare_data()

    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """See `CondensationDataModule.load`."""
        return self.stages[0].load()

    def setup(self, stage: str | None = None) -> None:
        """Reads all datasets."""
        first = self.stages[0]
        for each in self.stages:
            each.setup(stage)
            shape, wanted = (each.channels, *each.image_size), (first.channels, *first.image_size)
            if (each.class_names, shape) != (first.class_names, wanted):
                raise InputError(
                    f"The datasets of a stream need the same classes and one image shape: {each.title} has "
                    f"{each.num_classes} classes of {shape}, {first.title} {first.num_classes} of {wanted}; see "
                    "image_size and channels of the datasets."
                )
        self._take_first()

    def held_out(self) -> "Stream":
        """See `CondensationDataModule.held_out`."""
        found = copy.copy(self)
        found.split, found.stages = "validation", [stage.held_out() for stage in self.stages]
        found._take_first()
        return found

    def _take_first(self) -> None:
        first = self.stages[0]
        for name in ("class_names", "num_classes", "channels", "image_size", "mean", "std", "real", "_test"):
            setattr(self, name, getattr(first, name))
        self._fingerprint = None
