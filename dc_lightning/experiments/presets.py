"""Presets: YAML files in configs that name a way to make a synthetic set, so that a run is called by its name."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import yaml

from dc_lightning import data, methods
from dc_lightning.evaluation import Recipe, load_recipe
from dc_lightning.evaluation.recipe import PLAIN
from dc_lightning.files import shipped
from dc_lightning.parts import part_name

METHODS = ("dc", "dsa", "dm", "idc_i", "idc", "dream")
"""Ours, each a YAML in configs/methods with the protocol of its paper."""

_NOT_COMPARED = {
    "batch_classes",
    "chosen_of",
    "class",
    "dataset",
    "image_shape",
    "ipc",
    "iteration",
    "max_epochs",
    "method",
    "network",
    "real_chunk_size",
    "seed",
    "validation",
}


@dataclass(frozen=True)
class Preset:
    """A named way to make a synthetic set.

    Args:
        name: of its file without the images per class; for a method's own protocol empty.
        method: as results call it: DC, DSA, DM.
        content: of the file.
    """

    name: str
    method: str
    content: dict[str, Any]

    @property
    def label(self) -> str:
        """In tables: ``DC``, or ``DC, preset fashion_mnist_dc``."""
        return f"{self.method}, preset {self.name}" if self.name else self.method

    def settings(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of the method, its data and its length, for the network, ipc and data of a synthetic set."""
        given = self.content.get("model", {}).get("init_args", {})
        name = str(self.content["model"]["class_path"]).rpartition(".")[2]
        module = getattr(methods, name)(**{**given, "network": source["network"], "ipc": int(source["ipc"])})
        channels, *size = source.get("image_shape", (1, 28, 28))
        dataset = dataset_class(str(source["dataset"]))
        module.complete(SimpleNamespace(channels=channels, image_size=size, network_images=dataset.network_images))
        found = {key: getattr(module, key, None) if value is None else value for key, value in module.hparams.items()}
        length = self.content.get("trainer", {}).get("max_epochs", 1000)
        batch_real = self.content.get("data", {}).get("init_args", {}).get("batch_real", 256)
        return {**found, "iterations": length, "batch_real": batch_real, "precision": "32-true"}

    def departures(self, source: Mapping[str, Any]) -> list[str]:
        """How the settings of a set differ from the preset, in words; what its file does not say is not judged.

        Args:
            source: of a synthetic set.
        """
        if source.get("method") != self.method or not is_ours(source):
            return [f"{key} {_text(value)}" for key, value in made_with(source).items()]
        made, expected = made_with(source), self.settings(source)
        if made.get("outer_steps", expected.get("outer_steps")) == 1:
            made.pop("inner_epochs", None)  # there is no step to train for
        planned = source.get("max_epochs")
        if source.get("lr_images_cooldown") and planned not in (None, made.get("iterations")):
            made["lr_images_cooldown"] = f"{source['lr_images_cooldown']} of {planned} iterations"
        return [
            f"{value} {key}" if key == "iterations" else f"{key} {_text(value)}"
            for key, value in made.items()
            if value is not None and value != expected.get(key)
        ]

    def fits(self, source: Mapping[str, Any]) -> bool:
        """Whether a set was made by it, for the dataset and images per class of a preset."""
        given = self.content.get("model", {}).get("init_args", {})
        dataset = str(self.content.get("data", {}).get("class_path", "")).rpartition(".")[2]
        same_ipc = not self.name or given.get("ipc") == source.get("ipc")
        return same_ipc and dataset in ("", source.get("dataset")) and not self.departures(source)


def dataset_class(name: str) -> Any:
    """The data module of a dataset of ours; of another the base class, which has the defaults."""
    found = getattr(data, name.partition(" validation ")[0], None)
    return found if inspect.isclass(found) else data.CondensationDataModule


def _text(value: Any) -> str:
    return part_name(value) if isinstance(value, dict) else str(value)


def is_ours(source: Mapping[str, Any]) -> bool:
    """Whether a method of this package made a set, and no other of the same name."""
    path = str(source.get("class", "CondensationModule"))
    return path == "CondensationModule" or path.startswith("dc_lightning.methods.")


