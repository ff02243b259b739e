"""``dc-lightning report FOLDER...``: tables in the papers' form out of results.json files, beside their figures."""

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from textwrap import fill
from typing import Any, get_args

from rich.console import Console

from dc_lightning.errors import InputError, OneSentenceParser
from dc_lightning.evaluation.pools import POOLS
from dc_lightning.evaluation.selection import Selection
from dc_lightning.experiments import continual
from dc_lightning.experiments.paper import DATASETS, POOL_OF, SELECTIONS, TABLE_1, TABLE_2, TABLES, WHOLE_SET, Accuracy
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
from dc_lightning.experiments.tables import Matrix, as_png, merged, show
from dc_lightning.files import write_whole
from dc_lightning.matching.distances import DISTANCES
from dc_lightning.parts import part_name
from dc_lightning.run.results import read_results
from dc_lightning.synthetic import SyntheticSet, load_synthetic
from dc_lightning.synthetic.formation import images_in_one
from dc_lightning.synthetic.reading import OLD_NAMES

_BOUNDS = ("random", "whole set")


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

    @property
    def row(self) -> str:
        """The label with the departures from the recipe."""
        return ", ".join([self.label, *self.scored])


@dataclass
class Row:
    """All accuracies of a key."""

    key: Key
    departures: tuple[str, ...]  # of a custom set, from the method's own protocol, in words
    is_ours: bool  # whether the figures of the papers are those of its method
    # in [0, 1], by the seed of the set and that of the test network: what is found twice counts once
    accuracies: dict[tuple[int, int], float] = field(default_factory=dict)
    hours: list[float] = field(default_factory=list)  # of each run, from start to results

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
        if f"recipe {key.recipe}" in key.scored:
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
        return ", ".join([*(part for part in parts if part), *self.departures, *key.scored])


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


def _label(source: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """How a set was made, and the departures from its method's protocol where it was by nobody's preset."""
    method = str(source.get("method", "synthetic"))
    stored = [str(source["stored_as"])] if "stored_as" in source else []
    held = images_in_one(int(source.get("factor", 1)), "multi" if source.get("formation") == "multi" else "single")
    stored += [f"{held} images in one"] if held > 1 else []
    plain = {key: value for key, value in source.items() if key != "stored_as"}
    if method in get_args(Selection):
        by = part_name(source.get("features") or "ConvNet")
        features = f"features {'' if by == 'ConvNet' else f'of {by} '}after {source.get('epochs')} epochs"
        return ", ".join([method, features, *stored]), ()
    if "network" not in source or method in _BOUNDS:
        return ", ".join([method, *stored]), ()
    preset = preset_of(plain)
    if preset is not None:
        return ", ".join([preset.label, *stored]), ()
    own = next((p for p in shipped_presets() if p.method == method and not p.name), shipped_presets()[0])
    return ", ".join([f"{method}, custom" if is_ours(plain) else method, *stored]), tuple(own.departures(plain))


def _rows_of(content: Mapping[str, Any]) -> Iterable[tuple[Row, dict[tuple[int, int], float]]]:
    first = content.get("source") or {}
    content = {"dataset": first.get("dataset"), "ipc": first.get("ipc"), **content}
    dataset, ipc, sources = str(content["dataset"]), int(content["ipc"]), content.get("sources") or [content["source"]]
    if content["dataset"] is None:
        raise KeyError("dataset")
    evaluation = (content.get("configuration") or {}).get("evaluation") or {}
    for number, column in enumerate(content["columns"]):
        name = OLD_NAMES.get(str(column["name"]), str(column["name"]))
        is_baseline = number > 0 or name == "whole set"
        here = [{"method": name}] if is_baseline else [_complete(source, content) for source in sources]
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
                label, departures = _label(source)
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
                )
                seed = int(source.get("seed") or source.get("experiment") or 0)
                found = {
                    (network_seed if is_baseline and name in _BOUNDS else seed, network_seed): float(value)
                    for network_seed, value in pairs[place * each : (place + 1) * each]
                }
                yield Row(key, departures, name in SELECTIONS or is_ours(source)), found


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
                found = list(_rows_of(content))
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
                if row.key.method not in _BOUNDS and any(
                    known.accuracies.get(seeds, value) != value for seeds, value in accuracies.items()
                ):
                    problems.append(
                        f"'{path}' repeats seeds of a file before it with other accuracies: the first count."
                    )
                new = {seeds: value for seeds, value in accuracies.items() if seeds not in known.accuracies}
                known.accuracies |= new
                if new and content.get("kind") == "condensation" and "seconds" in content:
                    known.hours.append(float(content["seconds"]) / 3600)
    return Found(sorted(rows.values(), key=_order), read, problems, experiments)


