"""Real data: a Lightning DataModule a dataset."""

from dc_lightning.data.datamodule import CondensationDataModule, to_tensor
from dc_lightning.data.datasets import CIFAR10, CIFAR100, MNIST, SVHN, USPS, Digits, FashionMNIST, Stream, TorchDataset
from dc_lightning.data.folder import ImageFolder
from dc_lightning.data.hugging_face import HuggingFace
from dc_lightning.data.real import ImagesInMemory, RealImages

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "SVHN",
    "USPS",
    "CondensationDataModule",
    "Digits",
    "FashionMNIST",
    "HuggingFace",
    "ImageFolder",
    "ImagesInMemory",
    "RealImages",
    "Stream",
    "TorchDataset",
    "to_tensor",
]
