"""``dc-lightning report FOLDER...``: tables in the papers' form out of results.json files, beside their figures."""

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from dc_lightning.errors import InputError, OneSentenceParser
from dc_lightning.evaluation.pools import POOLS
from dc_lightning.experiments import continual
from dc_lightning.experiments.leaderboard import leaderboards, measures, page
from dc_lightning.experiments.paper import POOL_OF, SELECTIONS, TABLE_2, TABLES, Accuracy
from dc_lightning.experiments.rows import BOUNDS, REAL, Row, collect, in_order, label_of, percent
from dc_lightning.experiments.tables import Matrix, as_png, merged, show
from dc_lightning.files import expanded_path, write_whole
from dc_lightning.matching.distances import DISTANCES
from dc_lightning.parts import part_name
from dc_lightning.synthetic import SyntheticSet, load_synthetic


def _cell(row: Row) -> str:
    paper = f" ({percent(row.paper)})" if row.paper else ""
    return f"{percent(row.accuracy)}{paper}, n={len(row.accuracies)}"


def tables(rows: Sequence[Row]) -> list[Matrix]:
    """The papers' tables, as far as there is anything for them."""
    found = [table_1(rows)]
    for dataset, ipc in dict.fromkeys((row.key.dataset, row.key.ipc) for row in rows if row.key.ipc):
        here = [row for row in rows if row.key.dataset == dataset and row.key.ipc in (ipc, 0)]
        titles = {pool: f"{TABLES[name]} ({name})" for name, pool in POOL_OF.items()}
        for pool, title in {**titles, "B": "networks with BatchNorm"}.items():
            found.append(_cross_table(f"{dataset}, {ipc} per class: {title}", pool, here))
        found.append(_distances(f"{dataset}, {ipc} per class: the three distances (table T7 of DC)", here))
    return [*(table for table in found if table.cells), *leaderboards(rows)]


def _cross_table(title: str, name: str, rows: Sequence[Row]) -> Matrix:
    """Sets that were tested on more than one network of a pool."""
    tested = [part_name(network) for network in POOLS[name]]
    own = set(tested) | ({network for network, _ in TABLE_2} if name in "MB" else {"ConvNet"})
    shown = [row for row in rows if row.key.tested_on in tested and row.key.distance in ("", "ours")]
    shown = [row for row in shown if row.key.method in REAL or row.key.network in own]
    table = Matrix(f"{title}, in %; rows make the set, columns train on it", "set")
    table.columns = [name for name in tested if any(row.key.tested_on == name for row in shown)]
    times = Counter((row.key.row, row.key.network, row.key.made) for row in shown if row.key.method not in BOUNDS)
    if any(count > 1 for count in times.values()):
        for row in sorted(shown, key=lambda row: (row.key.method in REAL, in_order(row))):
            network = [row.key.network] if row.key.network and row.key.method not in SELECTIONS else []
            label = ", ".join([table.marked(row.key.row, row.departures), *network])
            table.cells[label, row.key.tested_on] = _cell(row)
    return table


def _distances(title: str, rows: Sequence[Row]) -> Matrix:
    table, names = Matrix(f"{title}, in %", "distance"), list(DISTANCES)
    own = [row for row in rows if row.key.distance and row.key.tested_on == row.key.network.split("BN")[0]]
    compared = {row.key.network for row in own if row.key.distance != "ours"}
    for row in sorted(own, key=lambda row: [*names, row.key.distance].index(row.key.distance)):
        if row.key.network in compared:
            label = table.marked(row.key.row, row.departures)
            table.cells[f"{row.key.distance}, {label}", row.key.network] = _cell(row)
    return table


