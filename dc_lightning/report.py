"""``dc-lightning report FOLDER...``: tables in the paper's form out of results.json files, beside its figures."""

import argparse
import csv
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from dc_lightning.condensation import default_loops
from dc_lightning.errors import InputError
from dc_lightning.evaluation import Recipe
from dc_lightning.paper import METHODS, PROTOCOL, TABLE_1, TABLE_2, WHOLE_SET, Accuracy
from dc_lightning.parts import part_name
from dc_lightning.results import read_results
from dc_lightning.synthetic import SyntheticSet, load_synthetic, write_whole

SELECTIONS = ("herding", "k-center", "forgetting")


@dataclass(frozen=True)
class Key:
    """What may be pooled: sets from different seeds that were made and scored in the same way.

    Args:
        dataset: its name.
        ipc: images per class; 0 for the whole set.
        method: DC, random, herding, k-center, forgetting, whole set.
        network: that condensed, or gave the features; empty for random and whole set.
        distance: for DC.
        tested_on: test network.
        departures: from the paper's protocol, in words.
    """

    dataset: str
    ipc: int
    method: str
    network: str
    distance: str
    tested_on: str
    departures: tuple[str, ...]


@dataclass
class Row:
    """All accuracies of a key.

    Args:
        key: see `Key`.
        accuracies: in [0, 1], by the seed of the set and that of the test network: what is found twice counts once.
    """

    key: Key
    accuracies: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def accuracy(self) -> Accuracy:
        """Mean and population standard deviation, in percent."""
        values = [100 * value for value in self.accuracies.values()]
        return fmean(values), pstdev(values)

    @property
    def sets(self) -> int:
        """Synthetic sets; random images are drawn anew for every network."""
        return len({seed for seed, _ in self.accuracies})

    @property
    def paper(self) -> Accuracy | None:
        """The paper's figure, if it gives one."""
        key = self.key
        if key.method == "whole set":
            return WHOLE_SET.get(key.dataset) if key.tested_on == "ConvNet" else None
        if key.method == "DC" and key.distance != "ours":
            return None
        if key.method == "DC" and (key.dataset, key.ipc) == ("MNIST", 1) and (key.network, key.tested_on) in TABLE_2:
            return TABLE_2[key.network, key.tested_on]
        is_convnet = key.tested_on == "ConvNet" and key.network in ("", "ConvNet")
        return TABLE_1.get((key.dataset, key.ipc, key.method)) if is_convnet else None

    @property
    def made(self) -> str:
        """How the set was made, in words, as the label of a line."""
        key = self.key
        name = key.network if key.method == "DC" else key.method
        distance = [f"distance {key.distance}"] if key.distance not in ("", "ours") else []
        return ", ".join([name, *distance, *key.departures])

    @property
    def label(self) -> str:
        """The whole of it, in words."""
        key = self.key
        condensed = ["DC"] if key.method == "DC" else []
        return ", ".join([key.dataset, *([f"{key.ipc} per class"] if key.ipc else []), *condensed, self.made])


def percent(accuracy: Accuracy) -> str:
    """``70.5 ± 0.6``."""
    return f"{accuracy[0]:.1f} ± {accuracy[1]:.1f}"


