"""Sets that ship with the package: by the name of their folder, or by dataset and images per class."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dc_lightning.errors import InputError, suggestion
from dc_lightning.files import shipped


@dataclass(frozen=True)
class ReadySet:
    """A set that ships.

    Args:
        name: ``folder/seed``, such as ``fashion_mnist_dc_ipc10/seed_0``.
        path: of its file.
        results: what results.json beside it says.
    """

    name: str
    path: Path
    results: dict[str, Any]

    @property
    def short_name(self) -> str:
        """Dataset and images per class, ``FashionMNIST/ipc10``; of several sets it names the best with seed 0."""
        return f"{self.results['dataset']}/ipc{self.results['ipc']}"

    @property
    def score(self) -> dict[str, Any]:
        """Of the network that condensed it, by the recipe of its method."""
        return dict(self.results["columns"][0]["scores"][0])

    def in_words(self) -> str:
        """Its score: ``82.5 ± 0.2 % (ConvNet, n=20, recipe DC)``, and where several images are in one, how many."""
        score = self.score
        spread = f"{100 * score['mean']:.1f} ± {100 * score['std']:.1f} %"
        found = self.results["columns"][0]
        used, stored = found["training_images"], found.get("stored_images", found["training_images"])
        packed = "" if used == stored else f", {used // stored} images in one"
        return f"{spread} ({score['network']}, n={score['n']}, recipe {score.get('recipe', 'DC')}{packed})"


@cache
def ready_sets() -> tuple[ReadySet, ...]:
    """All of them, by name; those of presets alone."""
    folder = shipped("base.yaml").parent / "results"
    presets = {path.stem for path in (folder.parent / "presets").glob("*.yaml")}
    found = []
    for path in sorted(folder.glob("*/*/synthetic.pt")):
        results = path.with_name("results.json")
        if path.parent.parent.name in presets and results.is_file():
            name = f"{path.parent.parent.name}/{path.parent.name}"
            found.append(ReadySet(name, path, json.loads(results.read_text(encoding="utf-8"))))
    return tuple(found)


def ready_set(name: str) -> ReadySet:
    """The set of a name or a short name.

    Raises:
        InputError: if there is none; names the one that is near.
    """
    sets = ready_sets()
    first = [ready for ready in sets if ready.name.endswith("/seed_0")]
    found = [ready for ready in sets if ready.name == name] or [ready for ready in first if ready.short_name == name]
    if found:
        return max(found, key=lambda ready: float(ready.score["mean"]))
    known = [word for ready in sets for word in (ready.name, ready.short_name)]
    raise InputError(
        f"There is no synthetic set at '{name}'; give a .pt file, a folder of images, or the name of a set that ships "
        f"(dc-lightning sets).{suggestion(name, known)}"
    )
