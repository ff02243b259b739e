"""The rows of a report: what results.json files say of sets that were made and scored in the same way."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, get_args

from dc_lightning.errors import InputError
from dc_lightning.evaluation.selection import Selection
from dc_lightning.experiments.paper import DATASETS, SELECTIONS, TABLE_1, TABLE_2, WHOLE_SET, Accuracy
from dc_lightning.experiments.presets import (
    compares_distances,
    epochs_run,
    is_ours,
    made_with,
    own_recipe,
    preset_of,
    scoring_departures,
    shipped_presets,
)
from dc_lightning.parts import part_name
from dc_lightning.run.results import read_results
from dc_lightning.synthetic import load_synthetic
from dc_lightning.synthetic.formation import images_in_one
from dc_lightning.synthetic.reading import OLD_NAMES

BOUNDS = ("random", "whole set")
"""Columns that say what others are worth, and no way to make a set."""


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

    @property
    def terms(self) -> list[str]:
        """What else distinguishes the set, in words."""
        soft = ["soft labels"] if self.labels == "soft" else []
        return [*soft, *([f"{self.held_out:g} held out"] if self.held_out else [])]

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
    accuracies: dict[tuple[int, int], float] = field(default_factory=dict)
    hours: list[float] = field(default_factory=list)  # of each run, from start to results
    on_gpu: bool = False  # where they were spent
    folders: list[Path] = field(default_factory=list)  # of each run
    curves: list[list[tuple[int, float]]] = field(default_factory=list)  # of each run, by outer iterations
    curves_on: str = "test"  # split

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
        if f"recipe {key.recipe}" in key.scored or key.held_out:
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
        return ", ".join([*(part for part in parts if part), *key.terms, *self.departures, *key.scored])


def percent(accuracy: Accuracy) -> str:
    """``70.5 ± 0.6``; ``70.5`` where the spread is not given."""
    mean, std = accuracy
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def _complete(source: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """A source with what 0.1.0 wrote into the configuration of the run alone, under today's names."""
    found = {**source, "method": OLD_NAMES.get(str(source.get("method")), source.get("method"))}
    configuration = content.get("configuration") or {}
    if content.get("kind") != "condensation" or "class" in source:
        return found
    settings = (configuration.get("model") or {}).get("init_args") or {}
    data = (configuration.get("data") or {}).get("init_args") or {}
    return {**{key: data.get(key) for key in ("batch_real", "mean", "std")}, **settings, **found}


def _held(source: Mapping[str, Any]) -> int:
    return images_in_one(int(source.get("factor", 1)), "multi" if source.get("formation") == "multi" else "single")


def _shape_beside(folder: Path) -> Sequence[int] | None:
    """Shape of the images of a run of 0.1.0, whose results do not say it."""
    try:
        return tuple(load_synthetic(folder / "synthetic.pt")[0].images.shape[1:])
    except InputError:
        return None


def _budget(column: Mapping[str, Any], source: Mapping[str, Any], shape: Sequence[int] | None) -> int | None:
    """Bytes of the stored images."""
    if shape is None:
        return None
    real = column["name"] in (*BOUNDS, *get_args(Selection)) or "stored_as" in source
    count = int(column.get("stored_images") or column["training_images"])
    return count * prod(shape) * (1 if real else 4)