def _get(tree: Mapping[str, Any], *path: str) -> Any:
    found: Any = tree
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _condensation_departures(content: Mapping[str, Any]) -> list[str]:
    """What is not the paper's in how a set was condensed; what the file does not say is not judged."""
    source, configuration = content.get("source", {}), content.get("configuration", {})
    model = _get(configuration, "model", "init_args") or configuration.get("model", {})
    network, ipc = part_name(source.get("network", "")), int(content.get("ipc") or source.get("ipc", 1))
    steps, epochs = default_loops(ipc)
    found = {
        "iterations": source.get("iteration", _get(configuration, "trainer", "max_epochs")),
        "real images": source.get("batch_real", _get(configuration, "data", "init_args", "batch_real")),
        "init": source.get("init"),
        "momentum": model.get("momentum_images"),
        "network lr": model.get("lr_network"),
        "inner batch": model.get("batch_synthetic"),
        "outer steps": source.get("outer_steps", model.get("outer_steps")),
        "inner epochs": source.get("inner_epochs", model.get("inner_epochs")) if steps > 1 else None,
        "image lr": source.get("lr_images", model.get("lr_images")),
    }
    lr_images = 0.01 if network == "MLP" else 0.1
    expected = {**PROTOCOL, "outer steps": steps, "inner epochs": epochs, "image lr": lr_images}
    return [
        f"{value} {name}" if isinstance(value, int) else f"{name} {value}"
        for name, value in found.items()
        if value is not None and value != expected[name]
    ]


def _evaluation_departures(content: Mapping[str, Any], epochs: int, augmentation: Sequence[str]) -> list[str]:
    recipe, default = _get(content, "configuration", "evaluation", "recipe") or {}, Recipe()
    found = [
        f"evaluation {name} {recipe[name]}"
        for name in ("lr", "momentum", "weight_decay", "batch_size")
        if name in recipe and recipe[name] != getattr(default, name)
    ]
    if epochs != (default.epochs_augmented if augmentation else default.epochs):
        found.append(f"{epochs + 1} test epochs")
    if recipe.get("augmentation") is not None:
        found.append(f"augmentation {'+'.join(augmentation) or 'none'}")
    return found


def _rows_of(content: Mapping[str, Any]) -> Iterable[tuple[Key, dict[tuple[int, int], float]]]:
    source = content.get("source", {})
    dataset = str(content.get("dataset") or source.get("dataset"))
    ipc = int(content.get("ipc") or source.get("ipc", 0))
    for column in content["columns"]:
        method = "DC" if column["name"] == "gradient matching" else str(column["name"])
        network = distance = ""
        departures: list[str] = []
        set_seed = int(source.get("seed", content.get("seed", 0)))
        if method == "DC":
            network, distance = part_name(source.get("network", "")), part_name(source.get("distance", "ours"))
            departures = _condensation_departures(content)
        elif method in SELECTIONS:
            network = part_name(_get(content, "configuration", "evaluation", "features_network") or "")
            set_seed = int(content.get("seed", 0))
            departures = [f"features after {_get(content, 'configuration', 'evaluation', 'whole_set_epochs')} epochs"]
        for score in column["scores"]:
            name, epochs = str(score["network"]), int(score["epochs"])
            if method == "whole set":
                how = [f"{epochs + 1} epochs"]
            else:
                how = departures + _evaluation_departures(content, epochs, score["augmentation"])
            key = Key(dataset, 0 if method == "whole set" else ipc, method, network, distance, name, tuple(how))
            seeds = [int(seed) for seed in score["seeds"]]
            drawn_anew = method in ("random", "whole set")
            yield (
                key,
                {
                    (seed if drawn_anew else set_seed, seed): float(value)
                    for seed, value in zip(seeds, score["accuracies"], strict=True)
                },
            )


def collect(folders: Sequence[Path]) -> tuple[list[Row], list[Path], list[str]]:
    """Reads all results below the folders and pools them.

    Args:
        folders: with results.json files anywhere below; a file itself will do.

    Returns:
        The rows; the folders that were read; and one sentence for each file that was left out.

    Raises:
        InputError: if a folder is not there.
    """
    rows: dict[Key, Row] = {}
    read, problems = [], []
    for folder in folders:
        if not folder.exists():
            raise InputError(f"There is no folder '{folder}'; give folders with results.json files below.")
        for path in [folder] if folder.is_file() else sorted(folder.rglob("results.json")):
            try:
                found = list(_rows_of(read_results(path)))
            except InputError as broken:
                problems.append(str(broken))
                continue
            except (KeyError, TypeError, ValueError, AttributeError):
                problems.append(f"'{path}' lacks what a report needs; it is left out.")
                continue
            read.append(path.parent)
            for key, accuracies in found:
                rows.setdefault(key, Row(key)).accuracies |= accuracies
    return sorted(rows.values(), key=_order), read, problems