def compares_distances(source: Mapping[str, Any]) -> bool:
    """Whether the distance of gradients is a dimension of a table (DC's T7), and not a setting like others."""
    return str(source.get("class", "CondensationModule")).endswith("CondensationModule")


def made_with(source: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that affects how a set was made but dataset, network, images per class, seed, and DC's distance."""
    found = {key: value for key, value in source.items() if key not in _NOT_COMPARED}
    if compares_distances(source):
        found.pop("distance", None)
    length = source.get("chosen_of", source.get("iteration"))  # with other seeds other iterations are chosen
    return found if length is None else {"iterations": length, **found}


@cache
def shipped_presets() -> list[Preset]:
    """The methods' own protocols, then all files in configs/presets."""
    files = {name: shipped(f"methods/{name}.yaml") for name in METHODS}
    named = [("", path) for path in files.values()]
    for path in sorted((files["dc"].parent.parent / "presets").glob("*.yaml")):
        named.append((re.sub(r"_ipc\d+$", "", path.stem), path))
    presets = []
    for name, path in named:
        content = yaml.safe_load(path.read_text())
        model = content["model"]
        made = getattr(methods, model["class_path"].rpartition(".")[2])(**model["init_args"])
        presets.append(Preset(name, made.name, content))
    return presets


def own_recipe(method: str) -> str:
    """Name of the recipe that a method's paper scores by: DC's for all but those whose YAML says otherwise."""
    own = next((preset for preset in shipped_presets() if preset.method == method), None)
    return str(((own.content if own else {}).get("evaluation") or {}).get("recipe", {}).get("name", "DC"))


def preset_of(source: Mapping[str, Any]) -> Preset | None:
    """The preset that a set was made by, if there is one."""
    return next((preset for preset in shipped_presets() if preset.fits(source)), None)


def scoring_departures(content: Mapping[str, Any], score: Mapping[str, Any], epochs: int | None = None) -> list[str]:
    """How test networks were trained otherwise than by the recipe of that name, in words.

    Args:
        content: of results.json.
        score: one of its scores.
        epochs: E in place of the recipe's, of the whole set, which is trained without CutMix.
    """
    try:
        recipe = _recipe_of(str(score.get("recipe", "DC")))
    except ValueError:
        return []
    recipe = recipe if epochs is None else replace(recipe, cutmix=0.0)
    settings = ((content.get("configuration") or {}).get("evaluation") or {}).get("recipe") or {}
    numbers = ("lr", "momentum", "weight_decay", "batch_size", "milestones", "lr_factor", "fresh_momentum")
    found = []
    if settings.get("name", "DC") == recipe.name.removesuffix(PLAIN):
        found += [
            f"evaluation {name} {settings[name]}"
            for name in numbers
            if name in settings and settings[name] != getattr(recipe, name)
        ]
    shape = dataset_class(str(content["dataset"]))
    expected = epochs if epochs is not None else recipe.epochs_for(score["network"], shape)
    if score["augmentation"] != recipe.augmentation_names(score["network"], shape):
        found.append(f"augmentation {'+'.join(score['augmentation']) or 'none'}")
        expected = epochs if epochs is not None else _epochs(recipe, score)
    if int(score["epochs"]) != expected:
        found.append(f"{epochs_run(recipe.name, int(score['epochs']))} test epochs")
    if score.get("loss", "cross_entropy") != part_name(recipe.loss):
        found.append(f"loss {score['loss']}")
    return found


def epochs_run(recipe: str, epochs: int) -> int:
    """How many epochs were run by a recipe of that name, where E is known; of others as by DC's."""
    try:
        return _recipe_of(recipe).epochs_run(epochs)
    except ValueError:
        return epochs + 1


def _recipe_of(name: str) -> Recipe:
    """The recipe of that name in results."""
    found = load_recipe(name.removesuffix(PLAIN).lower())
    return found.plain() if name.endswith(PLAIN) else found


def _epochs(recipe: Recipe, score: Mapping[str, Any]) -> int:
    return recipe.epochs_of(bool(score["augmentation"]))
