"""Datasets of Hugging Face: saved folders, parquet files, folders of images, names on the hub."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset
from torchvision.transforms import v2

from dc_lightning.data.datamodule import CondensationDataModule, Split, stack
from dc_lightning.data.folder import check_fraction, checked_size
from dc_lightning.errors import InputError, first_line
from dc_lightning.pictures import check_background, is_grey, read_picture


class _Items(Dataset):
    """Items (image, label) of a split whose image files are not decoded yet."""

    def __init__(self, split: Any, image: str, labels: Sequence[int]) -> None:
        self.split, self.image, self.targets = split.select_columns([image]), image, labels
        self.channels, self.background, self.transform = 3, "white", v2.Identity()

    def __len__(self) -> int:
        return len(self.targets)

    def file(self, row: int) -> Any:
        """The file of an image."""
        image = self.split[row][self.image]
        if image is None:
            raise InputError(f"The column '{self.image}' has no image in row {row}; leave the row out.")
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        pixels = read_picture(self.file(row), self.channels, self.background)
        return self.transform(pixels), self.targets[row]


class HuggingFace(CondensationDataModule):
    """A dataset that the library ``datasets`` reads, with images and labels (extra ``[hub]``).

    Args:
        path: a folder of ``save_to_disk``, or what ``load_dataset`` takes: a folder of parquet files or of images, or
            a name on the hub.
        train: name of the training split.
        test: name of the test split; where there is none, a seeded share of every class is set aside.
        label: column of the labels: class numbers or names.
        image_size: height and width to resize to, or one number for both; None if all images have one size.
        background: of what is transparent, a colour's name or ``#rrggbb``.
        test_fraction: share of every class for testing, where there is no test split.
        **kwargs: see `CondensationDataModule`.

    Raises:
        InputError: if a setting is out of its range; at `setup`, if the library, the data, a split or a column is
            missing.
    """

    def __init__(
        self,
        path: str,
        train: str = "train",
        test: str = "test",
        label: str = "label",
        image_size: tuple[int, int] | int | None = None,
        background: str = "white",
        test_fraction: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fraction(test_fraction)
        check_background(background)
        self.path, self.train_split, self.test_split, self.label = path, train, test, label
        self.resize_to, self.background, self.test_fraction = checked_size(image_size), background, test_fraction

    @property
    def dataset_name(self) -> str:
        """Last part of the path."""
        return Path(self.path).name

    def prepare_data(self) -> None:
        """Fetches what is on the hub, on one process."""
        self._read_splits()

    def _read_splits(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise InputError("This data needs datasets; install it by pip install 'dc_lightning[hub]'.") from error
        saved = any(Path(self.path, name).is_file() for name in ("dataset_dict.json", "state.json"))
        try:
            found = datasets.load_from_disk(self.path) if saved else datasets.load_dataset(self.path)
        except Exception as error:  # whatever the library, the disk or the network answers
            raise InputError(
                f"'{self.path}' is no dataset that the library datasets can read ({first_line(error)}); give a folder "
                "of save_to_disk, of parquet files or of images, or a name on the hub."
            ) from error
        return found if isinstance(found, dict) else {self.train_split: found}

    def load(self) -> tuple[Split, Split, Sequence[str]]:
        """See `CondensationDataModule.load`."""
        splits = self._read_splits()
        if self.train_split not in splits:
            raise InputError(f"data.train must be one of the splits {', '.join(splits)}, got '{self.train_split}'.")
        train = splits[self.train_split]
        image, names = self._image_column(train), self._class_names(train)
        items = [self._items(train, image, names)]
        if self.test_split in splits:
            items.append(self._items(splits[self.test_split], image, names))
        grey = all(is_grey(each.file(row)) for each in items for row in range(len(each)))
        for each in items:
            each.channels, each.background = 1 if grey else 3, self.background
            each.transform = v2.Resize(self.resize_to, antialias=True) if self.resize_to else v2.Identity()
        if len(items) == 1:
            first, second = self._divided(items[0])
            return first, second, names
        return self._split(items[0]), self._split(items[1]), names

    def _image_column(self, split: Any) -> str:
        found = [name for name, feature in split.features.items() if type(feature).__name__ == "Image"]
        if not found or self.label not in split.features:
            raise InputError(
                f"'{self.path}' needs a column of images and one of labels (data.label is '{self.label}'); it has "
                f"{', '.join(f'{name} ({type(feature).__name__})' for name, feature in split.features.items())}."
            )
        return found[0]

    def _class_names(self, split: Any) -> list[str]:
        feature = split.features[self.label]
        if hasattr(feature, "names"):
            return list(feature.names)
        return [str(value) for value in sorted(set(split[self.label]))]

    def _items(self, split: Any, image: str, names: Sequence[str]) -> _Items:
        import datasets

        labels = list(split[self.label])
        if not hasattr(split.features[self.label], "names"):
            unknown = sorted({str(label) for label in labels} - set(names))
            if unknown:
                raise InputError(f"'{self.path}' has the test labels {unknown}, of which there is no training image.")
            labels = [names.index(str(label)) for label in labels]
        return _Items(split.cast_column(image, datasets.Image(decode=False)), image, labels)

    def _divided(self, items: _Items) -> tuple[Split, Split]:
        from sklearn.model_selection import train_test_split

        try:
            rows = train_test_split(
                range(len(items)), test_size=self.test_fraction, stratify=items.targets, random_state=0
            )
        except ValueError as few:
            raise InputError(
                f"'{self.path}' has no split '{self.test_split}' and too few images to set a share of every class "
                f"aside ({few})."
            ) from few
        return self._split(items, rows[0]), self._split(items, rows[1])

    def _split(self, items: _Items, rows: Sequence[int] | None = None) -> Split:
        rows = range(len(items)) if rows is None else rows
        subset: Subset[Any] = Subset(items, rows)
        if self.in_memory:
            return stack(subset)
        return subset, torch.tensor([items.targets[row] for row in rows])