def table_1(rows: Sequence[Row]) -> Matrix:
    """Accuracies of a ConvNet by dataset and way to make the set; columns are images per class, and hours."""
    rows = [row for row in rows if row.key.tested_on == "ConvNet" and row.key.distance in ("", "ours")]
    rows = [row for row in rows if row.key.network in ("", "ConvNet")]
    counts = sorted({row.key.ipc for row in rows if row.key.ipc})
    where = f" on {rows[0].key.dataset}" if len({row.key.dataset for row in rows}) == 1 else ""
    table = Matrix(f"Test accuracy of a ConvNet{where} in % (the paper's in brackets)", "set")
    names = {ipc: f"{ipc} per class" for ipc in counts}
    names[0] = names[counts[-1]] if counts else "whole set"
    table.columns = [*(names[ipc] for ipc in counts), "hours"] if counts else ()
    for row in rows:
        label = table.marked(row.key.row, row.departures)
        label = label if where else f"{row.key.dataset}: {label}"
        table.cells[label, names[row.key.ipc]] = _cell(row)
        if row.hours and row.key.method not in BOUNDS:
            hours = f"{fmean(row.hours):.1f}{' GPU' if row.on_gpu else ''}"
            before = table.cells.get((label, "hours"))
            table.cells[label, "hours"] = f"{before} / {hours}" if before else hours
    return table


def to_csv(rows: Sequence[Row]) -> str:
    """One line a row, every number."""
    lines = []
    for row in rows:
        key, (mean, std), found = row.key, row.accuracy, measures(rows, row)
        names = ("dataset", "ipc", "method", "label", "network", "distance", "tested_on", "recipe")
        line: dict[str, Any] = {name: getattr(key, name) for name in names}
        line |= {"departures": "; ".join([*row.departures, *key.scored]), "mean": mean, "std": std}
        line |= {"n": len(row.accuracies), "sets": row.sets, "paper_mean": "", "paper_std": "", "difference": ""}
        if row.paper:
            line |= {"paper_mean": row.paper[0], "paper_std": row.paper[1], "difference": mean - row.paper[0]}
        line |= {name: found.get(name, "") for name in ("gain", "share", "lrs", "ars")}
        line |= {"labels": key.labels, "images_in_one": row.images_in_one, "bytes": row.budget or ""}
        lines.append({name: round(value, 3) if isinstance(value, float) else value for name, value in line.items()})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def plot(rows: Sequence[Row]) -> bytes:
    """Accuracies with their spread, the paper's beside them, as a PNG file."""
    labels = [fill(f"{row.title}, tested on {row.key.tested_on}", width=75) for row in reversed(rows)]
    lines = sum(1 + label.count("\n") for label in labels)
    figure = Figure(figsize=(9, 1.5 + 0.2 * len(rows) + 0.12 * lines), layout="constrained")
    axes = figure.subplots()
    here: list[Accuracy | None] = [row.accuracy for row in reversed(rows)]
    paper = [row.paper for row in reversed(rows)]
    for name, found, style, shift in (("here", here, "o", 0), ("paper", paper, "s", 0.25)):
        shown = {place - shift: accuracy for place, accuracy in enumerate(found) if accuracy}
        means, stds = [mean for mean, _ in shown.values()], [std or 0.0 for _, std in shown.values()]
        color = "tab:gray" if shift else "tab:blue"
        axes.errorbar(means, list(shown), xerr=stds, fmt=style, color=color, capsize=3, ms=5, label=name)
    axes.legend(loc="lower left", fontsize=8)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.set_xlabel("test accuracy in %, mean and std")
    axes.grid(axis="x", alpha=0.3)
    return as_png(figure)


def image_figure(sets: Sequence[SyntheticSet]) -> bytes:
    """The images of sets of one ipc side by side, one row a class (paper, figures 2 and 3), as a PNG file.

    Where several images are in one, as they are stored and decoded.
    """
    shown = []
    for synthetic in sets:
        title, packed = f"{synthetic.source.get('dataset', '')}\n{synthetic.method}", synthetic.images_in_one > 1
        shown.append((synthetic.grid(), title + (f"\n{synthetic.images_in_one} images in one" if packed else "")))
        if packed:
            shown.append((synthetic.grid(decoded=True), f"{title}\ndecoded"))
    widths = [max(4 * grid.shape[2] / grid.shape[1], 1.3) for grid, _ in shown]  # inches; a title needs so much
    figure = Figure(figsize=(sum(widths) + 0.2 * len(widths), 4.7), layout="constrained")
    panels = figure.subplots(1, len(shown), width_ratios=widths, squeeze=False)[0]
    for panel, (grid, title) in zip(panels, shown, strict=True):
        panel.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        panel.set_title(title, fontsize=8)
        panel.set_axis_off()
    return as_png(figure)