def _curve(content: Mapping[str, Any], score: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Accuracies in the course of a run, of the network and recipe of one of its scores."""
    return [
        (int(entry["iteration"]), float(then["mean"]))
        for entry in content.get("history", [])
        for then in entry["scores"]
        if (then["network"], then.get("recipe")) == (score["network"], score.get("recipe"))
    ]


def label_of(source: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """How a set was made, and the departures from its method's protocol where it was by nobody's preset."""
    method = str(source.get("method", "synthetic"))
    stored = [str(source["stored_as"])] if "stored_as" in source else []
    held = _held(source)
    stored += [f"{held} images in one"] if held > 1 else []
    plain = {key: value for key, value in source.items() if key != "stored_as"}
    if method in get_args(Selection):
        by = part_name(source.get("features") or "ConvNet")
        features = f"features {'' if by == 'ConvNet' else f'of {by} '}after {source.get('epochs')} epochs"
        return ", ".join([method, features, *stored]), ()
    if "network" not in source or method in BOUNDS:
        file = [str(source[key]) for key in ("file", "folder") if key in source]
        return ", ".join([method, *file, *stored]), ()
    preset = preset_of(plain)
    if preset is not None:
        return ", ".join([preset.label, *stored]), ()
    own = next((p for p in shipped_presets() if p.method == method and not p.name), shipped_presets()[0])
    return ", ".join([f"{method}, custom" if is_ours(plain) else method, *stored]), tuple(own.departures(plain))


def _rows_of(content: Mapping[str, Any], folder: Path) -> Iterable[tuple[Row, dict[tuple[int, int], float]]]:
    first = content.get("source") or {}
    content = {"dataset": first.get("dataset"), "ipc": first.get("ipc"), **content}
    dataset, ipc, sources = str(content["dataset"]), int(content["ipc"]), content.get("sources") or [content["source"]]
    if content["dataset"] is None:
        raise KeyError("dataset")
    shape = content.get("image_shape") or next((each["image_shape"] for each in sources if "image_shape" in each), None)
    shape = shape or _shape_beside(folder)
    evaluation = (content.get("configuration") or {}).get("evaluation") or {}
    for number, column in enumerate(content["columns"]):
        name = OLD_NAMES.get(str(column["name"]), str(column["name"]))
        is_baseline = number > 0 or name == "whole set"
        here = [{"method": name}] if is_baseline else [_complete(source, content) for source in sources]
        if name == "8-bit":
            here = [{**_complete(source, content), "stored_as": "8-bit images"} for source in sources]
            name = str(here[0]["method"])
        if name in get_args(Selection):
            trained = {"features": evaluation.get("features_network"), "epochs": evaluation.get("whole_set_epochs")}
            here = [{**trained, "seed": content.get("seed"), **source} for source in here]
        for score in column["scores"]:
            epochs = int(score["epochs"]) if name == "whole set" else None
            recipe = str(score.get("recipe", "DC"))
            scored = [f"{epochs_run(recipe, epochs)} epochs"] if epochs is not None else []
            scored += [f"recipe {recipe}"] if recipe != own_recipe(name) else []
            scored += scoring_departures(content, score, epochs)
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
                    recipe=recipe,
                    label=label,
                    made=json.dumps(made_with(source), sort_keys=True, default=str) if departures else "",
                    scored=tuple(scored),
                    held_out=float(source.get("validation") or content.get("validation") or 0),
                    labels=str(column.get("labels", "")),
                )
                seed = int(source.get("seed") or source.get("experiment") or 0)
                found = {
                    (network_seed if is_baseline and name in BOUNDS else seed, network_seed): float(value)
                    for network_seed, value in pairs[place * each : (place + 1) * each]
                }
                row = Row(
                    key,
                    departures,
                    name in SELECTIONS or is_ours(source),
                    _held(source),
                    _budget(column, source, shape),
                )
                if number == 0:
                    row.folders.append(folder)
                    row.curves += [curve] if (curve := _curve(content, score)) else []
                    splits = [str(entry["split"]) for entry in content.get("history", []) if "split" in entry]
                    row.curves_on = splits[0] if splits else "test"
                yield row, found


@dataclass(frozen=True)
class Found:
    """What results say.

    Args:
        rows: of the papers' tables.
        folders: that were read.
        problems: one sentence for each file that was left out.
        experiments: results of continual learning and architecture search.
    """

    rows: list[Row]
    folders: list[Path]
    problems: list[str]
    experiments: list[dict[str, Any]]


def collect(folders: Sequence[Path]) -> Found:
    """Reads all results below the folders and pools them.

    Args:
        folders: with results.json files anywhere below; a file itself will do.

    Raises:
        InputError: if a folder is not there.
    """
    rows: dict[Key, Row] = {}
    read, problems, experiments = [], [], []
    for folder in folders:
        if not folder.exists():
            raise InputError(f"There is no folder '{folder}'; give folders with results.json files below.")
        for path in [folder] if folder.is_file() else sorted(folder.rglob("results.json")):
            try:
                content = read_results(path)
                if "table" in content:
                    experiments.append(content)
                    continue
                found = list(_rows_of(content, path.parent))
            except InputError as broken:
                problems.append(str(broken))
                continue
            except OSError as unreadable:
                problems.append(f"'{path}' cannot be read ({unreadable.strerror}); it is left out.")
                continue
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                problems.append(
                    f"'{path}' is left out: it lacks what a report needs ({type(error).__name__}: {error})."
                )
                continue
            read.append(path.parent)
            for row, accuracies in found:
                known = rows.setdefault(row.key, row)
                if row.key.method not in BOUNDS and any(
                    abs(known.accuracies.get(seeds, value) - value) > 1e-6 for seeds, value in accuracies.items()
                ):
                    problems.append(
                        f"'{path}' repeats seeds of a file before it with other accuracies: the first count."
                    )
                new = {seeds: value for seeds, value in accuracies.items() if seeds not in known.accuracies}
                known.accuracies |= new
                if new and known is not row:
                    known.curves += row.curves
                    known.folders += row.folders
                if new and content.get("kind") == "condensation" and "seconds" in content:
                    known.hours.append(float(content["seconds"]) / 3600)
                    known.on_gpu = str(content.get("device")).startswith("cuda")
    return Found(sorted(rows.values(), key=in_order), read, problems, experiments)


def in_order(row: Row) -> tuple[Any, ...]:
    """Sorts rows: the papers' datasets and methods in their order, then others."""
    key, methods = row.key, [*SELECTIONS, "DC", "DSA", "DM", "whole set"]
    place = methods.index(key.method) if key.method in methods else len(methods) - 1.5
    dataset = (DATASETS.index(key.dataset) if key.dataset in DATASETS else len(DATASETS)), key.dataset
    return *dataset, place, key.row, row.departures, key.ipc or 10**9, key.distance, key.network, key.tested_on


def baseline(rows: Sequence[Row], row: Row, method: str) -> Row | None:
    """Random images of the same budget by the same recipe, or the whole set by the same learning rates."""
    key, is_whole_set = row.key, method == "whole set"
    same = [
        other
        for other in rows
        if (other.key.dataset, other.key.ipc, other.key.method, other.key.tested_on, other.key.recipe)
        == (key.dataset, 0 if is_whole_set else key.ipc, method, key.tested_on, key.recipe)
        and other.key.held_out == key.held_out
        and _but_epochs(other.key.scored) == _but_epochs(key.scored)
        and (is_whole_set or but_recipe(other.key.scored) == but_recipe(key.scored))
    ]
    return max(same, key=lambda other: (len(other.accuracies), other.accuracy)) if same else None


def _but_epochs(scored: Sequence[str]) -> list[str]:
    return [departure for departure in but_recipe(scored) if not departure.endswith("epochs")]


def but_recipe(scored: Sequence[str]) -> list[str]:
    """Recipes are compared by their names."""
    return [departure for departure in scored if not departure.startswith("recipe ")]


class Notes:
    """Numbers for what distinguishes custom sets, said once below a table."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, ...], int] = {}

    def mark(self, row: Row) -> str:
        """The row's label, with the number of its note."""
        if not row.departures:
            return row.key.row
        return f"{row.key.row} [{self.numbers.setdefault(row.departures, len(self.numbers) + 1)}]"

    def lines(self) -> list[str]:
        """The notes, in order."""
        return [f"[{number}] {', '.join(departures)}" for departures, number in self.numbers.items()]