def _order(row: Row) -> tuple[Any, ...]:
    key, methods = row.key, (*METHODS, "whole set")
    place = methods.index(key.method) if key.method in methods else -1
    return key.dataset, key.ipc or 10**9, place, key.distance, key.network, key.departures, key.tested_on


@dataclass
class Matrix:
    """A table of text: what was not run stays blank.

    Args:
        title: above it.
        corner: what the rows are.
        cells: lines of text by row and column label.
    """

    title: str
    corner: str
    cells: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def _labels(self) -> tuple[list[str], list[str]]:
        rows, columns = zip(*self.cells, strict=True) if self.cells else ((), ())
        return list(dict.fromkeys(rows)), list(dict.fromkeys(columns))

    def rich(self) -> Table:
        """For the terminal."""
        rows, columns = self._labels()
        table = Table(title=self.title, show_lines=True)
        table.add_column(self.corner)
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(row, *("\n".join(self.cells.get((row, column), [])) for column in columns))
        return table

    def markdown(self) -> str:
        """For a README."""
        rows, columns = self._labels()
        head = f"| {self.corner} | {' | '.join(columns)} |"
        lines = [f"**{self.title}**", "", head, "|---" * (len(columns) + 1) + "|"]
        for row in rows:
            texts = ["<br>".join(self.cells.get((row, column), [])) for column in columns]
            lines.append(f"| {row} | {' | '.join(texts)} |")
        return "\n".join(lines) + "\n"


def _cell(row: Row) -> list[str]:
    lines = [f"{percent(row.accuracy)} (n={len(row.accuracies)})"]
    if row.paper:
        lines.append(f"paper {percent(row.paper)} ({row.accuracy[0] - row.paper[0]:+.1f})")
    return lines


def tables(rows: Sequence[Row]) -> list[Matrix]:
    """The paper's tables, as far as there is anything for them.

    Args:
        rows: see `collect`.
    """
    found = []
    on_convnet = [
        row for row in rows if row.key.tested_on == "ConvNet" and (row.key.method != "DC" or _is_table_1(row.key))
    ]
    table = Matrix("Test accuracy of a ConvNet in % (table 1)", "training images")
    for row in sorted(on_convnet, key=lambda row: (*_order(row)[2:], row.key.dataset, row.key.ipc)):
        label = ", ".join([row.key.method, *row.key.departures])
        column = f"{row.key.dataset}, {row.key.ipc} per class"
        if row.key.method == "whole set":
            same = [other for other in on_convnet if other.key.dataset == row.key.dataset and other.key.ipc]
            column = f"{same[0].key.dataset}, {same[0].key.ipc} per class" if same else row.key.dataset
        table.cells[label, column] = _cell(row)
    found.append(table)
    for dataset, ipc in dict.fromkeys((row.key.dataset, row.key.ipc) for row in rows):
        here = [row for row in rows if row.key.dataset == dataset and row.key.ipc in (ipc, 0)] if ipc else []
        if any(row.key.tested_on != "ConvNet" and row.key.ipc for row in here):
            title = f"{dataset}, {ipc} per class: made with (rows), tested on (columns), in % (tables 2, T2 to T6)"
            table = Matrix(title, "made with")
            ours = [row for row in here if row.key.distance in ("", "ours")]
            for row in sorted(ours, key=lambda row: (not row.key.ipc, row.key.method != "DC", row.made)):
                table.cells[row.made, row.key.tested_on] = _cell(row)
            found.append(table)
        condensed = [row for row in here if row.key.method == "DC"]
        distances = [row for row in condensed if row.key.tested_on == row.key.network.split("BN")[0]]
        if len({row.key.distance for row in distances}) > 1:
            table = Matrix(f"{dataset}, {ipc} per class: the three distances, in % (table T7)", "distance")
            for row in distances:
                label = ", ".join([row.key.distance, *row.key.departures])
                table.cells[label, row.key.network] = _cell(row)
            found.append(table)
    return [*(table for table in found if table.cells), _comparison(rows)]


