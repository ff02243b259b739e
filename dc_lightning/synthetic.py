"""A synthetic set: its images and labels, how they are normalised, what they came from; files in and out."""

import io
import json
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2
from torchvision.utils import make_grid

from dc_lightning.errors import InputError

FORMAT = "dc_lightning synthetic set 1"
_METADATA = "synthetic.json"


@dataclass(frozen=True, eq=False)
class SyntheticSet(Dataset):
    """Labelled images with their normalisation: a torch Dataset of (image, label).

    Args:
        images: float, ``(n, C, H, W)``, normalised by ``mean`` and ``std``; not clamped.
        labels: int64, ``(n,)``, sorted, index into ``class_names``.
        mean: of each channel in [0, 1].
        std: of each channel in [0, 1].
        class_names: one a class.
        source: what made the set; strings and numbers.
        normalized: whether `__getitem__` gives normalised images, or images in [0, 1].
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    source: dict[str, Any] = field(default_factory=dict)
    normalized: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        return (image if self.normalized else self._to_unit_range(image)), self.labels[index]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[index] for index in range(len(self)))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def ipc(self) -> int:
        """Images of the class that has most."""
        return int(torch.bincount(self.labels).max())

    def _to_unit_range(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).to(images).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)

    def unit_range_images(self) -> Tensor:
        """The images de-normalised and clamped, float in [0, 1], ``(n, C, H, W)``."""
        return self._to_unit_range(self.images)

    def with_normalized(self, normalized: bool) -> "SyntheticSet":
        """The same set whose items are normalised images, or images in [0, 1]."""
        return replace(self, normalized=normalized)

    def renormalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "SyntheticSet":
        """The same images under another normalisation."""
        if (self.mean, self.std) == (mean, std):
            return self
        old_mean, old_std, new_mean, new_std = (
            torch.tensor(values).to(self.images).view(-1, 1, 1) for values in (self.mean, self.std, mean, std)
        )
        images = (self.images * old_std + old_mean - new_mean) / new_std
        return replace(self, images=images, mean=tuple(mean), std=tuple(std))

    def grid(self, classes_across: bool = False) -> Tensor:
        """One row a class, de-normalised (paper, figures 2 and 3): float in [0, 1], ``(3, height, width)``.

        Args:
            classes_across: one column a class instead.
        """
        images, width = self.unit_range_images(), self.ipc
        rows = []
        for label in range(self.num_classes):
            row = images[self.labels == label]
            rows.append(torch.cat([row, row.new_ones(width - len(row), *row.shape[1:])]))
        if classes_across:
            return make_grid(torch.stack(rows, dim=1).flatten(0, 1), nrow=len(rows), padding=2, pad_value=1.0)
        return make_grid(torch.cat(rows), nrow=width, padding=2, pad_value=1.0)

    def save_grid(self, path: str | Path, classes_across: bool = False) -> None:
        """Writes `grid` as a PNG file, enlarged without smoothing so that its smaller side has 300 pixels or more."""
        grid = self.grid(classes_across)
        factor = max(1, -(-300 // min(grid.shape[1:])))
        enlarged = grid.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
        buffer = io.BytesIO()
        v2.functional.to_pil_image(enlarged).save(buffer, format="PNG")
        write_whole(path, buffer.getvalue())

    def save(self, path: str | Path) -> None:
        """Writes tensors and plain values only: `torch.load` reads it with ``weights_only=True``."""
        save_whole(
            path,
            {
                "format": FORMAT,
                "images": self.images.cpu().contiguous(),
                "labels": self.labels.cpu().contiguous(),
                "mean": list(self.mean),
                "std": list(self.std),
                "class_names": list(self.class_names),
                "source": self.source,
            },
        )

    def export(self, folder: str | Path) -> None:
        """Writes a folder of PNG files in ImageFolder layout, and the normalisation as JSON.

        PNG has 8 bits a channel and no values outside [0, 1]: what lies outside is clamped.

        Raises:
            InputError: if the folder is there already and not empty.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"'{folder}' is not empty; export to a new folder, so that no old image mixes in.")
        for index, (image, label) in enumerate(self.with_normalized(False)):
            target = folder / _folder_name(int(label), self.class_names) / f"{index:05d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            v2.functional.to_pil_image(image).save(target)
        metadata = {"mean": self.mean, "std": self.std, "class_names": self.class_names, "source": self.source}
        write_whole(folder / _METADATA, json.dumps(metadata, indent=2).encode())


def _folder_name(label: int, class_names: Sequence[str]) -> str:
    """A folder for a class: sorted as the labels are, in letters that every file system takes."""
    digits = len(str(max(len(class_names) - 1, 1)))
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in class_names[label])
    return f"{label:0{digits}d}_{name}"


