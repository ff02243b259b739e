"""Datasets: scikit-learn's digits, torchvision's of the paper, and any other dataset class."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset
from torchvision import datasets

from dc_lightning.data.datamodule import CondensationDataModule, Split, stack
from dc_lightning.errors import InputError, with_place

_WITHOUT_FLIP = "color_crop_cutout_scale_rotate"  # mirrored digits are others; authors' code of DSA


class Digits(CondensationDataModule):
    """scikit-learn's handwritten digits: 1,797 images of 8x8 pixels inside the package, no download.

    A fifth of each class, drawn once and for all, is the test set.
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
        return (images[train], labels[train]), (images[test], labels[test]), [str(name) for name in range(10)]


class _Torchvision(CondensationDataModule):
    """A dataset of torchvision's, downloaded where it is missing.

    Args:
        root: folder of the data.
        download: fetch the files if they are not there.
        **kwargs: see `CondensationDataModule`.
    """

    files: tuple[str, ...] = ()

    def __init__(self, root: str = "data", download: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.download = download

    @abstractmethod
    def make_dataset(self, train: bool, download: bool = False) -> Any:
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
                self.make_dataset(train)
            except Exception as missing:  # not there, or damaged in whatever way
                reason: Exception = missing
                if self.download:
                    try:
                        self.make_dataset(train, download=True)
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
        train, test = self.make_dataset(True), self.make_dataset(False)
        return self._tensors(train), self._tensors(test), self._names(train)


_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class MNIST(_Torchvision):
    """MNIST, 28x28, one channel; the paper evaluates it with augmentation."""

    augmentation = ("crop", "scale", "rotate")
    strategy = _WITHOUT_FLIP
    default_mean, default_std = (0.1307,), (0.3081,)
    files = tuple(f"MNIST/raw/{file}" for file in _IDX_FILES)

    def make_dataset(self, train: bool, download: bool = False) -> Any:
        """See `_Torchvision`."""
        return datasets.MNIST(self.root, train=train, download=download)

    def _tensors(self, dataset: Any) -> Split:
        return dataset.data[:, None], dataset.targets.long()

    def _names(self, dataset: Any) -> Sequence[str]:
        return [str(digit) for digit in range(10)]


class FashionMNIST(_Torchvision):
    """Fashion-MNIST, 28x28, one channel."""

    default_mean, default_std = (0.2861,), (0.3530,)
    files = tuple(f"FashionMNIST/raw/{file}" for file in _IDX_FILES)

    def make_dataset(self, train: bool, download: bool = False) -> Any:
        """See `_Torchvision`."""
        return datasets.FashionMNIST(self.root, train=train, download=download)

    def _tensors(self, dataset: Any) -> Split:
        return dataset.data[:, None], dataset.targets.long()


class SVHN(_Torchvision):
    """Street View House Numbers, 32x32, three channels; the "extra" images are not used, as in the paper."""

    strategy = _WITHOUT_FLIP
    default_mean, default_std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    files = ("train_32x32.mat", "test_32x32.mat")

    def make_dataset(self, train: bool, download: bool = False) -> Any:
        """See `_Torchvision`."""
        return datasets.SVHN(self.root, split="train" if train else "test", download=download)

    def _tensors(self, dataset: Any) -> Split:
        return torch.from_numpy(dataset.data), torch.from_numpy(dataset.labels).long()

    def _names(self, dataset: Any) -> Sequence[str]:
        return [str(digit) for digit in range(10)]


_CIFAR10_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


class CIFAR10(_Torchvision):
    """CIFAR10, 32x32, three channels."""

    default_mean, default_std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    files = tuple(f"cifar-10-batches-py/{name}" for name in (*_CIFAR10_BATCHES, "test_batch", "batches.meta"))

    def make_dataset(self, train: bool, download: bool = False) -> Any:
        """See `_Torchvision`."""
        return datasets.CIFAR10(self.root, train=train, download=download)

    def _tensors(self, dataset: Any) -> Split:
        return torch.from_numpy(dataset.data).permute(0, 3, 1, 2), torch.tensor(dataset.targets)


class CIFAR100(CIFAR10):
    """CIFAR100, 32x32, three channels."""

    default_mean, default_std = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
    files = ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta")

    def make_dataset(self, train: bool, download: bool = False) -> Any:
        """See `_Torchvision`."""
        return datasets.CIFAR100(self.root, train=train, download=download)


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
        splits = [self._split(train), self._split(test)]
        names = self.given_class_names or getattr(train, "classes", None)
        return splits[0], splits[1], names or [str(label) for label in range(int(splits[0][1].max()) + 1)]

    def _split(self, dataset: Dataset) -> Split:
        if self.in_memory:
            return stack(dataset)
        labels = getattr(dataset, "targets", None)
        if labels is None:
            labels = [int(dataset[row][1]) for row in range(len(cast(Sequence, dataset)))]
        return dataset, torch.as_tensor(labels, dtype=torch.int64)
