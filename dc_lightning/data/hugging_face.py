"""Datasets of Hugging Face: saved folders, parquet files, folders of images, names on the hub."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from dc_lightning.data.datamodule import Split
from dc_lightning.data.folder import ImageFiles
from dc_lightning.errors import InputError, first_line, require_known


class _Items(Dataset):
    """Items (image, label) of a split whose image files are not decoded yet."""

    loader: Callable[[Any], Tensor]
    transform: Callable[[Tensor], Tensor]

    def __init__(self, split: Any, image: str, labels: Sequence[int]) -> None:
        self.split, self.image, self.targets = split.select_columns([image]), image, labels

    def __len__(self) -> int:
        return len(self.targets)

    def file(self, row: int) -> Any:
        """The file of an image."""
        image = self.split[row][self.image]
        if image is None:
            raise InputError(f"The column '{self.image}' has no image in row {row}; leave the row out.")
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(self.loader(self.file(row))), self.targets[row]


class HuggingFace(ImageFiles):
    """A dataset that the library ``datasets`` reads, with images and labels (extra ``[hub]``).

    Args:
        path: a folder of ``save_to_disk``, or what ``load_dataset`` takes: a folder of parquet files or of images, or
            a name on the hub.
        train: name of the training split.
        test: name of the test split; where there is none, a seeded share of every class is set aside.
        label: column of the labels: class numbers or names.
        **kwargs: see `ImageFiles`.

    Raises:
        InputError: if a setting is out of its range; at `setup`, if the library, the data, a split or a column is
            missing.
    """

    def __init__(
        self, path: str, train: str = "train", test: str = "test", label: str = "label", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.path, self.train_split, self.test_split, self.label = path, train, test, label

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
        require_known("data.train", self.train_split, splits)
        features = splits[self.train_split].features
        images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        if not images or self.label not in features:
            raise InputError(
                f"'{self.path}' needs a column of images and one of labels (data.label is '{self.label}'); it has "
                f"{', '.join(f'{name} ({type(feature).__name__})' for name, feature in features.items())}."
            )
        values = getattr(features[self.label], "names", None) or sorted(set(splits[self.train_split][self.label]))
        names = [str(value) for value in values]
        train, test = (
            self._items(splits[split], images[0], names) if split in splits else None
            for split in (self.train_split, self.test_split)
        )
        first, second = self.divided(train, test, f"'{self.path}' has no split '{self.test_split}'")
        return first, second, names

    def _items(self, split: Any, image: str, names: Sequence[str]) -> _Items:
        import datasets

        labels = list(split[self.label])
        if not hasattr(split.features[self.label], "names"):
            unknown = sorted({str(label) for label in labels} - set(names))
            if unknown:
                raise InputError(f"'{self.path}' has the test labels {unknown}, of which there is no training image.")
            labels = [names.index(str(label)) for label in labels]
        return _Items(split.cast_column(image, datasets.Image(decode=False)), image, labels)