def _order(row: Row) -> tuple[Any, ...]:
    key, methods = row.key, [*SELECTIONS, "DC", "DSA", "DM", "whole set"]
    place = methods.index(key.method) if key.method in methods else len(methods) - 1.5
    dataset = (DATASETS.index(key.dataset) if key.dataset in DATASETS else len(DATASETS)), key.dataset
    return *dataset, place, key.row, row.departures, key.ipc or 10**9, key.distance, key.network, key.tested_on


def _cell(row: Row) -> str:
    paper = f" ({percent(row.paper)})" if row.paper else ""
    return f"{percent(row.accuracy)}{paper}, n={len(row.accuracies)}"


class _Notes:
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


def tables(rows: Sequence[Row]) -> list[Matrix]:
    """The papers' tables, as far as there is anything for them."""
    found = [table_1(rows)]
    for dataset, ipc in dict.fromkeys((row.key.dataset, row.key.ipc) for row in rows if row.key.ipc):
        here = [row for row in rows if row.key.dataset == dataset and row.key.ipc in (ipc, 0)]
        titles = {pool: f"{TABLES[name]} ({name})" for name, pool in POOL_OF.items()}
        for pool, title in {**titles, "B": "networks with BatchNorm"}.items():
            found.append(_cross_table(f"{dataset}, {ipc} per class: {title}", pool, here))
        found.append(_distances(f"{dataset}, {ipc} per class: the three distances (table T7 of DC)", here))
    return [*(table for table in found if table.cells), _comparison(rows)]


def _cross_table(title: str, name: str, rows: Sequence[Row]) -> Matrix:
    """Sets that were tested on more than one network of a pool."""
    tested, notes = [part_name(network) for network in POOLS[name]], _Notes()
    own = set(tested) | ({network for network, _ in TABLE_2} if name in "MB" else {"ConvNet"})
    shown = [row for row in rows if row.key.tested_on in tested and row.key.distance in ("", "ours")]
    shown = [row for row in shown if row.key.method in (*SELECTIONS, "whole set") or row.key.network in own]
    table = Matrix(f"{title}, in %; rows make the set, columns train on it", "set")
    table.columns = [name for name in tested if any(row.key.tested_on == name for row in shown)]
    times = Counter((row.key.row, row.key.network, row.key.made) for row in shown if row.key.method not in _BOUNDS)
    if any(count > 1 for count in times.values()):
        for row in sorted(shown, key=lambda row: (row.key.method in (*SELECTIONS, "whole set"), _order(row))):
            network = [row.key.network] if row.key.network and row.key.method not in SELECTIONS else []
            table.cells[", ".join([notes.mark(row), *network]), row.key.tested_on] = _cell(row)
    table.notes = notes.lines()
    return table


def _distances(title: str, rows: Sequence[Row]) -> Matrix:
    table, notes = Matrix(f"{title}, in %", "distance"), _Notes()
    own = [row for row in rows if row.key.distance and row.key.tested_on == row.key.network.split("BN")[0]]
    compared = {row.key.network for row in own if row.key.distance != "ours"}
    names = list(DISTANCES)
    for row in sorted(own, key=lambda row: [*names, row.key.distance].index(row.key.distance)):
        if row.key.network in compared:
            table.cells[f"{row.key.distance}, {notes.mark(row)}", row.key.network] = _cell(row)
    table.notes = notes.lines()
    return table


def table_1(rows: Sequence[Row]) -> Matrix:
    """Accuracies of a ConvNet by dataset and way to make the set; columns are images per class, and hours."""
    rows = [row for row in rows if row.key.tested_on == "ConvNet" and row.key.distance in ("", "ours")]
    rows = [row for row in rows if row.key.network in ("", "ConvNet")]
    counts, notes = sorted({row.key.ipc for row in rows if row.key.ipc}), _Notes()
    table = Matrix("Test accuracy of a ConvNet in % (the paper's in brackets)", "set")
    names = {ipc: f"{ipc} per class" for ipc in counts}
    table.columns = [*names.values(), "hours"] if counts else ()
    hours: dict[str, list[str]] = {}
    for row in rows:
        label = f"{row.key.dataset}: {notes.mark(row)}"
        if row.key.method == "whole set":
            table.cells[label, names[counts[-1]] if counts else "whole set"] = _cell(row)
            continue
        table.cells[label, names[row.key.ipc]] = _cell(row)
        if row.hours and row.key.method not in _BOUNDS:
            hours.setdefault(label, []).append(f"{fmean(row.hours):.1f}")
    for label, found in hours.items():
        table.cells[label, "hours"] = " / ".join(found)
    table.notes = notes.lines()
    return table


