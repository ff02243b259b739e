"""Reading synthetic sets: ours of every version, the authors' published files, folders of images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor
from torchvision.transforms import v2
from typing_extensions import Unpack

from dc_lightning.errors import InputError
from dc_lightning.files import read_tensors
from dc_lightning.pictures import PictureTree, in_unit_range, read_picture
from dc_lightning.synthetic.formation import check_factor
from dc_lightning.synthetic.formats import read_shared
from dc_lightning.synthetic.ready import ready_set
from dc_lightning.synthetic.synthetic_set import FORMAT, METADATA, Space, SyntheticSet, folder_name

Labels = Literal["probabilities", "logits"]

_FORMATS = ("dc_lightning synthetic set 1", FORMAT)
OLD_NAMES = {"gradient matching": "DC"}  # how 0.1.0 called its method


class Unsaid(TypedDict, total=False):
    """What a file of others does not say.

    Args:
        background: of what is transparent in a folder of images, white where it is not given; see `read_picture`.
        space: whether images are normalised, or pixels in [0, 1]; of whitened ones, before they were whitened. Files of
            images are pixels.
        factor: training images along each side of a stored one.
        labels: whether soft labels are probabilities or logits.
        whitening: file of the ZCA transform of whitened images; see `unwhitened`.
    """

    background: str
    space: Space
    factor: int
    labels: Labels
    whitening: str | Path


def load_synthetic(
    path: str | Path,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    **unsaid: Unpack[Unsaid],
) -> list[SyntheticSet]:
    """Reads all sets of a file or folder, recognised by content: one of ours, one per experiment of an authors' file.

    Args:
        path: ours (``synthetic.pt``, or what ``export`` wrote); a published ``.pt``: of DC, DSA and DM (normalised), of
            IDC and DREAM (pixels; asks for ``factor``), of MTT and its kin (``images_*.pt`` beside ``labels_*.pt``;
            asks for ``space``); a folder of images in ImageFolder layout; the folder of a run, for its synthetic.pt,
            or one for a hub, for its Parquet file; or a set that ships (`ready_sets`), by name.
        mean: for files that do not say it; ours and exported folders do.
        std: likewise.
        class_names: likewise.
        **unsaid: see `Unsaid`.

    Raises:
        InputError: if the file is missing, corrupt, of another form, or would have to run code to be read.
    """
    path = Path(path) if Path(path).exists() else ready_set(str(path)).path
    path = _file_of_folder(path)
    given = {"mean": mean, "std": std, "class_names": class_names}
    said: dict[str, Any] = {name: () if value is None else tuple(value) for name, value in given.items()}
    said |= {name: value for name, value in unsaid.items() if name in ("space", "factor")}
    if "whitening" in unsaid and (path.is_dir() or path.suffix != ".pt" or "images" not in path.name):
        raise InputError(
            f"whitening goes with images_*.pt and labels_*.pt beside them; '{path}' is another kind of set."
        )
    if path.is_dir():
        return [_read_folder(path, said, unsaid.get("background", "white"))]
    shared = read_shared(path)
    if shared is not None:
        return [checked(shared, f"'{path}'")]
    content = read_tensors(path)
    if isinstance(content, dict) and content.get("format") in _FORMATS:
        return [_from_ours(content, path)]
    if isinstance(content, dict) and isinstance(content.get("data"), list) and content["data"]:
        return [_from_authors(pair, path, index, said) for index, pair in enumerate(content["data"])]
    found = _of_others(content, path, unsaid)
    if found is not None:
        images, labels, space, factor = found
        if unsaid.get("labels") == "logits" and isinstance(labels, Tensor):
            labels = labels.softmax(dim=1)
        source = {"method": "authors' file", "file": path.name, **_learned_rate(path)}
        about = {**said, "source": source, "space": space, "factor": factor}
        return [checked(SyntheticSet.of(images, labels, about), f"'{path}'")]
    raise InputError(
        f"'{path}' is not a synthetic set: expected a file of this package, or a published form such as "
        "{'data': [[images, labels], ...]}."
    )


def _file_of_folder(path: Path) -> Path:
    """The file that a folder of a run or for a hub holds; any other path as it is."""
    if (path / "synthetic.pt").is_file():
        return path / "synthetic.pt"
    tables = list(path.glob("data/*.parquet"))
    return tables[0] if len(tables) == 1 else path


def _of_others(content: Any, path: Path, unsaid: Unsaid) -> tuple[Any, Any, Space, int] | None:
    """Images, labels, space and factor of a published file of IDC's or MTT's form; None if it is of another."""
    if isinstance(content, list | tuple) and len(content) == 2 and all(isinstance(part, Tensor) for part in content):
        if "factor" not in unsaid:
            raise InputError(
                f"'{path}' has the form of IDC's files, pixels and labels, which do not say how many training images "
                "are in a stored one; give the factor, 2 for IDC, 1 for IDC-I."
            )
        return content[0], content[1], unsaid.get("space", "pixels"), unsaid["factor"]
    if not isinstance(content, Tensor):
        return None
    partner = path.with_name(path.name.replace("images", "labels"))
    if "images" not in path.name or not partner.is_file():
        raise InputError(
            f"'{path}' holds a single tensor; give the images of a set, images_*.pt, with labels_*.pt beside them."
        )
    if "space" not in unsaid:
        raise InputError(
            f"'{path}' does not say what its images are; give the space, normalised or pixels, and for whitened (ZCA) "
            "ones the file of their transform, whitening."
        )
    images = unwhitened(content, Path(unsaid["whitening"])) if "whitening" in unsaid else content
    return images, read_tensors(partner), unsaid["space"], unsaid.get("factor", 1)


def unwhitened(images: Tensor, path: Path) -> Tensor:
    """Images as they were before a ZCA transform: ``whitened = (flat - mean) @ matrix``, as in kornia and MTT's code.

    Args:
        images: float, ``(n, C, H, W)``.
        path: a mapping that `torch.save` wrote, of ``mean_vector`` (or ``mean``), ``(d,)``, and ``transform_matrix``
            (or ``matrix``), ``(d, d)``, with ``d = C * H * W``; the names are those of kornia's ``ZCAWhitening``.

    Raises:
        InputError: if the file holds something else, or is of other images.
    """
    content = read_tensors(path)
    found = content if isinstance(content, Mapping) else {}
    names = (("mean_vector", "mean"), ("transform_matrix", "matrix"))
    mean, matrix = (found.get(long, found.get(short)) for long, short in names)
    if images.dim() != 4 or not len(images):
        return images  # `checked` says so
    numbers = images[0].numel()
    if not isinstance(mean, Tensor) or not isinstance(matrix, Tensor):
        raise InputError(f"'{path}' is no ZCA transform: expected a mapping of mean_vector and transform_matrix.")
    if mean.numel() != numbers or tuple(matrix.shape) != (numbers, numbers):
        raise InputError(
            f"'{path}' is the ZCA transform of other images: these have {numbers} numbers each, its mean has "
            f"{mean.numel()} and its matrix the shape {tuple(matrix.shape)}."
        )
    try:
        flat = torch.linalg.solve(matrix.double().T, images.double().flatten(1).T).T + mean.double().flatten()
    except RuntimeError as error:
        raise InputError(f"The ZCA transform of '{path}' cannot be turned back ({error}).") from error
    return flat.to(images.dtype).view_as(images)


def _learned_rate(path: Path) -> dict[str, float]:
    """The learning rate that was learned with a set, where MTT's kin keep one beside it."""
    partner = path.with_name(path.name.replace("images", "lr"))
    if "images" not in path.name or not partner.is_file():
        return {}
    try:
        rate = read_tensors(partner)
    except InputError:
        return {}
    return {"learned_lr": float(rate.detach())} if isinstance(rate, Tensor) and rate.numel() == 1 else {}


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
    check_factor(synthetic.factor, (images.shape[2], images.shape[3]))
    if not bool(images.isfinite().all()):
        raise InputError(f"{where}: some pixels are NaN or infinite.")
    if not mean or not std:
        raise InputError(f"{where}: the file does not say how its images are normalised; give mean and std.")
    if labels.dim() == 2:
        sums = labels.double().sum(dim=1)
        if bool((labels < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            raise InputError(
                f"{where}: soft labels must be probabilities that sum to 1 for every image; if they are logits, say so "
                "by labels."
            )
        count, classes = labels.shape[1], labels.float()
    else:
        classes = labels.long()
        if not torch.equal(classes.to(labels.dtype), labels):
            raise InputError(
                f"{where}: labels must be class numbers, or a distribution over the classes for each image; got "
                f"{float(labels[(classes != labels)][0]):.3g}."
            )
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
    if not all(isinstance(content[name], list) for name in fields[2:5]) or not isinstance(content["source"], dict):
        raise InputError(f"'{path}' is damaged: mean, std and class_names must be lists, source a mapping.")
    about, images = {**content, "source": _current(content["source"])}, content["images"]
    if isinstance(images, Tensor) and images.dtype == torch.uint8:
        images = images.float() / 255
    return checked(SyntheticSet.of(images, content["labels"], about), f"'{path}'")


def _current(source: dict[str, Any]) -> dict[str, Any]:
    """A source with the names of today."""
    method = source.get("method")
    return {**source, "method": OLD_NAMES[method]} if method in OLD_NAMES else source


def _from_authors(pair: Any, path: Path, index: int, said: Mapping[str, Any]) -> SyntheticSet:
    where = f"'{path}', experiment {index}"
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise InputError(f"{where}: expected [images, labels].")
    source = {"method": "authors' file", "file": path.name, "experiment": index}
    return checked(SyntheticSet.of(pair[0], pair[1], {**said, "source": source}), where)


def _read_folder(path: Path, said: Mapping[str, Any], background: str) -> SyntheticSet:
    about = {**said, "space": "normalised", "source": {"method": "folder of images", "folder": path.name}}
    if (path / METADATA).is_file():
        try:
            found = json.loads((path / METADATA).read_text())
            about |= {key: found[key] for key in ("mean", "std", "class_names")}
            about |= {key: found[key] for key in ("factor", "formation") if key in found}
            about["source"] = _current(found["source"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"'{path / METADATA}' is damaged ({error}).") from error
    if not about["mean"] or not about["std"]:
        raise InputError(f"'{path}' does not say how its images are normalised; give mean and std.")
    try:
        tree = PictureTree(path)
    except FileNotFoundError as error:
        raise InputError(f"'{path}' is no folder with one folder of images a class ({error}).") from error
    names = list(about["class_names"] or tree.classes)
    by_folder = {name: label for label, name in enumerate(names)}
    by_folder |= {folder_name(label, names): label for label in range(len(names))}
    foreign = [folder for folder in tree.classes if folder not in by_folder]
    if foreign:
        raise InputError(f"The folders {foreign} of '{path}' are no classes of the data, which are {names}.")
    tree.loader = partial(read_picture, channels=min(len(about["mean"]), 3), background=background)
    images = [in_unit_range(image) for image, _ in tree]
    labels = torch.tensor([by_folder[tree.classes[folder]] for folder in tree.targets])
    order = labels.argsort(stable=True)
    if len({image.shape for image in images}) > 1:
        raise InputError(f"The images of '{path}' differ in size; they must all be as large as the real ones.")
    normalised = v2.Normalize(about["mean"], about["std"])(torch.stack(images))
    found = SyntheticSet.of(normalised[order], labels[order], {**about, "class_names": names})
    return checked(found, f"'{path}'")
