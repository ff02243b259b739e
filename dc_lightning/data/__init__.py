"""Real data: a Lightning DataModule a dataset."""

from dc_lightning.data.datamodule import CondensationDataModule, to_tensor
from dc_lightning.data.datasets import CIFAR10, CIFAR100, MNIST, SVHN, Digits, FashionMNIST, TorchDataset
from dc_lightning.data.folder import ImageFolder
from dc_lightning.data.real import ImagesInMemory, RealImages

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "SVHN",
    "CondensationDataModule",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "ImagesInMemory",
    "RealImages",
    "TorchDataset",
    "to_tensor",
]