def save_whole(path: str | Path, content: Any) -> None:
    """`torch.save` by `write_whole`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue())


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        if os.name == "posix":  # the name too is on the disk
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    finally:
        partial.unlink(missing_ok=True)


def load_synthetic(
    path: str | Path,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
) -> list[SyntheticSet]:
    """Reads all sets of a file or folder: one of ours, one per experiment of an authors' file, one of a folder.

    Args:
        path: ours (``synthetic.pt``), an authors' published ``.pt``, or a folder of images in ImageFolder layout.
        mean: for files that do not say it; ours and exported folders do.
        std: likewise.
        class_names: likewise.

    Raises:
        InputError: if the file is missing, corrupt, of another form, or would have to run code to be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no synthetic set at '{path}'; give a .pt file or a folder of images.")
    if path.is_dir():
        return [_read_folder(path, mean, std, class_names)]
    content = read_tensors(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return [_from_ours(content, path)]
    if isinstance(content, dict) and isinstance(content.get("data"), list) and content["data"]:
        pairs = content["data"]
        return [_from_authors(pair, path, index, mean, std, class_names) for index, pair in enumerate(pairs)]
    raise InputError(
        f"'{path}' is not a synthetic set: expected a file of this package, or the authors' form "
        "{'data': [[images, labels], ...]}."
    )


def read_tensors(path: Path) -> Any:
    """What `torch.save` wrote, if it is tensors, numbers, strings and containers of them.

    Raises:
        InputError: if it is damaged, or would have to run code to be read.
    """
    import numpy as np

    # The authors' files hold accuracies as NumPy numbers; these three names build numbers and nothing else.
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *(np.dtype, type(np.dtype(np.float64))),
    ]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"'{path}' holds more than tensors and numbers, so that reading it could run code, or it is damaged; "
            "it was not read. Take a file from a source that saves tensors only."
        ) from error
    except Exception as error:  # a damaged file fails in whatever way
        raise InputError(f"'{path}' is damaged, cut short or of another kind; fetch or write it again.") from error


def _checked(
    images: Any, labels: Any, mean: Any, std: Any, class_names: Any, source: dict[str, Any], where: str
) -> SyntheticSet:
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        raise InputError(f"{where}: images must be a float tensor (n, C, H, W).")
    if not isinstance(labels, Tensor) or labels.shape != images.shape[:1]:
        raise InputError(f"{where}: there must be one label for each of the {len(images)} images.")
    if not len(images):
        raise InputError(f"{where}: the set has no images.")
    if not bool(images.isfinite().all()):
        raise InputError(f"{where}: some pixels are NaN or infinite.")
    if mean is None or std is None:
        raise InputError(f"{where}: the file does not say how its images are normalised; give mean and std.")
    labels = labels.long()
    if int(labels.min()) < 0:
        raise InputError(f"{where}: labels must be 0 or more, got {int(labels.min())}.")
    names = class_names or [str(label) for label in range(int(labels.max()) + 1)]
    if int(labels.max()) >= len(names):
        raise InputError(f"{where}: the labels go up to {int(labels.max())}, but there are {len(names)} classes.")
    if len(mean) != images.shape[1] or len(std) != images.shape[1]:
        raise InputError(
            f"{where}: the images have {images.shape[1]} channels, mean and std {len(mean)} and {len(std)} values."
        )
    return SyntheticSet(images.detach().float(), labels, tuple(mean), tuple(std), tuple(names), source)


def _from_ours(content: dict[str, Any], path: Path) -> SyntheticSet:
    fields = ("images", "labels", "mean", "std", "class_names", "source")
    missing = [name for name in fields if name not in content]
    if missing:
        raise InputError(f"'{path}' lacks {', '.join(missing)}; it is damaged.")
    images, labels, mean, std, class_names, source = (content[name] for name in fields)
    if not all(isinstance(value, list) for value in (mean, std, class_names)) or not isinstance(source, dict):
        raise InputError(f"'{path}' is damaged: mean, std and class_names must be lists, source a mapping.")
    return _checked(images, labels, mean, std, class_names, source, f"'{path}'")


def _from_authors(pair: Any, path: Path, index: int, mean: Any, std: Any, class_names: Any) -> SyntheticSet:
    where = f"'{path}', experiment {index}"
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise InputError(f"{where}: expected [images, labels].")
    source = {"method": "authors' file", "file": path.name, "experiment": index}
    return _checked(pair[0], pair[1], mean, std, class_names, source, where)


def _read_folder(path: Path, mean: Any, std: Any, class_names: Any) -> SyntheticSet:
    source: dict[str, Any] = {"method": "folder of images", "folder": path.name}
    if (path / _METADATA).is_file():
        try:
            metadata = json.loads((path / _METADATA).read_text())
            mean, std, class_names, source = (metadata[key] for key in ("mean", "std", "class_names", "source"))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"'{path / _METADATA}' is damaged ({error}).") from error
    if mean is None or std is None:
        raise InputError(f"'{path}' does not say how its images are normalised; give mean and std.")
    try:
        tree = datasets.ImageFolder(str(path))
    except FileNotFoundError as error:
        raise InputError(f"'{path}' is no folder with one folder of images a class ({error}).") from error
    names = list(class_names or tree.classes)
    by_folder = {folder: label for label, name in enumerate(names) for folder in (name, _folder_name(label, names))}
    foreign = [folder for folder in tree.classes if folder not in by_folder]
    if foreign:
        raise InputError(f"The folders {foreign} of '{path}' are no classes of the data, which are {names}.")
    convert = v2.Compose([v2.Grayscale(1) if len(mean) == 1 else torch.nn.Identity(), v2.PILToTensor()])
    try:
        images, folders = zip(*((convert(image), label) for image, label in tree), strict=True)
    except OSError as error:
        raise InputError(f"An image of '{path}' cannot be read ({error}); mend or remove it.") from error
    labels = torch.tensor([by_folder[tree.classes[folder]] for folder in folders])
    order = labels.argsort(stable=True)
    if len({image.shape for image in images}) > 1:
        raise InputError(f"The images of '{path}' differ in size; they must all be as large as the real ones.")
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    return _checked(normalize(torch.stack(images))[order], labels[order], mean, std, names, source, f"'{path}'")
