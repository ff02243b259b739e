"""What a run found: results.json, and the table in the terminal."""

import json
import os
import platform
import shutil
from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dc_lightning.errors import InputError
from dc_lightning.evaluation import Score
from dc_lightning.files import write_whole
from dc_lightning.synthetic import SyntheticSet

FORMAT = "dc_lightning results 2"
_FORMATS = ("dc_lightning results 1", FORMAT)

OF_A_RUN = ("batch_classes", "chosen_of", "image_shape", "iteration", "max_epochs", "real_chunk_size", "seed")
"""In what the sources of sets may differ that were made in one way; for the iterations see `length_of`."""


def length_of(source: Mapping[str, Any]) -> int | None:
    """Iterations of the run that a set came from; with other seeds others of them are chosen."""
    return source.get("chosen_of", source.get("iteration"))


@dataclass(frozen=True)
class Column:
    """The scores of one kind of set, a column of the table.

    Args:
        name: such as DC, random, whole set.
        scores: one an architecture.
        training_images: how many images each network was trained on.
        stored_images: how many were stored for that, the budget.
        labels: ``hard`` or ``soft``.
    """

    name: str
    scores: list[Score]
    training_images: int
    stored_images: int
    labels: str = "hard"

    @classmethod
    def of(cls, synthetic: SyntheticSet, scores: list[Score]) -> "Column":
        """The column of a set, by the name of the method that made it."""
        labels = "soft" if synthetic.labels.dim() == 2 else "hard"
        return cls(synthetic.method, scores, len(synthetic), len(synthetic.images), labels)

    def to_dict(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "name": self.name,
            "training_images": self.training_images,
            "stored_images": self.stored_images,
            "labels": self.labels,
            "scores": [score.to_dict() for score in self.scores],
        }


def percent(score: Score) -> str:
    """Mean, population standard deviation and n, in percent: ``70.5 ± 0.6 (n=20)``."""
    return f"{100 * score.mean:.1f} ± {100 * score.std:.1f} (n={len(score.accuracies)})"


def images_in_words(used: int, stored: int) -> str:
    """Images that a network trains on, and where several are in one, how many are stored: ``40 images in 10``."""
    words = f"{used} {'image' if used == 1 else 'images'}"
    return words if used == stored else f"{words} in {stored}"


def print_table(columns: Sequence[Column], title: str, console: Console | None = None) -> None:
    """One row a test network, one column a kind of set; what was not run stays blank.

    Into a file as wide as it is, to a terminal with long names on several lines.
    """
    console = console or Console()
    sign = "±" if console.encoding.lower().startswith("utf") else "+-"
    table = Table(title=Text(title), caption=f"test accuracy in %, mean {sign} population std over n networks")
    table.add_column("test network", overflow="fold")
    for column in columns:
        images = images_in_words(column.training_images, column.stored_images)
        table.add_column(Text(f"{column.name}\n{images}"), justify="right", overflow="fold")
    several = len({score.recipe for column in columns for score in column.scores}) > 1
    found = [{(score.network, score.recipe): score for score in column.scores} for column in columns]
    for row in dict.fromkeys(row for scores in found for row in scores):
        cells = (percent(scores[row]).replace("±", sign) if row in scores else "" for scores in found)
        table.add_row(Text(", recipe ".join(row) if several else row[0]), *cells)
    if not console.is_terminal:
        needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        console = Console(file=console.file, width=max(console.width, needed))
    console.print(table)


def environment() -> dict[str, Any]:
    """Versions and hardware, as far as they bear on figures."""
    versions = {"python": platform.python_version()}
    for package in ("dc_lightning", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"versions": versions, "hardware": hardware, "system": platform.platform()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Evaluated(UserDict[str, float]):
    """Accuracies found so far, in a folder with one file a process: a stopped evaluation resumes where it stopped."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        super().__init__()
        self.folder, self.path = folder, folder / f"{rank}.jsonl"
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text(errors="replace").splitlines():
                try:
                    job, accuracy = json.loads(line)
                    self.data[str(job)] = float(accuracy)
                except (ValueError, TypeError):  # cut off when the process was killed
                    continue

    def __setitem__(self, job: str, accuracy: float) -> None:
        super().__setitem__(job, accuracy)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(f"\n{json.dumps([job, accuracy])}")

    def remove(self) -> None:
        """Once there are whole results."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_results(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes results.json, whole or not at all."""
    write_whole(path, json.dumps({"format": FORMAT, **content}, indent=2).encode())


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads what `write_results` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is something else, or broken.
    """
    text = Path(path).read_text(errors="replace")
    try:
        content = json.loads(text)
        scores = [score for column in content["columns"] for score in column["scores"]]
        whole = [
            isinstance(score["network"], str)
            and 0 < len(score["accuracies"]) == len(score["seeds"])
            and all(0 <= float(accuracy) <= 1 for accuracy in score["accuracies"])
            for score in scores
        ]
        if not whole or not all(whole):
            raise ValueError
        known = content["format"] in _FORMATS
    except (ValueError, KeyError, TypeError) as broken:
        raise InputError(f"'{path}' is damaged or not a results.json of ours; it is left out.") from broken
    if not known:
        raise InputError(f"'{path}' has the format '{content['format']}', and '{FORMAT}' was expected; it is left out.")
    return dict(content)