def _is_table_1(key: Key) -> bool:
    return (key.network, key.distance) == ("ConvNet", "ours")


def _baseline(rows: Sequence[Row], row: Row, method: str) -> Row | None:
    """Random images, or the whole set, under the recipe that a set was tested by."""
    key = row.key
    ipc = 0 if method == "whole set" else key.ipc
    same = [
        other
        for other in rows
        if (other.key.dataset, other.key.ipc, other.key.method, other.key.tested_on)
        == (key.dataset, ipc, method, key.tested_on)
        and (method == "whole set" or set(other.key.departures) <= set(key.departures))
    ]
    return max(same, key=lambda other: len(other.accuracies)) if same else None


def _comparison(rows: Sequence[Row]) -> Matrix:
    table = Matrix("Gain over random images of the same budget, and share of the whole set's accuracy", "set")
    for row in rows:
        key = row.key
        if key.method in ("random", "whole set"):
            continue
        label = f"{row.label}, tested on {key.tested_on}"
        table.cells[label, "accuracy"] = [percent(row.accuracy)]
        table.cells[label, "sets, n"] = [f"{row.sets}, {len(row.accuracies)}"]
        random, whole = _baseline(rows, row, "random"), _baseline(rows, row, "whole set")
        table.cells[label, "gain"] = [f"{row.accuracy[0] - random.accuracy[0]:+.1f}"] if random else []
        table.cells[label, "share"] = [f"{100 * row.accuracy[0] / whole.accuracy[0]:.0f} %"] if whole else []
    return table


def to_csv(rows: Sequence[Row]) -> str:
    """One line a row, every number.

    Args:
        rows: see `collect`.
    """
    buffer = io.StringIO()
    names = ["dataset", "ipc", "method", "network", "distance", "tested_on", "departures", "mean", "std", "n", "sets"]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*names, "paper_mean", "paper_std", "difference", "gain_over_random", "share_of_whole_set"])
    for row in rows:
        key, (mean, std) = row.key, row.accuracy
        random, whole = _baseline(rows, row, "random"), _baseline(rows, row, "whole set")
        paper = row.paper
        beside = [*paper, mean - paper[0]] if paper else ["", "", ""]
        gain = mean - random.accuracy[0] if random and key.method not in ("random", "whole set") else ""
        share = 100 * mean / whole.accuracy[0] if whole and key.method != "whole set" else ""
        first = [key.dataset, key.ipc or "", key.method, key.network, key.distance, key.tested_on]
        numbers = [mean, std, len(row.accuracies), row.sets, *beside, gain, share]
        rounded = [round(value, 3) if isinstance(value, float) else value for value in numbers]
        writer.writerow([*first, "; ".join(key.departures), *rounded])
    return buffer.getvalue()


