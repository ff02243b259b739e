"""The rows of a report: what results.json files say of sets that were made and scored in the same way."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, get_args

from dc_lightning.data.datamodule import dataset_of
from dc_lightning.errors import InputError
from dc_lightning.evaluation.selection import Selection
from dc_lightning.experiments.paper import DATASETS, SELECTIONS, SHAPES, TABLE_1, TABLE_2, WHOLE_SET, Accuracy
from dc_lightning.experiments.presets import (
    compares_distances,
    is_ours,
    made_with,
    own_preset,
    preset_of,
    scoring_departures,
)
from dc_lightning.parts import arguments_of, part_name
from dc_lightning.run.results import read_results
from dc_lightning.synthetic import load_synthetic
from dc_lightning.synthetic.formation import images_in_one
from dc_lightning.synthetic.reading import OLD_NAMES

BOUNDS = ("random", "whole set")
"""Columns that say what others are worth, and no way to make a set."""

REAL = (*SELECTIONS, "whole set")
"""Columns of real images."""


@dataclass(frozen=True)
class Key:
    """What may be pooled: sets from different seeds that were made and scored in the same way."""

    dataset: str
    ipc: int  # 0 for the whole set
    method: str  # by its name in results: DC, herding, whole set
    network: str  # that condensed, or gave the features; empty for random and whole set
    distance: str  # of gradients, where the method compares them
    tested_on: str  # test network
    recipe: str  # by which it was trained
    label: str  # how the set was made: the method, its preset, or ``custom``
    made: str  # all settings of the method, as text
    scored: tuple[str, ...]  # departures from the recipe, in words
    held_out: float = 0.0  # share of the training images that was not used
    labels: str = ""  # hard or soft; empty where results of older versions do not say it
    shape: str = ""  # of the images, where it is not that of the papers: 3x32x32

    @property
    def terms(self) -> list[str]:
        """What else distinguishes the set, in words."""
        soft = ["soft labels"] if self.labels == "soft" else []
        shape = [f"images of {self.shape}"] if self.shape else []
        return [*soft, *shape, *([f"{self.held_out:g} held out"] if self.held_out else [])]

    @property
    def row(self) -> str:
        """The label with the departures from the recipe."""
        return ", ".join([self.label, *self.terms, *self.scored])


@dataclass
class Row:
    """All accuracies of a key."""

    key: Key
    departures: tuple[str, ...]  # of a custom set, from the method's own protocol, in words
    is_ours: bool  # whether the figures of the papers are those of its method
    images_in_one: int  # training images in a stored one
    budget: int | None  # bytes of the stored images: four a number, one in image files, as real images are; or unknown
    # in [0, 1], by the seed of the set and that of the test network: what is found twice counts once
    accuracies: dict[tuple[int, int], float]
    hours: list[float]  # of each run, from start to results
    on_gpu: bool  # where they were spent
    folders: list[Path] = field(default_factory=list)  # of each run
    curves: list[list[tuple[int, float]]] = field(default_factory=list)  # of each run, by outer iterations
    curves_on: str = "test"  # split

    def add(self, other: "Row") -> bool:
        """Pools what another row of the key has found; returns whether both agree on what they have in common."""
        common = self.accuracies.keys() & other.accuracies.keys()
        agree = all(abs(self.accuracies[seeds] - other.accuracies[seeds]) <= 1e-6 for seeds in common)
        if len(common) < len(other.accuracies):
            self.accuracies = other.accuracies | self.accuracies
            self.curves += other.curves
            self.folders += other.folders
            self.hours += other.hours
            self.on_gpu = other.on_gpu if other.hours else self.on_gpu
        return agree

    @property
    def accuracy(self) -> Accuracy:
        """Mean and population standard deviation, in percent."""
        values = [100 * value for value in self.accuracies.values()]
        return fmean(values), pstdev(values)

    @property
    def sets(self) -> int:
        """Synthetic sets; random images are drawn again for every network."""
        return len({seed for seed, _ in self.accuracies})

    @property
    def paper(self) -> Accuracy | None:
        """The paper's figure, if it gives one."""
        key = self.key
        if f"recipe {key.recipe}" in key.scored or key.held_out or key.shape:
            return None
        if key.method == "whole set":
            return WHOLE_SET.get(key.dataset) if key.tested_on == "ConvNet" else None
        if not self.is_ours or key.distance not in ("", "ours"):
            return None
        if key.method == "DC" and (key.dataset, key.ipc) == ("MNIST", 1) and (key.network, key.tested_on) in TABLE_2:
            return TABLE_2[key.network, key.tested_on]
        is_convnet = key.tested_on == "ConvNet" and key.network in ("", "ConvNet")
        return TABLE_1.get((key.dataset, key.ipc, key.method)) if is_convnet else None

    @property
    def title(self) -> str:
        """The whole of it, in words."""
        key = self.key
        parts = [key.dataset, f"{key.ipc} per class" if key.ipc else "", key.label]
        parts += [key.network if key.method not in SELECTIONS else "", key.distance if key.distance != "ours" else ""]
        return ", ".join([*filter(None, parts), *key.terms, *self.departures, *key.scored])