def _baseline(rows: Sequence[Row], row: Row, method: str) -> Row | None:
    """Random images of the same budget by the same recipe, or the whole set by the same learning rates."""
    key, is_whole_set = row.key, method == "whole set"
    same = [
        other
        for other in rows
        if (other.key.dataset, other.key.ipc, other.key.method, other.key.tested_on, other.key.recipe)
        == (key.dataset, 0 if is_whole_set else key.ipc, method, key.tested_on, key.recipe)
        and _but_epochs(other.key.scored) == _but_epochs(key.scored)
        and (is_whole_set or _but_recipe(other.key.scored) == _but_recipe(key.scored))
    ]
    return max(same, key=lambda other: (len(other.accuracies), other.accuracy)) if same else None


def _but_epochs(scored: Sequence[str]) -> list[str]:
    return [departure for departure in _but_recipe(scored) if not departure.endswith("epochs")]


def _but_recipe(scored: Sequence[str]) -> list[str]:
    """Recipes are compared by their names."""
    return [departure for departure in scored if not departure.startswith("recipe ")]


def _comparison(rows: Sequence[Row]) -> Matrix:
    table = Matrix("Gain over random images of the same budget, and share of the whole set's accuracy", "set")
    for row in rows:
        if row.key.method in _BOUNDS:
            continue
        label = f"{row.title}, tested on {row.key.tested_on}"
        table.cells[label, "accuracy"] = percent(row.accuracy)
        table.cells[label, "sets, n"] = f"{row.sets}, {len(row.accuracies)}"
        random, whole = _baseline(rows, row, "random"), _baseline(rows, row, "whole set")
        table.cells[label, "gain"] = f"{row.accuracy[0] - random.accuracy[0]:+.1f}" if random else ""
        table.cells[label, "share"] = f"{100 * row.accuracy[0] / whole.accuracy[0]:.0f} %" if whole else ""
    return table


def to_csv(rows: Sequence[Row]) -> str:
    """One line a row, every number."""
    buffer = io.StringIO()
    lines = []
    for row in rows:
        key, (mean, std) = row.key, row.accuracy
        random, whole = (_baseline(rows, row, bound) for bound in _BOUNDS)
        names = ("dataset", "ipc", "method", "label", "network", "distance", "tested_on", "recipe")
        line: dict[str, Any] = {name: getattr(key, name) for name in names}
        line |= {"departures": "; ".join([*row.departures, *key.scored]), "mean": mean, "std": std}
        line |= {"n": len(row.accuracies), "sets": row.sets, "paper_mean": "", "paper_std": "", "difference": ""}
        if row.paper:
            line |= {"paper_mean": row.paper[0], "paper_std": row.paper[1], "difference": mean - row.paper[0]}
        line["gain"] = mean - random.accuracy[0] if random and key.method not in _BOUNDS else ""
        line["share"] = 100 * mean / whole.accuracy[0] if whole and key.method != "whole set" else ""
        lines.append({name: round(value, 3) if isinstance(value, float) else value for name, value in line.items()})
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def plot(rows: Sequence[Row]) -> bytes:
    """Accuracies with their spread, the paper's beside them, as a PNG file."""
    from matplotlib.figure import Figure

    labels = [fill(f"{row.title}, tested on {row.key.tested_on}", width=75) for row in reversed(rows)]
    lines = sum(1 + label.count("\n") for label in labels)
    figure = Figure(figsize=(9, 1.5 + 0.2 * len(rows) + 0.12 * lines), layout="constrained")
    axes = figure.subplots()
    found: dict[str, list[Accuracy | None]] = {
        "here": [row.accuracy for row in rows],
        "paper": [row.paper for row in rows],
    }
    for (name, pairs), marker, color, shift in zip(
        found.items(), "os", ("tab:blue", "tab:gray"), (0, 0.25), strict=True
    ):
        shown = {len(rows) - 1 - place - shift: pair for place, pair in enumerate(pairs) if pair}
        means, stds = [mean for mean, _ in shown.values()], [std or 0.0 for _, std in shown.values()]
        axes.errorbar(means, list(shown), xerr=stds, fmt=marker, color=color, capsize=3, ms=5, label=name)
    axes.legend(loc="lower left", fontsize=8)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.set_xlabel("test accuracy in %, mean and std")
    axes.grid(axis="x", alpha=0.3)
    return as_png(figure)


