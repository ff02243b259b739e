"""The leaderboard: sets of one dataset and budget by their accuracy, with what bears on it, as tables and as a page."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

from jinja2 import Environment, PackageLoader

from dc_lightning.evaluation.fairness import augmentation_robust_score, label_robust_score
from dc_lightning.evaluation.recipe import PLAIN
from dc_lightning.experiments.rows import BOUNDS, Notes, Row, baseline, but_recipe, percent
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
    found = (_leaderboard(dataset, ipc, rows) for dataset, ipc in groups)
    return [table for table in found if table.cells]


def _leaderboard(dataset: str, ipc: int, rows: Sequence[Row]) -> Matrix:
    title = f"{dataset}, {ipc} per class: leaderboard, accuracy and differences in %"
    table, notes = Matrix(title, _CORNER), Notes()
    shown = [row for row in rows if (row.key.dataset, row.key.ipc) == (dataset, ipc)]
    networks = sorted({row.key.tested_on for row in shown}, key=lambda name: (name != "ConvNet", name))
    for network in networks:
        here = sorted((row for row in shown if row.key.tested_on == network), key=lambda row: -row.accuracy[0])
        cells = [_cells(rows, row, notes) for row in here]
        for column in _COMPARED:
            known = [each for each in cells if each[column]]
            for value, count in Counter(each[column] for each in known).most_common(1):
                for each in known if count > len(known) / 2 else []:
                    each[column] += "" if each[column] == value else _DIFFERS
        for place, each in enumerate(cells, 1):
            table.cells |= {(f"{network}, {place}", column): text for column, text in each.items()}
    filled = {column for (_, column), text in table.cells.items() if text}
    table.columns = [name for name in _COLUMNS if name in filled]
    marked = any(text.endswith(_DIFFERS) for text in table.cells.values())
    table.notes = [*notes.lines(), *(["* differs from most sets of this test network"] if marked else [])]
    return table


def _cells(rows: Sequence[Row], row: Row, notes: Notes) -> dict[str, str]:
    random, whole = (baseline(rows, row, bound) for bound in BOUNDS)
    key, mean = row.key, row.accuracy[0]
    by = [key.network] if key.network not in ("", key.tested_on) else []
    lrs, ars = label_robust(rows, row), augmentation_robust(rows, row)
    return {
        "set": ", ".join([notes.mark(row), *by, *([key.distance] if key.distance not in ("", "ours") else [])]),
        "accuracy": percent(row.accuracy),
        "sets, n": f"{row.sets}, {len(row.accuracies)}",
        "over random": f"{mean - random.accuracy[0]:+.1f}" if random and random is not row else "",
        "of whole set": f"{100 * mean / whole.accuracy[0]:.0f}" if whole else "",
        "LRS": "" if lrs is None else f"{lrs:.1f}",
        "ARS": "" if ars is None else f"{ars:.1f}",
        "recipe": key.recipe,
        "labels": key.labels,
        "images in one": str(row.images_in_one),
        "kB": "" if row.budget is None else f"{row.budget / 1000:.1f}",
    }


def label_robust(rows: Sequence[Row], row: Row) -> float | None:
    """See `label_robust_score`; None where random images or the whole set are missing."""
    random, whole = (baseline(rows, row, bound) for bound in BOUNDS)
    if random is None or whole is None:
        return None
    mean, low, high = (each.accuracy[0] / 100 for each in (row, random, whole))
    return label_robust_score(mean - low, high - mean)


def augmentation_robust(rows: Sequence[Row], row: Row) -> float | None:
    """See `augmentation_robust_score`; None where the recipe without its augmentation or random images are missing."""
    key = row.key
    wanted = replace(key, recipe=key.recipe + PLAIN, scored=tuple(but_recipe(key.scored)))
    plain = {replace(each.key, scored=tuple(but_recipe(each.key.scored))): each for each in rows}.get(wanted)
    if plain is None:
        return None
    random, plain_random = baseline(rows, row, "random"), baseline(rows, plain, "random")
    if random is None or plain_random is None:
        return None
    pairs = (row, random), (plain, plain_random)
    return augmentation_robust_score(*((own.accuracy[0] - other.accuracy[0]) / 100 for own, other in pairs))


def page(
    rows: Sequence[Row], tables: Sequence[Matrix], sets: Mapping[Path, SyntheticSet], figures: Mapping[str, bytes]
) -> bytes:
    """All tables, images and curves as one HTML file that needs no other.

    Args:
        rows: of the tables.
        tables: leaderboards and others.
        sets: that are shown, by the folder of their results.
        figures: further ones, the content of PNG files by name.
    """
    environment = Environment(loader=PackageLoader("dc_lightning.experiments", ""), autoescape=True, trim_blocks=True)
    shown: dict[str, str] = {}
    for row in rows:
        folder = next((folder for folder in row.folders if folder in sets), None)
        if folder is not None and row.title not in shown:
            shown[row.title] = _picture(sets[folder])
    curves = {name: _as_text(png) for name, png in figures.items()}
    for dataset, ipc in dict.fromkeys((row.key.dataset, row.key.ipc) for row in rows):
        here = [row for row in rows if (row.key.dataset, row.key.ipc) == (dataset, ipc)]
        own = [
            row for row in here if row.key.tested_on == row.key.network and any(len(each) > 1 for each in row.curves)
        ]
        if own:
            title = f"{dataset}, {ipc} per class"
            curves[title] = _as_text(_curves(own, title))
    boards_first = sorted(tables, key=lambda table: table.corner != _CORNER)
    template = environment.get_template("leaderboard.html")
    return template.render(tables=boards_first, pictures=shown, curves=curves, mark=_DIFFERS).encode()


def _as_text(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _picture(synthetic: SyntheticSet) -> str:
    buffer = io.BytesIO()
    synthetic.picture().save(buffer, format="PNG")
    return _as_text(buffer.getvalue())


def _curves(rows: Sequence[Row], title: str) -> bytes:
    """Accuracy in the course of each run on the network that condensed, as the content of a PNG file."""
    from matplotlib.figure import Figure

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
