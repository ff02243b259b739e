"""Folders of image files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset
from torchvision.transforms import v2

from dc_lightning.data.datamodule import CondensationDataModule, Split, stack
from dc_lightning.errors import InputError
from dc_lightning.pictures import PictureTree, check_background, is_grey, read_picture

_TRAIN, _TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")


def checked_size(image_size: tuple[int, int] | int | None) -> tuple[int, int] | None:
    """Height and width of a setting ``data.image_size``; one number stands for both.

    Raises:
        InputError: if it is below one pixel.
    """
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    if image_size is not None and min(image_size) < 1:
        raise InputError(f"data.image_size must be at least 1x1 pixel (height, width), got {image_size}.")
    return image_size


def check_fraction(test_fraction: float) -> None:
    """Raises `InputError` unless a setting ``data.test_fraction`` is a share."""
    if not 0 < test_fraction < 1:
        raise InputError(f"data.test_fraction must be between 0 and 1, got {test_fraction}.")


class ImageFolder(CondensationDataModule):
    """A tree of image files, one folder a class.

    ``root`` has either ``train`` (or ``training``) and ``test`` (or ``testing``, ``val``, ``valid``, ``validation``)
    with the classes' folders below, or ``train`` alone, or the classes' folders themselves; then a seeded share of
    every class becomes the test set.

    Args:
        root: folder of the tree.
        image_size: height and width to resize to, or one number for both; None if all files have one size.
        channels: 1 (grey) or 3 (RGB); None takes grey where all files are grey.
        background: of what is transparent, a colour's name or ``#rrggbb``.
        test_fraction: share of every class for testing, where ``root`` has no test folder.
        **kwargs: see `CondensationDataModule`.
    """

    def __init__(
        self,
        root: str,
        image_size: tuple[int, int] | int | None = None,
        channels: int | None = None,
        background: str = "white",
        test_fraction: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if channels not in (None, 1, 3):
            raise InputError(f"data.channels must be 1 (grey) or 3 (RGB), got {channels}.")
        self.resize_to = checked_size(image_size)
        check_fraction(test_fraction)
        check_background(background)
        self.root = root
        self.force_channels, self.background = channels, background
        self.test_fraction = test_fraction

    @property
    def dataset_name(self) -> str:
        """Name of the folder."""
        return Path(self.root).resolve().name

    def _tree(self, folder: Path) -> PictureTree:
        if not folder.is_dir():
            raise InputError(f"data.root must be a folder with one folder of images a class; '{folder}' is none.")
        try:
            tree = PictureTree(folder)
        except FileNotFoundError as empty:  # a class without a file, or no class at all
            raise InputError(f"ImageFolder: {' '.join(str(empty).split())}") from empty
        tree.transform = v2.Resize(self.resize_to, antialias=True) if self.resize_to else None
        return tree

    def _read_alike(self, *trees: PictureTree) -> None:
        channels = self.force_channels
        if channels is None:
            channels = 1 if all(is_grey(path) for tree in trees for path, _ in tree.samples) else 3
        for tree in trees:
            tree.loader = partial(read_picture, channels=channels, background=self.background)

    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """See `CondensationDataModule.load`."""
        root = Path(self.root)
        train_folder, test_folder = (
            next((root / name for name in names if (root / name).is_dir()), None) for names in (_TRAIN, _TEST)
        )
        if train_folder is not None and test_folder is not None:
            train_tree, test_tree = self._tree(train_folder), self._tree(test_folder)
            if train_tree.classes != test_tree.classes:
                differing = sorted(set(train_tree.classes) ^ set(test_tree.classes))
                raise InputError(
                    f"'{train_folder}' and '{test_folder}' must have the same class folders; they differ in "
                    f"{differing}."
                )
            self._read_alike(train_tree, test_tree)
            return self._split(train_tree), self._split(test_tree), train_tree.classes
        from sklearn.model_selection import train_test_split

        tree = self._tree(train_folder or root)
        self._read_alike(tree)
        try:
            train, test = train_test_split(
                range(len(tree)), test_size=self.test_fraction, stratify=tree.targets, random_state=0
            )
        except ValueError as few:
            raise InputError(
                f"'{root}' has no test or val folder and too few images to set a share of every class aside ({few})"
            ) from few
        return self._split(tree, train), self._split(tree, test), tree.classes

    def _split(self, tree: PictureTree, rows: Sequence[int] | None = None) -> Split:
        rows = range(len(tree)) if rows is None else rows
        subset: Subset[Any] = Subset(tree, rows)
        if self.in_memory:
            return stack(subset)
        return subset, torch.tensor([tree.targets[row] for row in rows])
