"""Folders of image files, and what all data of image files share."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import ImageColor
from torch.utils.data import Subset
from torchvision.transforms import v2

from dc_lightning.data.datamodule import CondensationDataModule, Split, stack
from dc_lightning.errors import InputError
from dc_lightning.pictures import PictureTree, is_grey, read_picture

_TRAIN, _TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")


class ImageFiles(CondensationDataModule):
    """Data whose images are files, which are all read alike; a seeded share of every class may become the test set.

    Args:
        image_size: height and width to resize to, or one number for both; None if all images have one size.
        background: of what is transparent, a colour's name or ``#rrggbb``.
        test_fraction: share of every class for testing, where there is no test set.
        **kwargs: see `CondensationDataModule`.

    Raises:
        InputError: if a setting is out of its range.
    """

    force_channels: int | None = None

    def __init__(
        self,
        image_size: tuple[int, int] | int | None = None,
        background: str = "white",
        test_fraction: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(image_size, int):
            image_size = (image_size, image_size)
        if image_size is not None and min(image_size) < 1:
            raise InputError(f"data.image_size must be at least 1x1 pixel (height, width), got {image_size}.")
        if not 0 < test_fraction < 1:
            raise InputError(f"data.test_fraction must be between 0 and 1, got {test_fraction}.")
        try:
            ImageColor.getrgb(background)
        except ValueError as error:
            raise InputError(
                f"data.background must be a colour's name such as white, or #rrggbb, got '{background}'."
            ) from error
        self.resize_to, self.background, self.test_fraction = image_size, background, test_fraction

    def divided(self, train: Any, test: Any, why: str) -> tuple[Split, Split]:
        """The training and the test split of sets with ``file(row)``, ``targets``, ``loader`` and ``transform``.

        Args:
            train: a set of files.
            test: likewise; None takes a share of every class of ``train``.
            why: the test set is missing, the first half of a sentence such as "'x' has no split 'test'".

        Raises:
            InputError: if a class has too few images to set a share aside.
        """
        sets = [train] if test is None else [train, test]
        grey = self.force_channels is None and all(is_grey(each.file(row)) for each in sets for row in range(len(each)))
        channels = 1 if grey else self.force_channels or 3
        for each in sets:
            each.loader = partial(read_picture, channels=channels, background=self.background)
            each.transform = v2.Resize(self.resize_to, antialias=True) if self.resize_to else v2.Identity()
        if test is not None:
            return self._split(train, range(len(train))), self._split(test, range(len(test)))
        from sklearn.model_selection import train_test_split

        try:
            first, second = train_test_split(
                range(len(train)), test_size=self.test_fraction, stratify=train.targets, random_state=0
            )
        except ValueError as few:
            raise InputError(f"{why} and too few images to set a share of every class aside ({few}).") from few
        return self._split(train, first), self._split(train, second)

    def _split(self, files: Any, rows: Sequence[int]) -> Split:
        subset: Subset[Any] = Subset(files, rows)
        return stack(subset) if self.in_memory else (subset, torch.tensor([files.targets[row] for row in rows]))


class ImageFolder(ImageFiles):
    """A tree of image files, one folder a class.

    ``root`` has either ``train`` (or ``training``) and ``test`` (or ``testing``, ``val``, ``valid``, ``validation``)
    with the classes' folders below, or ``train`` alone, or the classes' folders themselves; then a seeded share of
    every class becomes the test set.

    Args:
        root: folder of the tree.
        image_size: height and width to resize to, or one number for both; None if all files have one size.
        channels: 1 (grey) or 3 (RGB); None takes grey where all files are grey.
        **kwargs: see `ImageFiles`.
    """

    def __init__(
        self,
        root: str,
        image_size: tuple[int, int] | int | None = None,
        channels: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, **kwargs)
        if channels not in (None, 1, 3):
            raise InputError(f"data.channels must be 1 (grey) or 3 (RGB), got {channels}.")
        self.root, self.force_channels = root, channels

    @property
    def dataset_name(self) -> str:
        """Name of the folder."""
        return Path(self.root).resolve().name

    def _tree(self, folder: Path) -> PictureTree:
        if not folder.is_dir():
            raise InputError(f"data.root must be a folder with one folder of images a class; '{folder}' is none.")
        try:
            return PictureTree(folder)
        except FileNotFoundError as empty:  # a class without a file, or no class at all
            raise InputError(f"ImageFolder: {' '.join(str(empty).split())}") from empty

    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """See `CondensationDataModule.load`."""
        root = Path(self.root)
        train_folder, test_folder = (
            next((root / name for name in names if (root / name).is_dir()), None) for names in (_TRAIN, _TEST)
        )
        train_tree, test_tree = self._tree(train_folder or root), None
        if train_folder is not None and test_folder is not None:
            test_tree = self._tree(test_folder)
            if train_tree.classes != test_tree.classes:
                differing = sorted(set(train_tree.classes) ^ set(test_tree.classes))
                raise InputError(
                    f"'{train_folder}' and '{test_folder}' must have the same class folders; they differ in "
                    f"{differing}."
                )
        train, test = self.divided(train_tree, test_tree, f"'{root}' has no test or val folder")
        return train, test, train_tree.classes
