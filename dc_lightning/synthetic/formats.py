"""Files to share a set by: folder of images, bytes, Parquet with a dataset card, NPZ, safetensors; and reading them."""

import io
import json
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from dc_lightning.errors import InputError, require_known
from dc_lightning.files import write_whole
from dc_lightning.synthetic.synthetic_set import SyntheticSet, as_picture

Format = Literal["folder", "8-bit", "parquet", "npz", "safetensors"]
FORMATS: tuple[str, ...] = get_args(Format)

_KEY = "dc_lightning"
_EXACT = "parquet, npz and safetensors keep every bit"


def export(synthetic: SyntheticSet, path: str | Path, to: Format = "folder", scores: str = "") -> str:
    """Writes a set for others.

    Args:
        synthetic: the set.
        path: a new folder (``folder``, and ``parquet``, which is ready for a hub), or a new file.
        to: ``folder``, PNG files of 8 bits in ImageFolder layout; ``8-bit``, a file of ours with a byte a number, in
            place of four; ``parquet``, for ``datasets.load_dataset``, with the columns image (8 bits), pixels (exact)
            and label, and a dataset card beside it; ``npz``; ``safetensors``.
        scores: of the set, in words, for the card.

    Returns:
        What was written, in a sentence.

    Raises:
        InputError: if the path is there already, a library is missing, or the format cannot hold the set.
    """
    path = Path(path)
    require_known("format", to, FORMATS)
    if to == "folder":
        synthetic.export(path)
        return f"{len(synthetic.images)} images written to {path}; {faithfulness(synthetic)}"
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise InputError(f"'{path}' is there already; export to a new one, so that nothing old mixes in.")
    if to == "8-bit":
        numbers = synthetic.unit_range_images().mul(255).round().to(torch.uint8)
        replace(synthetic.as_8_bit(), images=numbers, space="pixels").save(path)
        return f"{len(numbers)} images written to {path}; {faithfulness(synthetic)}"
    if to == "parquet":
        _write_parquet(synthetic, path, scores)
    elif to == "npz":
        buffer = io.BytesIO()
        arrays = {name: tensor.numpy() for name, tensor in synthetic.tensors().items()}
        np.savez(buffer, **arrays, **{_KEY: np.array(json.dumps(synthetic.about()))})  # type: ignore[arg-type]
        write_whole(path, buffer.getvalue())
    else:
        library = _library("safetensors.torch")
        write_whole(path, library.save(synthetic.tensors(), {_KEY: json.dumps(synthetic.about())}))
    return f"{len(synthetic.images)} images written to {path}, every bit of them"


def faithfulness(synthetic: SyntheticSet) -> str:
    """How far image files of 8 bits are from a set, in a sentence."""
    pixels = synthetic.denormalised()
    outside = ((pixels < 0) | (pixels > 1)).double().mean()
    moved = (pixels - synthetic.rounded_pixels()).abs().max()
    if float(outside) == 0:
        return f"8 bits move its pixels by at most {float(moved):.3f}"
    return (
        f"{float(outside):.0%} of its pixels lie outside [0, 1], and 8 bits move them by up to {float(moved):.2f}: as "
        f"files it is another set ({_EXACT})"
    )


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"This format needs {package}; install it by pip install 'dc_lightning[hub]'.") from error


def _write_parquet(synthetic: SyntheticSet, folder: Path, scores: str) -> None:
    if synthetic.labels.dim() == 2:
        raise InputError("Parquet has hard labels only, and this set has soft ones; take npz or safetensors.")
    datasets, parquet = _library("datasets"), _library("pyarrow.parquet")
    shape = tuple(synthetic.images.shape[1:])
    features = datasets.Features(
        image=datasets.Image(),
        pixels=datasets.Array3D(shape, "float32"),
        label=datasets.ClassLabel(names=list(synthetic.class_names)),
    )
    columns = {
        "image": [as_picture(image) for image in synthetic.viewable()[0]],
        "pixels": synthetic.images.float().numpy(),
        "label": synthetic.labels.tolist(),
    }
    file = folder / "data" / "train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(file))
    if not hidden:
        datasets.enable_progress_bars()
    table = parquet.read_table(file)
    note = {_KEY.encode(): json.dumps(synthetic.about()).encode()}
    buffer = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **note}), buffer)
    write_whole(file, buffer.getvalue())
    write_whole(folder / "README.md", card(synthetic, scores).encode())


