"""Reading synthetic sets: ours of every version, the authors' published files, folders of images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from dc_lightning.errors import InputError
from dc_lightning.files import read_tensors
from dc_lightning.pictures import PictureTree, in_unit_range, read_picture
from dc_lightning.synthetic.formats import read_shared
from dc_lightning.synthetic.ready import ready_set
from dc_lightning.synthetic.synthetic_set import FORMAT, METADATA, SyntheticSet, folder_name

_FORMATS = ("dc_lightning synthetic set 1", FORMAT)
OLD_NAMES = {"gradient matching": "DC"}  # how 0.1.0 called its method


def load_synthetic(
    path: str | Path,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    background: str = "white",
) -> list[SyntheticSet]:
    """Reads all sets of a file or folder: one of ours, one per experiment of an authors' file, one of a folder.

    Args:
        path: ours (``synthetic.pt``, or what ``export`` wrote), an authors' published ``.pt``, a folder of images in
            ImageFolder layout, or the name of a set that ships with the package (`ready_sets`).
        mean: for files that do not say it; ours and exported folders do.
        std: likewise.
        class_names: likewise.
        background: of what is transparent in a folder of images; see `read_picture`.

    Raises:
        InputError: if the file is missing, corrupt, of another form, or would have to run code to be read.
    """
    path = Path(path) if Path(path).exists() else ready_set(str(path)).path
    if path.is_dir():
        return [_read_folder(path, mean, std, class_names, background)]
    shared = read_shared(path)
    if shared is not None:
        return [checked(shared, f"'{path}'")]
    content = read_tensors(path)
    if isinstance(content, dict) and content.get("format") in _FORMATS:
        return [_from_ours(content, path)]
    if isinstance(content, dict) and isinstance(content.get("data"), list) and content["data"]:
        pairs = content["data"]
        return [_from_authors(pair, path, index, mean, std, class_names) for index, pair in enumerate(pairs)]
    raise InputError(
        f"'{path}' is not a synthetic set: expected a file of this package, or the authors' form "
        "{'data': [[images, labels], ...]}."
    )


def checked(synthetic: SyntheticSet, where: str) -> SyntheticSet:
    """The set, if its parts are what `SyntheticSet` says and fit each other.

    Args:
        synthetic: as it was read; mean and std empty where the file does not say them.
        where: names the file, for messages.

    Raises:
        InputError: if not; says what is wrong.
    """
    images, labels, mean, std = synthetic.images, synthetic.labels, synthetic.mean, synthetic.std
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        raise InputError(f"{where}: images must be a float tensor (n, C, H, W).")
    if not isinstance(labels, Tensor) or labels.shape[:1] != images.shape[:1] or labels.dim() > 2:
        raise InputError(f"{where}: there must be one label for each of the {len(images)} images.")
    if not len(images):
        raise InputError(f"{where}: the set has no images.")
    if not bool(images.isfinite().all()):
        raise InputError(f"{where}: some pixels are NaN or infinite.")
    if not mean or not std:
        raise InputError(f"{where}: the file does not say how its images are normalised; give mean and std.")
    if labels.dim() == 2:
        sums = labels.double().sum(dim=1)
        if bool((labels < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            raise InputError(f"{where}: soft labels must be probabilities that sum to 1 for every image.")
        count, classes = labels.shape[1], labels.float()
    else:
        classes = labels.long()
        if int(classes.min()) < 0:
            raise InputError(f"{where}: labels must be 0 or more, got {int(classes.min())}.")
        count = int(classes.max()) + 1
    names = synthetic.class_names or tuple(str(label) for label in range(count))
    if count > len(names):
        raise InputError(f"{where}: the labels go up to {count - 1}, but there are {len(names)} classes.")
    if len(mean) != images.shape[1] or len(std) != images.shape[1]:
        raise InputError(
            f"{where}: the images have {images.shape[1]} channels, mean and std {len(mean)} and {len(std)} values."
        )
    return replace(synthetic, images=images.detach().float(), labels=classes, class_names=tuple(names))


def _from_ours(content: Mapping[str, Any], path: Path) -> SyntheticSet:
    fields = ("images", "labels", "mean", "std", "class_names", "source")
    missing = [name for name in fields if name not in content]
    if missing:
        raise InputError(f"'{path}' lacks {', '.join(missing)}; it is damaged.")
    images, labels, mean, std, class_names, source = (content[name] for name in fields)
    if not all(isinstance(value, list) for value in (mean, std, class_names)) or not isinstance(source, dict):
        raise InputError(f"'{path}' is damaged: mean, std and class_names must be lists, source a mapping.")
    decoding = {key: content[key] for key in ("space", "factor", "formation") if key in content}
    found = SyntheticSet(images, labels, tuple(mean), tuple(std), tuple(class_names), _current(source))
    return checked(replace(found, **decoding), f"'{path}'")


def _current(source: dict[str, Any]) -> dict[str, Any]:
    """A source with the names of today."""
    method = source.get("method")
    return {**source, "method": OLD_NAMES[method]} if method in OLD_NAMES else source


def _from_authors(pair: Any, path: Path, index: int, mean: Any, std: Any, class_names: Any) -> SyntheticSet:
    where = f"'{path}', experiment {index}"
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise InputError(f"{where}: expected [images, labels].")
    source = {"method": "authors' file", "file": path.name, "experiment": index}
    found = SyntheticSet(pair[0], pair[1], tuple(mean or ()), tuple(std or ()), tuple(class_names or ()), source)
    return checked(found, where)


def _read_folder(path: Path, mean: Any, std: Any, class_names: Any, background: str) -> SyntheticSet:
    source: dict[str, Any] = {"method": "folder of images", "folder": path.name}
    decoding: dict[str, Any] = {}
    if (path / METADATA).is_file():
        try:
            metadata = json.loads((path / METADATA).read_text())
            mean, std, class_names, source = (metadata[key] for key in ("mean", "std", "class_names", "source"))
            source = _current(source)
            decoding = {key: metadata[key] for key in ("factor", "formation") if key in metadata}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"'{path / METADATA}' is damaged ({error}).") from error
    if mean is None or std is None:
        raise InputError(f"'{path}' does not say how its images are normalised; give mean and std.")
    try:
        tree = PictureTree(path)
    except FileNotFoundError as error:
        raise InputError(f"'{path}' is no folder with one folder of images a class ({error}).") from error
    names = list(class_names or tree.classes)
    by_folder = {name: label for label, name in enumerate(names)}
    by_folder |= {folder_name(label, names): label for label in range(len(names))}
    foreign = [folder for folder in tree.classes if folder not in by_folder]
    if foreign:
        raise InputError(f"The folders {foreign} of '{path}' are no classes of the data, which are {names}.")
    tree.loader = partial(read_picture, channels=min(len(mean), 3), background=background)
    images, folders = zip(*((in_unit_range(image), label) for image, label in tree), strict=True)
    labels = torch.tensor([by_folder[tree.classes[folder]] for folder in folders])
    order = labels.argsort(stable=True)
    if len({image.shape for image in images}) > 1:
        raise InputError(f"The images of '{path}' differ in size; they must all be as large as the real ones.")
    normalize = v2.Normalize(mean, std)
    found = SyntheticSet(
        normalize(torch.stack(images))[order], labels[order], tuple(mean), tuple(std), tuple(names), source
    )
    return checked(replace(found, **decoding), f"'{path}'")
