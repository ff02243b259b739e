"""The leaderboard: sets of one dataset and budget by their accuracy, with what bears on it, as tables and as a page."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from dc_lightning.evaluation.fairness import augmentation_robust_score, label_robust_score
from dc_lightning.evaluation.recipe import PLAIN
from dc_lightning.experiments.rows import BOUNDS, Row, baseline, but_recipe, percent
from dc_lightning.experiments.tables import Matrix, as_png
from dc_lightning.synthetic import SyntheticSet

_CORNER = "tested on"
_DIFFERS = " *"
_COMPARED = ("recipe", "labels", "images in one", "kB")
_COLUMNS = ("set", "accuracy", "sets, n", "over random", "of whole set", "LRS", "ARS", *_COMPARED)


def leaderboards(rows: Sequence[Row]) -> list[Matrix]:
    """A table for each dataset and number of images per class: the best first, for each test network.

    What differs from most other sets of a test network is marked, as it is no fair comparison: the recipe, soft labels,
    several training images in a stored one, the bytes of the stored images.
    """
    groups = dict.fromkeys((row.key.dataset, row.key.ipc) for row in rows if row.key.ipc)
    return [_leaderboard(dataset, ipc, rows) for dataset, ipc in groups]


def _leaderboard(dataset: str, ipc: int, rows: Sequence[Row]) -> Matrix:
    table = Matrix(f"{dataset}, {ipc} per class: leaderboard, accuracy and differences in %", _CORNER)
    shown = [row for row in rows if (row.key.dataset, row.key.ipc) == (dataset, ipc)]
    for network in sorted({row.key.tested_on for row in shown}, key=lambda name: (name != "ConvNet", name)):
        here = sorted((row for row in shown if row.key.tested_on == network), key=lambda row: -row.accuracy[0])
        cells = [_cells(rows, row, table) for row in here]
        for column in _COMPARED:
            known = [each for each in cells if each[column]]
            for value, count in Counter(each[column] for each in known).most_common(1):
                for each in known if count > len(known) / 2 else []:
                    each[column] += "" if each[column] == value else _DIFFERS
        for place, each in enumerate(cells, 1):
            table.cells |= {(f"{network}, {place}", column): text for column, text in each.items()}
    filled = {column for (_, column), text in table.cells.items() if text}
    table.columns = [name for name in _COLUMNS if name in filled]
    if any(text.endswith(_DIFFERS) for text in table.cells.values()):
        table.remark = "* differs from most sets of this test network"
    return table


def _cells(rows: Sequence[Row], row: Row, table: Matrix) -> dict[str, str]:
    key, found = row.key, measures(rows, row)
    by = [key.network] if key.network not in ("", key.tested_on) else []
    by += [key.distance] if key.distance not in ("", "ours") else []
    digits = {"over random": ("gain", "+.1f"), "of whole set": ("share", ".0f"), "LRS": ("lrs", ".1f")}
    digits["ARS"] = ("ars", ".1f")
    return {
        "set": ", ".join([table.marked(key.row, row.departures), *by]),
        "accuracy": percent(row.accuracy),
        "sets, n": f"{row.sets}, {len(row.accuracies)}",
        **{column: format(found[name], form) if name in found else "" for column, (name, form) in digits.items()},
        "recipe": key.recipe,
        "labels": key.labels,
        "images in one": str(row.images_in_one),
        "kB": "" if row.budget is None else f"{row.budget / 1000:.1f}",
    }


def measures(rows: Sequence[Row], row: Row) -> dict[str, float]:
    """What a row is worth beside its bounds, as far as they are among the rows.

    Returns:
        ``gain`` over random images and ``share`` of the whole set's accuracy, in percent; ``lrs`` (see
        `label_robust_score`) and ``ars`` (see `augmentation_robust_score`), in [0, 100].
    """
    key, mean = row.key, row.accuracy[0]
    random, whole = (baseline(rows, row, bound) for bound in BOUNDS)
    found = {}
    if random and key.method not in BOUNDS:
        found["gain"] = mean - random.accuracy[0]
    if whole and key.method != "whole set":
        found["share"] = 100 * mean / whole.accuracy[0]
    if random and whole:
        own, low, high = (each.accuracy[0] / 100 for each in (row, random, whole))
        found["lrs"] = label_robust_score(own - low, high - own)
    wanted = replace(key, recipe=key.recipe + PLAIN, scored=but_recipe(key.scored))
    plain = {replace(each.key, scored=but_recipe(each.key.scored)): each for each in rows}.get(wanted)
    plain_random = baseline(rows, plain, "random") if plain else None
    if random and plain and plain_random:
        pairs = (row, random), (plain, plain_random)
        found["ars"] = augmentation_robust_score(*((one.accuracy[0] - low.accuracy[0]) / 100 for one, low in pairs))
    return found


def page(
    rows: Sequence[Row], tables: Sequence[Matrix], sets: Mapping[Path, SyntheticSet], figures: Mapping[str, bytes]
) -> bytes:
    """All tables, sets by their folders, curves, and figures (PNG, by name) as one HTML file that needs no other."""
    environment = Environment(loader=PackageLoader("dc_lightning.experiments", ""), autoescape=True, trim_blocks=True)
    shown: dict[str, bytes] = {}
    for row in rows:
        folder = next((folder for folder in row.folders if folder in sets), None)
        if folder is not None and row.title not in shown:
            decoded = {f"{row.title}, decoded": True} if sets[folder].images_in_one > 1 else {}
            for title, as_used in {row.title: False, **decoded}.items():
                buffer = io.BytesIO()
                sets[folder].picture(as_used).save(buffer, format="PNG")
                shown[title] = buffer.getvalue()
    followed: dict[str, list[Row]] = {}
    for row in rows:
        if row.key.tested_on == row.key.network and any(len(curve) > 1 for curve in row.curves):
            followed.setdefault(f"{row.key.dataset}, {row.key.ipc} per class", []).append(row)
    curves = {**figures, **{title: _curves(own, title) for title, own in followed.items()}}
    content = {
        "tables": sorted(tables, key=lambda table: table.corner != _CORNER),
        "pictures": {title: base64.b64encode(png).decode() for title, png in shown.items()},
        "curves": {title: base64.b64encode(png).decode() for title, png in curves.items()},
    }
    return environment.get_template("leaderboard.html").render(**content, mark=_DIFFERS).encode()


def _curves(rows: Sequence[Row], title: str) -> bytes:
    """Accuracy in the course of each run on the network that condensed, as the content of a PNG file."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        for place, curve in enumerate(row.curves):
            iterations, accuracies = zip(*curve, strict=True)
            on = "" if row.curves_on == "test" else f", on {row.curves_on}"
            label = fill(row.title + on, 60) if place == 0 else None
            axes.plot(iterations, [100 * value for value in accuracies], color=f"C{number % 10}", lw=1, label=label)
    axes.set_xlabel("outer iterations")
    axes.set_ylabel("accuracy in %")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return as_png(figure)