def card(synthetic: SyntheticSet, scores: str = "") -> str:
    """A dataset card for a hub, Markdown with a YAML header; the licence is left to whoever publishes the set."""
    source = synthetic.source
    dataset = str(source.get("dataset", "a dataset"))
    size = "n<1K" if len(synthetic.images) < 1000 else "1K<n<10K" if len(synthetic.images) < 10_000 else "10K<n<100K"
    shape = "x".join(map(str, synthetic.images.shape[1:]))
    packed = (
        f" Every stored image holds {synthetic.images_in_one} training images (factor {synthetic.factor}, "
        f"formation {synthetic.formation})."
        if synthetic.images_in_one > 1
        else ""
    )
    space = "pixels, [0, 1] and beyond" if synthetic.space == "pixels" else "normalised by mean and std"
    return f"""---
license: unknown
task_categories:
- image-classification
size_categories:
- {size}
tags:
- dataset-condensation
- dataset-distillation
configs:
- config_name: default
  data_files: data/*.parquet
---

# {dataset}, condensed by {synthetic.method}

{len(synthetic.images)} synthetic images of {shape} in {synthetic.num_classes} classes, {synthetic.ipc} a class.{packed}
Column `pixels` is exact ({space}; mean {list(synthetic.mean)}, std {list(synthetic.std)}); column `image` shows it in
8 bits.

Score: {scores or "not stated"}.

```python
from dc_lightning import load_synthetic

(synthetic,) = load_synthetic("path/of/this/folder")  # a torch Dataset of (image, label)
images, labels = synthetic.decoded()  # what a network trains on, normalised
```

Made by: `{json.dumps(source, default=str)}`
"""


def read_shared(path: Path) -> SyntheticSet | None:
    """A set from a file that `export` wrote, recognised by its first bytes; None if it is of another kind.

    Raises:
        InputError: if it is of such a kind and not one of ours, damaged, or a library is missing.
    """
    with path.open("rb") as file:
        start = file.read(9)
    readers = {b"PAR1": _read_parquet, b"PK\x03\x04": _read_npz}
    reader = readers.get(start[:4]) or (_read_safetensors if start[8:9] == b"{" else None)
    if reader is None:
        return None
    try:
        return reader(path)
    except InputError:
        raise
    except Exception as error:  # a damaged file fails in whatever way
        raise InputError(f"'{path}' is damaged or cut short; fetch or write it again.") from error


def _read_parquet(path: Path) -> SyntheticSet:
    parquet = _library("pyarrow.parquet")
    table = parquet.read_table(path)
    note = (table.schema.metadata or {}).get(_KEY.encode())
    if note is None or "pixels" not in table.column_names:
        raise InputError(f"'{path}' is a Parquet file without the column pixels of a synthetic set of this package.")
    pixels = np.array(table["pixels"].to_pylist(), dtype=np.float32)
    return SyntheticSet.of(torch.from_numpy(pixels), torch.tensor(table["label"].to_pylist()), json.loads(note))


def _read_npz(path: Path) -> SyntheticSet | None:
    try:
        arrays = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        names = set(arrays.files)
    except (ValueError, zipfile.BadZipFile):  # a damaged archive may be one of torch's as well
        return None
    if any(name.endswith(".pkl") or "/" in name for name in names):  # torch's own files are zip archives too
        return None
    if not {"images", "labels", _KEY} <= names:
        raise InputError(f"'{path}' has the arrays {', '.join(sorted(names))}; expected images, labels and {_KEY}.")
    images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
    return SyntheticSet.of(images, labels, json.loads(str(arrays[_KEY])))


def _read_safetensors(path: Path) -> SyntheticSet:
    with _library("safetensors").safe_open(str(path), framework="pt") as file:
        note = (file.metadata() or {}).get(_KEY)
        if note is None:
            raise InputError(f"'{path}' is a safetensors file, but holds no synthetic set of this package.")
        return SyntheticSet.of(file.get_tensor("images"), file.get_tensor("labels"), json.loads(note))
