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
from dc_lightning.data.datamodule import dataset_of
from dc_lightning.errors import InputError
from dc_lightning.evaluation import Recipe, load_recipe
from dc_lightning.evaluation.recipe import PLAIN
from dc_lightning.files import shipped
from dc_lightning.parts import arguments_of, part_name
from dc_lightning.run.results import OF_A_RUN, length_of

METHODS = ("dc", "dsa", "dm", "idc_i", "idc", "dream", "frepo")
"""Ours, each a YAML in configs/methods with the protocol of its paper; FRePo's is shorter, as the file says."""

_NOT_COMPARED = {*OF_A_RUN, "class", "dataset", "ipc", "method", "network", "validation"}


@dataclass(frozen=True)
class Preset:
    """A named way to make a synthetic set."""

    name: str  # of its file without the images per class; for a method's own protocol empty
    method: str  # as results call it: DC, DSA, DM
    content: dict[str, Any]  # of the file

    @property
    def label(self) -> str:
        """In tables: ``DC``, or ``DC, preset fashion_mnist_dc``."""
        return f"{self.method}, preset {self.name}" if self.name else self.method

    def settings(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of the method, its data and its length, for the network, ipc and data of a synthetic set."""
        model = self.content["model"]
        given = {**arguments_of(model), "network": source["network"], "ipc": int(source["ipc"])}
        module = getattr(methods, model["class_path"].rpartition(".")[2])(**given)
        channels, *size = source.get("image_shape", (1, 28, 28))
        dataset = dataset_class(str(source["dataset"]))
        of_dataset = {name: getattr(dataset, name) for name in ("network_images", "usual_side")}
        module.complete(SimpleNamespace(channels=channels, image_size=size, **of_dataset))
        found = {key: getattr(module, key, None) if value is None else value for key, value in module.hparams.items()}
        trainer = {"max_epochs": 1000, "precision": "32-true", **self.content.get("trainer", {})}
        batch_real = arguments_of(self.content.get("data", {})).get("batch_real", 256)
        of_trainer = {"iterations": trainer["max_epochs"], "precision": trainer["precision"]}
        return {**found, **of_trainer, "batch_real": batch_real}

    def departures(self, source: Mapping[str, Any]) -> list[str]:
        """How the settings in a set's source differ, in words; what its file does not say is not judged."""
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
        dataset = self.content.get("data", {}).get("class_path", "").rpartition(".")[2]
        same_ipc = not self.name or self.content["model"]["init_args"].get("ipc") == source.get("ipc")
        return same_ipc and dataset in ("", source.get("dataset")) and not self.departures(source)


def dataset_class(name: str) -> Any:
    """The data module of a dataset of ours; of another the base class, which has the defaults."""
    found = getattr(data, dataset_of(name), None)
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
    length = length_of(source)
    return found if length is None else {"iterations": length, **found}


@cache
def shipped_presets() -> list[Preset]:
    """The methods' own protocols, then all files in configs/presets."""
    own = [shipped(f"methods/{name}.yaml") for name in METHODS]
    presets = []
    for path in [*own, *sorted((own[0].parent.parent / "presets").glob("*.yaml"))]:
        content = yaml.safe_load(path.read_text())
        model = content["model"]
        made = getattr(methods, model["class_path"].rpartition(".")[2])(**model["init_args"])
        name = "" if path in own else re.sub(r"_ipc\d+$", "", path.stem)
        presets.append(Preset(name, made.name, content))
    return presets


def own_preset(method: str) -> Preset:
    """The protocol of a method; DC's for one that is not ours."""
    presets = shipped_presets()
    return next((preset for preset in presets if preset.method == method), presets[0])


def preset_of(source: Mapping[str, Any]) -> Preset | None:
    """The preset that a set was made by, if there is one."""
    return next((preset for preset in shipped_presets() if preset.fits(source)), None)


def scoring_departures(content: Mapping[str, Any], score: Mapping[str, Any], method: str) -> list[str]:
    """How the test networks of a score in results.json were trained otherwise than in the method's paper, in words.

    The whole set is trained without CutMix, and for as many epochs as one likes: how many is said.
    """
    name, epochs = str(score.get("recipe", "DC")), int(score["epochs"])
    recipe = _recipe_of(name)
    found = [f"{(recipe or Recipe()).epochs_run(epochs)} epochs"] if method == "whole set" else []
    own = own_preset(method).content.get("evaluation", {}).get("recipe", {}).get("name", "DC")
    found += [f"recipe {name}"] if name != own else []
    if recipe is None:
        return found
    if method == "whole set":
        recipe = replace(recipe, cutmix=0.0).with_epochs(epochs)
    settings = ((content.get("configuration") or {}).get("evaluation") or {}).get("recipe") or {}
    if settings.get("name", "DC") == recipe.name.removesuffix(PLAIN):
        numbers = ("lr", "momentum", "weight_decay", "batch_size", "milestones", "lr_factor", "fresh_momentum")
        given = [name for name in numbers if settings.get(name, getattr(recipe, name)) != getattr(recipe, name)]
        found += [f"evaluation {name} {settings[name]}" for name in given]
    if score["augmentation"] != recipe.augmentation_names(score["network"], dataset_class(str(content["dataset"]))):
        found.append(f"augmentation {'+'.join(score['augmentation']) or 'none'}")
    if epochs != recipe.epochs_of(bool(score["augmentation"])):
        found.append(f"{recipe.epochs_run(epochs)} test epochs")
    if score.get("loss", "cross_entropy") != part_name(recipe.loss):
        found.append(f"loss {score['loss']}")
    return found


@cache
def _recipe_of(name: str) -> Recipe | None:
    """The recipe of that name in results; None if it does not ship."""
    try:
        found = load_recipe(name.removesuffix(PLAIN).lower())
    except InputError:
        return None
    return found.plain() if name.endswith(PLAIN) else found