def percent(accuracy: Accuracy) -> str:
    """``70.5 ± 0.6``; ``70.5`` where the spread is not given."""
    mean, std = accuracy
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def _complete(source: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """A source with what 0.1.0 wrote into the configuration of the run alone, under today's names."""
    found = {**source, "method": OLD_NAMES.get(str(source.get("method")), source.get("method"))}
    if content.get("kind") != "condensation" or "class" in source:
        return found
    configuration = content.get("configuration") or {}
    settings, data = (arguments_of(configuration.get(part) or {}) for part in ("model", "data"))
    return {**{key: data.get(key) for key in ("batch_real", "mean", "std")}, **settings, **found}


def _held(source: Mapping[str, Any]) -> int:
    return images_in_one(int(source.get("factor", 1)), "multi" if source.get("formation") == "multi" else "single")


def _shape_beside(folder: Path) -> Sequence[int] | None:
    """Shape of the images of a run of 0.1.0, whose results do not say it."""
    try:
        return tuple(load_synthetic(folder / "synthetic.pt")[0].images.shape[1:])
    except InputError:
        return None


def label_of(source: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """How a set was made, and the departures from its method's protocol where it was by nobody's preset."""
    method, held, departures = str(source.get("method", "synthetic")), _held(source), list[str]()
    plain = {key: value for key, value in source.items() if key != "stored_as"}
    if method in get_args(Selection):
        by = part_name(source.get("features") or "ConvNet")
        label = f"{method}, features {'' if by == 'ConvNet' else f'of {by} '}after {source.get('epochs')} epochs"
    elif "network" not in source or method in BOUNDS:
        label = ", ".join([method, *(str(source[key]) for key in ("file", "folder") if key in source)])
    elif preset := preset_of(plain):
        label = preset.label
    else:
        label = f"{method}, custom" if is_ours(plain) else method
        departures = own_preset(method).departures(plain)
    label += f", {source['stored_as']}" if "stored_as" in source else ""
    return label + (f", {held} images in one" if held > 1 else ""), tuple(departures)


def _rows_of(content: Mapping[str, Any], folder: Path) -> Iterator[Row]:
    """What one file says, a row for each set, test network and recipe."""
    first = content.get("source") or {}
    content = {"dataset": first.get("dataset"), "ipc": first.get("ipc"), **content}
    dataset, ipc, sources = str(content["dataset"]), int(content["ipc"]), content.get("sources") or [content["source"]]
    if content["dataset"] is None:
        raise KeyError("dataset")
    shapes = [each["image_shape"] for each in (content, *sources) if each.get("image_shape")]
    shape = shapes[0] if shapes else _shape_beside(folder)
    usual = SHAPES.get(dataset_of(dataset))
    resized = "x".join(str(side) for side in shape) if shape and usual and tuple(shape) != usual else ""
    history = content.get("history", [])
    is_run = content.get("kind") == "condensation" and "seconds" in content
    evaluation = (content.get("configuration") or {}).get("evaluation") or {}
    for number, column in enumerate(content["columns"]):
        name = OLD_NAMES.get(str(column["name"]), str(column["name"]))
        here = [_complete(source, content) for source in sources]
        if name == "8-bit":
            here = [{**source, "stored_as": "8-bit images"} for source in here]
            name = str(here[0]["method"])
        elif number > 0 or name == "whole set":
            here = [{"method": name}]
        if name in get_args(Selection):
            trained = {"features": evaluation.get("features_network"), "epochs": evaluation.get("whole_set_epochs")}
            here = [{**trained, "seed": content.get("seed"), **source} for source in here]
        is_bound = name == "whole set" or (number > 0 and name == "random")
        for score in column["scores"]:
            scored = tuple(scoring_departures(content, score, name))
            curve = [
                (int(entry["iteration"]), float(then["mean"]))
                for entry in history
                for then in entry["scores"]
                if number == 0 and (then["network"], then.get("recipe")) == (score["network"], score.get("recipe"))
            ]
            pairs = list(zip([int(seed) for seed in score["seeds"]], score["accuracies"], strict=True))
            each = len(pairs) // len(here)  # one set after the other
            for place, source in enumerate(here):
                label, departures = label_of(source)
                key = Key(
                    dataset=dataset,
                    ipc=0 if name == "whole set" else ipc,
                    method=name,
                    network=part_name(source.get("network") or source.get("features") or ""),
                    distance=part_name(source.get("distance") or "") if compares_distances(source) else "",
                    tested_on=score["network"],
                    recipe=str(score.get("recipe", "DC")),
                    label=label,
                    made=json.dumps(made_with(source), sort_keys=True, default=str) if departures else "",
                    scored=scored,
                    held_out=float(source.get("validation") or content.get("validation") or 0),
                    labels=str(column.get("labels", "")),
                    shape=resized,
                )
                seed = int(source.get("seed") or source.get("experiment") or 0)
                stored = int(column.get("stored_images") or column.get("training_images", 0))
                bytes_each = 1 if name in REAL or "stored_as" in source else 4
                yield Row(
                    key,
                    departures,
                    is_ours=name in SELECTIONS or is_ours(source),
                    images_in_one=_held(source),
                    budget=stored * prod(shape) * bytes_each if shape else None,
                    accuracies={
                        (network_seed if is_bound else seed, network_seed): float(value)
                        for network_seed, value in pairs[place * each : (place + 1) * each]
                    },
                    hours=[float(content["seconds"]) / 3600] if is_run else [],
                    on_gpu=is_run and str(content.get("device")).startswith("cuda"),
                    folders=[folder] if number == 0 else [],
                    curves=[curve] if curve else [],
                    curves_on=next((str(entry["split"]) for entry in history if "split" in entry), "test"),
                )


@dataclass(frozen=True)
class Found:
    """What results say."""

    rows: list[Row] = field(default_factory=list)  # of the papers' tables
    folders: list[Path] = field(default_factory=list)  # that were read
    problems: list[str] = field(default_factory=list)  # a sentence for each file that was left out
    experiments: list[dict[str, Any]] = field(default_factory=list)  # of continual learning and architecture search


def collect(folders: Sequence[Path]) -> Found:
    """Reads all results.json files below the folders, which may be such files themselves, and pools them.

    Raises:
        InputError: if a folder is not there.
    """
    rows: dict[Key, Row] = {}
    found = Found()
    for folder in folders:
        if not folder.exists():
            raise InputError(f"There is no folder '{folder}'; give folders with results.json files below.")
        for path in [folder] if folder.is_file() else sorted(folder.rglob("results.json")):
            try:
                content = read_results(path)
                if "table" in content:
                    found.experiments.append(content)
                    continue
                here = list(_rows_of(content, path.parent))
            except InputError as broken:
                found.problems.append(str(broken))
                continue
            except OSError as unreadable:
                found.problems.append(f"'{path}' cannot be read ({unreadable.strerror}); it is left out.")
                continue
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                said = f"it lacks what a report needs ({type(error).__name__}: {error})"
                found.problems.append(f"'{path}' is left out: {said}.")
                continue
            found.folders.append(path.parent)
            for row in here:
                if not rows.setdefault(row.key, row).add(row) and row.key.method not in BOUNDS:
                    problem = "repeats seeds of a file before it with other accuracies: the first count"
                    found.problems.append(f"'{path}' {problem}.")
    found.rows.extend(sorted(rows.values(), key=in_order))
    return found


def in_order(row: Row) -> tuple[Any, ...]:
    """Sorts rows: the papers' datasets and methods in their order, then others."""
    key, methods = row.key, [*SELECTIONS, "DC", "DSA", "DM", "whole set"]
    place = methods.index(key.method) if key.method in methods else len(methods) - 1.5
    dataset = (DATASETS.index(key.dataset) if key.dataset in DATASETS else len(DATASETS)), key.dataset
    return *dataset, place, key.row, row.departures, key.ipc or 10**9, key.distance, key.network, key.tested_on


def baseline(rows: Sequence[Row], row: Row, method: str) -> Row | None:
    """Random images of the same budget by the same recipe, or the whole set by the same learning rates."""
    whole = method == "whole set"

    def conditions(key: Key) -> tuple[Any, ...]:
        scored = [departure for departure in but_recipe(key.scored) if not (whole and departure.endswith("epochs"))]
        return key.dataset, key.shape, None if whole else key.ipc, key.tested_on, key.recipe, key.held_out, scored

    wanted = conditions(row.key)
    same = [other for other in rows if other.key.method == method and conditions(other.key) == wanted]
    return max(same, key=lambda other: (len(other.accuracies), other.accuracy)) if same else None


def but_recipe(scored: Sequence[str]) -> tuple[str, ...]:
    """Recipes are compared by their names."""
    return tuple(departure for departure in scored if not departure.startswith("recipe "))