def plot(rows: Sequence[Row]) -> bytes:
    """Accuracies with their spread, the paper's beside them, as a PNG file.

    Args:
        rows: see `collect`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.5 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    found: list[list[Accuracy | None]] = [[row.accuracy for row in rows], [row.paper for row in rows]]
    for number, (name, marker, color) in enumerate((("here", "o", "tab:blue"), ("paper", "s", "tab:gray"))):
        shown = [(len(rows) - 1 - place, pair) for place, pair in enumerate(found[number]) if pair]
        if shown:
            places, means, stds = zip(*((place - 0.25 * number, *pair) for place, pair in shown), strict=True)
            axes.errorbar(means, places, xerr=stds, fmt=marker, color=color, capsize=3, ms=5, label=name)
    axes.legend(loc="lower left", fontsize=8)
    labels = [f"{row.label}, tested on {row.key.tested_on}" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.set_xlabel("test accuracy in %, mean and std")
    axes.grid(axis="x", alpha=0.3)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def image_figure(sets: Sequence[SyntheticSet]) -> bytes:
    """The images of several datasets side by side, one row a class (paper, figures 2 and 3), as a PNG file.

    Args:
        sets: with one number of images per class.
    """
    from matplotlib.figure import Figure

    grids = [synthetic.grid() for synthetic in sets]
    widths = [grid.shape[2] / grid.shape[1] for grid in grids]
    figure = Figure(figsize=(4 * sum(widths) + 0.5 * len(widths), 4.4), layout="constrained")
    panels = figure.subplots(1, len(grids), width_ratios=widths, squeeze=False)[0]
    for panel, grid, synthetic in zip(panels, grids, sets, strict=True):
        panel.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        panel.set_title(str(synthetic.source.get("dataset", "")), fontsize=9)
        panel.set_axis_off()
    return _png(figure)


def _condensed_sets(folders: Iterable[Path]) -> dict[int, list[SyntheticSet]]:
    """The first condensed set of every dataset by images per class: ConvNet and layer-wise cosine go first."""
    found: dict[tuple[int, str], SyntheticSet] = {}
    for folder in folders:
        try:
            (synthetic,) = load_synthetic(folder / "synthetic.pt")
        except (InputError, ValueError):
            continue
        source = synthetic.source
        if source.get("method") == "gradient matching":
            key = int(source["ipc"]), str(source["dataset"])
            best = found.get(key)
            if best is None or _is_preferred(source) > _is_preferred(best.source):
                found[key] = synthetic
    groups: dict[int, list[SyntheticSet]] = {}
    for (ipc, _), synthetic in sorted(found.items(), key=lambda item: item[0]):
        groups.setdefault(ipc, []).append(synthetic)
    return groups


def _is_preferred(source: Mapping[str, Any]) -> tuple[bool, int]:
    is_paper = (source.get("network"), source.get("distance")) == ("ConvNet", "ours")
    return is_paper, int(source.get("iteration", 0))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}.")


def main(words: Sequence[str]) -> int:
    """Runs ``dc-lightning report``.

    Args:
        words: after ``report``.

    Returns:
        The exit code: 0.

    Raises:
        InputError: if a folder is not there, or nothing in it can be reported.
    """
    parser = _Parser(
        prog="dc-lightning report",
        description="Tables in the paper's form out of results.json files, ours beside the paper's figures.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="with results.json files below")
    folder, what = Path("lightning_logs/report"), "folder for report.md, report.csv, report.png and images_ipcN.png"
    parser.add_argument("--output", type=Path, default=folder, help=what)
    parser.add_argument(
        "--into", type=Path, help="a Markdown file whose part between <!-- report --> and <!-- end --> is replaced"
    )
    options = parser.parse_args(words)
    rows, read, problems = collect(options.folders)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not rows:
        raise InputError(f"There are no results to report below {', '.join(map(str, options.folders))}.")
    found, console = tables(rows), Console()
    for table in found:
        console.print(table.rich())
    markdown = "\n".join(table.markdown() for table in found)
    write_whole(options.output / "report.md", markdown.encode())
    write_whole(options.output / "report.csv", to_csv(rows).encode())
    write_whole(options.output / "report.png", plot(rows))
    for ipc, sets in _condensed_sets(read).items():
        write_whole(options.output / f"images_ipc{ipc}.png", image_figure(sets))
    if options.into:
        _put_into(options.into, markdown)
    console.print(f"written to {options.output}", markup=False, highlight=False)
    return 0


def _put_into(path: Path, markdown: str) -> None:
    text = path.read_text() if path.is_file() else ""
    marked = re.compile(r"(<!-- report -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marked.search(text):
        raise InputError(f"'{path}' needs the lines <!-- report --> and <!-- end -->, between which the tables go.")
    write_whole(path, marked.sub(lambda match: f"{match.group(1)}{markdown}{match.group(2)}", text).encode())
