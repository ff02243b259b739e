"""Files that are there whole or not at all, and tensors that are read without running code."""

import codecs
import io
import locale
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from dc_lightning.errors import InputError, suggestion


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


def save_whole(path: str | Path, content: Any) -> None:
    """`torch.save` by `write_whole`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue())


def read_tensors(path: Path) -> Any:
    """What `torch.save` wrote, if it is tensors, numbers, strings and containers of them.

    Raises:
        InputError: if it is damaged, or would have to run code to be read.
    """
    import numpy as np

    # The authors' files hold accuracies as NumPy numbers; these names build numbers and nothing else.
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed += [np.dtype, type(np.dtype(np.float64))]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"'{path}' holds more than tensors and numbers, so that reading it could run code, or it is damaged; "
            "it was not read. Take a file from a source that saves tensors only."
        ) from error
    except Exception as error:  # a damaged file fails in whatever way
        raise InputError(f"'{path}' is damaged, cut short or of another kind; fetch or write it again.") from error


def shipped(name: str) -> Path:
    """A file of the folder ``configs``, which is installed with the package and lies beside it in a checkout.

    Raises:
        InputError: if there is no such file; names the one that is near.
    """
    package = Path(__file__).parent
    folders = [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    known = [str(path.relative_to(folder)) for folder in folders for path in folder.glob("**/*.yaml")]
    hint = suggestion(name, known)
    raise InputError(f"There is no '{name}' among the configurations of the package; see its folder configs.{hint}")


def expanded(path: str) -> str:
    """A path with ``~`` and ``$VARIABLE`` in it replaced."""
    return os.path.expandvars(os.path.expanduser(path))


def expanded_path(path: str) -> Path:
    """Likewise, as a parser of a command's own words takes it."""
    return Path(expanded(path))


def configuration_file(path: str) -> str:
    """The path of a configuration; ``configs/...`` is the package's where there is none in the working directory.

    Raises:
        InputError: if the file is no UTF-8 text, or cannot be read as such here.
    """
    path = expanded(path)
    if path.startswith("configs/") and not Path(path).exists():
        return str(shipped(path.removeprefix("configs/")))
    if not Path(path).is_file():
        return path
    content = Path(path).read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{path}' is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error
    if not content.isascii() and codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        raise InputError(
            f"'{path}' has letters beyond ASCII, which the encoding of this terminal lacks; set PYTHONUTF8=1."
        )
    return path