def image_figure(sets: Sequence[SyntheticSet]) -> bytes:
    """The images of sets of one ipc side by side, one row a class (paper, figures 2 and 3), as a PNG file."""
    from matplotlib.figure import Figure

    grids = [synthetic.grid() for synthetic in sets]
    widths = [grid.shape[2] / grid.shape[1] for grid in grids]
    figure = Figure(figsize=(4 * sum(widths) + 0.5 * len(widths), 4.4), layout="constrained")
    panels = figure.subplots(1, len(grids), width_ratios=widths, squeeze=False)[0]
    for panel, grid, synthetic in zip(panels, grids, sets, strict=True):
        panel.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        panel.set_title(f"{synthetic.source.get('dataset', '')}, {synthetic.method}", fontsize=9)
        panel.set_axis_off()
    return as_png(figure)


def _condensed_sets(folders: Iterable[Path]) -> tuple[dict[int, list[SyntheticSet]], list[str]]:
    """Sets condensed with the ConvNet, by ipc, one a dataset and label; and a sentence for each file left out."""
    found: dict[tuple[int, str, str], SyntheticSet] = {}
    problems = []
    for path in (folder / "synthetic.pt" for folder in folders):
        if not path.is_file():
            continue
        try:
            (synthetic,) = load_synthetic(path)
        except (InputError, ValueError) as error:
            problems.append(f"'{path}' is left out of the figures: {error}")
            continue
        source = synthetic.source
        if {"ipc", "dataset", "network"} <= source.keys() and part_name(source["network"]) == "ConvNet":
            found.setdefault((int(source["ipc"]), str(source["dataset"]), _label(source)[0]), synthetic)
    groups: dict[int, list[SyntheticSet]] = {}
    for (ipc, _, _), synthetic in sorted(found.items(), key=lambda item: item[0]):
        groups.setdefault(ipc, []).append(synthetic)
    return groups, problems


def main(words: Sequence[str]) -> int:
    """Runs ``dc-lightning report`` with these arguments; returns the exit code."""
    parser = OneSentenceParser(
        prog="dc-lightning report",
        description="Tables in the paper's form out of results.json files, ours beside the paper's figures.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="with results.json files below")
    folder, what = Path("lightning_logs/report"), "folder for report.md, report.csv, report.png and images_ipcN.png"
    parser.add_argument("--output", type=Path, default=folder, help=what)
    parser.add_argument(
        "--into",
        type=Path,
        help="a Markdown file whose part between <!-- report --> (or <!-- table 1 -->) and <!-- end --> is replaced",
    )
    options = parser.parse_args(words)
    found, console = collect(options.folders), Console()
    for problem in found.problems:
        print(problem, file=sys.stderr)
    if not found.rows and not found.experiments:
        raise InputError(f"There are no results to report below {', '.join(map(str, options.folders))}.")
    rows = found.rows
    matrices = [*(tables(rows) if rows else []), *merged(Matrix.from_dict(each["table"]) for each in found.experiments)]
    markdown = "\n".join(table.markdown() for table in matrices)
    show(markdown, console)
    write_whole(options.output / "report.md", markdown.encode())
    if rows:
        write_whole(options.output / "report.csv", to_csv(rows).encode())
        write_whole(options.output / "report.png", plot(rows))
    for number, figure in enumerate(continual.plots(found.experiments), 1):
        write_whole(options.output / f"continual_{number}.png", figure)
    condensed, damaged = _condensed_sets(found.folders)
    for problem in damaged:
        print(problem, file=sys.stderr)
    for ipc, sets in condensed.items():
        write_whole(options.output / f"images_ipc{ipc}.png", image_figure(sets))
    if options.into:
        _put_into(options.into, {"report": markdown, "table 1": table_1(rows).markdown()})
    console.print(f"written to {options.output}", markup=False, highlight=False)
    return 0


def _put_into(path: Path, parts: Mapping[str, str]) -> None:
    """Replaces what lies between ``<!-- NAME -->`` and ``<!-- end -->`` in a file."""
    text = path.read_text() if path.is_file() else ""
    names = [name for name in parts if f"<!-- {name} -->" in text]
    if not names:
        raise InputError(
            f"'{path}' needs the lines <!-- report --> (all tables) or <!-- table 1 -->, and <!-- end -->, between "
            "which the tables go."
        )
    for name in names:
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = marked.sub(lambda match: f"{match.group(1)}{parts[name]}{match.group(2)}", text)  # noqa: B023
    write_whole(path, text.encode())