def _sets(folders: Iterable[Path]) -> dict[Path, SyntheticSet]:
    """The synthetic sets beside results, by folder; says which files are left out."""
    found = {}
    for path in (folder / "synthetic.pt" for folder in folders):
        try:
            if path.is_file():
                (found[path.parent],) = load_synthetic(path)
        except ValueError as error:
            print(f"'{path}' is left out of the figures: {error}", file=sys.stderr)
    return found


def _condensed_with_convnet(sets: Iterable[SyntheticSet]) -> dict[int, list[SyntheticSet]]:
    """By ipc, one a dataset and label."""
    found: dict[int, dict[tuple[str, str], SyntheticSet]] = {}
    for synthetic in sets:
        source = synthetic.source
        if {"ipc", "dataset", "network"} <= source.keys() and part_name(source["network"]) == "ConvNet":
            label = str(source["dataset"]), label_of(source)[0]
            found.setdefault(int(source["ipc"]), {}).setdefault(label, synthetic)
    return {ipc: [group[label] for label in sorted(group)] for ipc, group in found.items()}


def main(words: Sequence[str]) -> int:
    """Runs ``dc-lightning report`` with these arguments; returns the exit code."""
    parser = OneSentenceParser(
        prog="dc-lightning report",
        description="Tables in the paper's form out of results.json files, ours beside the paper's figures.",
    )
    output = "folder for report.md, .csv, .png, .html and images_ipcN.png"
    into = "a Markdown file whose part between <!-- report --> (or <!-- table 1 -->) and <!-- end --> is replaced"
    add = parser.add_argument
    add("folders", nargs="+", type=expanded_path, metavar="FOLDER", help="with results.json files below")
    add("--output", type=expanded_path, default=Path("lightning_logs/report"), help=output)
    add("--into", type=expanded_path, help=into)
    options = parser.parse_args(words)
    found = collect(options.folders)
    for problem in found.problems:
        print(problem, file=sys.stderr)
    if not found.rows and not found.experiments:
        raise InputError(f"There are no results to report below {', '.join(map(str, options.folders))}.")
    rows = found.rows
    matrices = [*(tables(rows) if rows else []), *merged(Matrix.from_dict(each["table"]) for each in found.experiments)]
    markdown = "\n".join(table.markdown() for table in matrices)
    show(markdown)
    write_whole(options.output / "report.md", markdown.encode())
    if rows:
        write_whole(options.output / "report.csv", to_csv(rows).encode())
        write_whole(options.output / "report.png", plot(rows))
    figures = {f"continual_{number}": figure for number, figure in enumerate(continual.plots(found.experiments), 1)}
    for name, figure in figures.items():
        write_whole(options.output / f"{name}.png", figure)
    sets = _sets(found.folders)
    for ipc, condensed in _condensed_with_convnet(sets.values()).items():
        write_whole(options.output / f"images_ipc{ipc}.png", image_figure(condensed))
    write_whole(options.output / "report.html", page(rows, matrices, sets, figures))
    if options.into:
        _put_into(options.into, {"report": markdown, "table 1": table_1(rows).markdown()})
    Console().print(f"written to {options.output}", markup=False, highlight=False)
    return 0


def _put_into(path: Path, parts: Mapping[str, str]) -> None:
    """Replaces what lies between ``<!-- NAME -->`` and ``<!-- end -->`` in a file."""
    text = path.read_text() if path.is_file() else ""
    marked = re.compile(rf"(<!-- ({'|'.join(parts)}) -->\n).*?(<!-- end -->)", re.DOTALL)
    text, count = marked.subn(lambda match: f"{match[1]}{parts[match[2]]}{match[3]}", text)
    if not count:
        raise InputError(
            f"'{path}' needs the lines <!-- report --> (all tables) or <!-- table 1 -->, and <!-- end -->, between "
            "which the tables go."
        )
    write_whole(path, text.encode())
