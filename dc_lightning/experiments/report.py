"""``dc-lightning report FOLDER...``: tables in the paper's form out of results.json files, beside its figures."""

import csv
import io
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
from rich.table import Table

from dc_lightning.condensation import default_loops
from dc_lightning.data import MNIST
from dc_lightning.distance import NAMES
from dc_lightning.errors import InputError, OneSentenceParser
from dc_lightning.evaluation import POOLS, Recipe
from dc_lightning.paper import DATASETS, METHODS, PROTOCOL, TABLE_1, TABLE_2, WHOLE_SET, Accuracy
from dc_lightning.parts import Spec, part_name
from dc_lightning.results import read_results
from dc_lightning.selection import Selection
from dc_lightning.synthetic import SyntheticSet, load_synthetic, write_whole

SELECTIONS = get_args(Selection)


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
        made: departures from the paper's protocol in how the set was made, in words.
        scored: likewise in how test networks are trained on it.
    """

    dataset: str
    ipc: int
    method: str
    network: str
    distance: str
    tested_on: str
    made: tuple[str, ...]
    scored: tuple[str, ...]

    @property
    def departures(self) -> tuple[str, ...]:
        """All of them."""
        return self.made + self.scored


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
        name = key.network if key.method == "DC" else _method(key)
        distance = [f"distance {key.distance}"] if key.distance not in ("", "ours") else []
        return ", ".join([name, *distance, *key.departures])

    @property
    def label(self) -> str:
        """The whole of it, in words."""
        key = self.key
        condensed = ["DC"] if key.method == "DC" else []
        return ", ".join([key.dataset, *([f"{key.ipc} per class"] if key.ipc else []), *condensed, self.made])


def _method(key: Key) -> str:
    return f"{key.method} by {key.network}" if key.method in SELECTIONS and key.network != "ConvNet" else key.method


def percent(accuracy: Accuracy) -> str:
    """``70.5 ± 0.6``."""
    return f"{accuracy[0]:.1f} ± {accuracy[1]:.1f}"


def _get(tree: Mapping[str, Any], *path: str) -> Any:
    found: Any = tree
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _condensation_departures(source: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[str]:
    """What is not the paper's in how a set was condensed; what the file does not say is not judged.

    Args:
        source: of the set.
        configuration: of the run that condensed it; empty for one that scored a saved set.
    """
    model = _get(configuration, "model", "init_args") or configuration.get("model") or {}
    steps, epochs = default_loops(int(source["ipc"]))
    found = {
        "iterations": source.get("iteration", _get(configuration, "trainer", "max_epochs")),
        "real images": source.get("batch_real", _get(configuration, "data", "init_args", "batch_real")),
        "init": source.get("init"),
        "outer steps": source.get("outer_steps", model.get("outer_steps")),
        "inner epochs": source.get("inner_epochs", model.get("inner_epochs")),
        "image lr": source.get("lr_images", model.get("lr_images")),
        "image lr cooldown": source.get("lr_images_cooldown", model.get("lr_images_cooldown")),
        "momentum": source.get("momentum_images", model.get("momentum_images")),
        "network lr": source.get("lr_network", model.get("lr_network")),
        "inner batch": source.get("batch_synthetic", model.get("batch_synthetic")),
        "BatchNorm images": source.get("batch_norm_images", model.get("batch_norm_images")),
        "mean": _get(configuration, "data", "init_args", "mean"),
        "std": _get(configuration, "data", "init_args", "std"),
        "by": source.get("class"),
        "precision": source.get("precision"),
    }
    planned = source.get("max_epochs")
    if found["image lr cooldown"] and planned not in (None, found["iterations"]):  # it was not run to its end
        found["image lr cooldown"] = f"{found['image lr cooldown']} of {planned} iterations"
    if (found["outer steps"] or steps) == 1:
        found["inner epochs"] = None  # there is no step to train for
    lr_images = 0.01 if part_name(source["network"]) == "MLP" else 0.1
    expected = {
        **PROTOCOL,
        "mean": None,
        "std": None,
        "outer steps": steps,
        "inner epochs": epochs,
        "image lr": lr_images,
    }
    return [
        f"{value} {name}" if isinstance(value, int) else f"{name} {value}"
        for name, value in found.items()
        if value is not None and value != expected[name]
    ]


def _scoring_departures(content: Mapping[str, Any], score: Mapping[str, Any], is_whole_set: bool) -> list[str]:
    recipe, default = _get(content, "configuration", "evaluation", "recipe") or {}, Recipe()
    found = [
        f"evaluation {name} {recipe[name]}"
        for name in ("lr", "momentum", "weight_decay", "batch_size")
        if name in recipe and recipe[name] != getattr(default, name)
    ]
    augmentation, epochs = list(score["augmentation"]), int(score["epochs"])
    if is_whole_set:
        found.insert(0, f"{epochs + 1} epochs")
    elif epochs != (default.epochs_augmented if augmentation else default.epochs):
        found.append(f"{epochs + 1} test epochs")
    usual: Sequence[Spec] = MNIST.augmentation if content["dataset"] == "MNIST" else []
    usual = default.augmentation_by_network.get(score["network"], usual)
    if augmentation != [part_name(name) for name in usual]:
        found.append(f"augmentation {'+'.join(augmentation) or 'none'}")
    return found


def _rows_of(content: Mapping[str, Any]) -> Iterable[tuple[Key, dict[tuple[int, int], float]]]:
    content = {"dataset": _get(content, "source", "dataset"), "ipc": _get(content, "source", "ipc"), **content}
    dataset, ipc, sources = str(content["dataset"]), int(content["ipc"]), content.get("sources") or [content["source"]]
    if content["dataset"] is None:
        raise KeyError("dataset")
    for column in content["columns"]:
        name = str(column["name"])
        method = "DC" if name == "gradient matching" else name
        is_whole_set, is_baseline = method == "whole set", content["columns"].index(column) > 0
        for score in column["scores"]:
            scored = tuple(_scoring_departures(content, score, is_whole_set))
            pairs = list(zip([int(seed) for seed in score["seeds"]], score["accuracies"], strict=True))
            drawn_anew = is_whole_set or (method == "random" and is_baseline)
            blocks = [{}] if is_baseline else sources  # one set after the other
            each = len(pairs) // len(blocks)
            for number, source in enumerate(blocks):
                network = distance = ""
                made: list[str] = []
                set_seed = int(source.get("seed", source.get("experiment", content.get("seed", 0))))
                if method == "DC":
                    network, distance = part_name(source["network"]), part_name(source.get("distance", "ours"))
                    condensed_here = content.get("kind") == "condensation"
                    made = _condensation_departures(source, content["configuration"] if condensed_here else {})
                elif method in SELECTIONS:
                    evaluation = _get(content, "configuration", "evaluation") or {}
                    network = part_name(source.get("features", evaluation.get("features_network", "")))
                    made = [f"features after {source.get('epochs', evaluation.get('whole_set_epochs'))} epochs"]
                budget = 0 if is_whole_set else ipc
                key = Key(dataset, budget, method, network, distance, score["network"], tuple(made), scored)
                yield (
                    key,
                    {
                        (seed if drawn_anew else set_seed, seed): float(value)
                        for seed, value in pairs[number * each : (number + 1) * each]
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
            except OSError as unreadable:
                problems.append(f"'{path}' cannot be read ({unreadable.strerror}); it is left out.")
                continue
            except (KeyError, TypeError, ValueError, AttributeError):
                problems.append(f"'{path}' lacks what a report needs; it is left out.")
                continue
            read.append(path.parent)
            for key, accuracies in found:
                known = rows.setdefault(key, Row(key)).accuracies
                if key.method not in ("random", "whole set") and any(
                    known.get(k, v) != v for k, v in accuracies.items()
                ):
                    problems.append(
                        f"'{path}' repeats seeds of a file before it with other accuracies: the first count."
                    )
                known |= {seeds: value for seeds, value in accuracies.items() if seeds not in known}
    return sorted(rows.values(), key=_order), read, problems


def _order(row: Row) -> tuple[Any, ...]:
    key, methods = row.key, (*METHODS, "whole set")
    place = methods.index(key.method) if key.method in methods else -1
    dataset = (DATASETS.index(key.dataset) if key.dataset in DATASETS else len(DATASETS)), key.dataset
    return *dataset, key.ipc or 10**9, place, key.distance, key.network, key.departures, key.tested_on


@dataclass
class Matrix:
    """A table of text: what was not run stays blank.

    Args:
        title: above it.
        corner: what the rows are.
        cells: lines of text by row and column label.
        columns: in this order; None takes the order in which they come.
    """

    title: str
    corner: str
    cells: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    columns: Sequence[str] | None = None

    def _labels(self) -> tuple[list[str], list[str]]:
        rows, columns = zip(*self.cells, strict=True) if self.cells else ((), ())
        return list(dict.fromkeys(rows)), list(self.columns or dict.fromkeys(columns))

    def rich(self) -> Table:
        """For the terminal."""
        rows, columns = self._labels()
        table = Table(title=self.title, show_lines=True)
        table.add_column(self.corner)
        for column in columns:
            words = max((len(line) for row in rows for line in self.cells.get((row, column), [])), default=0)
            table.add_column(column, justify="right", min_width=words)
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
    found = [_table_1(rows)]
    for dataset, ipc in dict.fromkeys((row.key.dataset, row.key.ipc) for row in rows if row.key.ipc):
        here = [row for row in rows if row.key.dataset == dataset and row.key.ipc in (ipc, 0)]
        here = [row for row in here if row.key.distance in ("", "ours")]
        for title, name in _CROSS_TABLES.items():
            tested = [part_name(network) for network in POOLS[name]]
            shown = [row for row in here if row.key.tested_on in tested]
            shown = [row for row in shown if row.key.method != "DC" or row.key.network in _condensing(name)]
            times = Counter(row.made for row in shown if row.key.method not in ("random", "whole set"))
            if any(count > 1 for count in times.values()):  # a set was tested on more than one
                table = Matrix(
                    f"{dataset}, {ipc} per class: {title}, in %; rows make the set, columns train on it",
                    "set",
                    columns=[name for name in tested if any(row.key.tested_on == name for row in shown)],
                )
                made_by = [*tested, *dict.fromkeys(network for network, _ in TABLE_2)]
                shown.sort(key=lambda row: (row.key.method != "DC", _place(row.key.network, made_by), _order(row)))
                for row in shown:
                    table.cells[row.made, row.key.tested_on] = _cell(row)
                found.append(table)
        condensed = [row for row in rows if (row.key.dataset, row.key.ipc, row.key.method) == (dataset, ipc, "DC")]
        compared = {row.key.network for row in condensed if row.key.distance != "ours"}
        if compared:
            table = Matrix(f"{dataset}, {ipc} per class: the three distances, in % (table T7)", "distance")
            own = [row for row in condensed if row.key.tested_on == row.key.network.split("BN")[0]]
            for row in sorted((row for row in own if row.key.network in compared), key=_by_distance):
                table.cells[", ".join([row.key.distance, *row.key.departures]), row.key.network] = _cell(row)
            found.append(table)
    return [*(table for table in found if table.cells), _comparison(rows)]


def _place(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else len(names)


def _by_distance(row: Row) -> tuple[int, int, tuple[str, ...]]:
    networks = list(dict.fromkeys(network for network, _ in TABLE_2))
    return _place(row.key.network, networks), _place(row.key.distance, NAMES), row.key.departures


_CROSS_TABLES = {
    "networks (table 2)": "M",
    "networks with BatchNorm": "B",
    "widths (table T2)": "W",
    "depths (table T3)": "D",
    "activations (table T4)": "A",
    "poolings (table T5)": "P",
    "normalisations (table T6)": "N",
}


def _condensing(name: str) -> set[str]:
    """Networks that condense for a table: its pool, those of table 2, and the plain ConvNet."""
    own = {part_name(network) for network in POOLS[name]}
    return own | ({network for network, _ in TABLE_2} if name in "MB" else {"ConvNet"})


def _table_1(rows: Sequence[Row]) -> Matrix:
    rows = [row for row in rows if row.key.tested_on == "ConvNet" and (row.key.method != "DC" or _is_table_1(row.key))]
    budgets = list(dict.fromkeys((row.key.dataset, row.key.ipc) for row in rows if row.key.ipc))
    ordered = sorted(rows, key=lambda row: (*_order(row)[3:7], _order(row)))
    labels = {row.key: ", ".join([_method(row.key), *row.key.departures]) for row in ordered}
    title = "Test accuracy of a ConvNet in % (table 1)"
    table = Matrix(title, "training set", columns=list(dict.fromkeys(labels.values())))
    for dataset, ipc in budgets:
        for row in ordered:
            if row.key.dataset == dataset and row.key.ipc in (ipc, 0):
                table.cells[f"{dataset}, {ipc} per class", labels[row.key]] = _cell(row)
    return table


def _is_table_1(key: Key) -> bool:
    return (key.network, key.distance) == ("ConvNet", "ours")


def _baseline(rows: Sequence[Row], row: Row, method: str) -> Row | None:
    """Random images of the same budget by the same recipe, or the whole set by the same learning rates."""
    key = row.key
    is_whole_set = method == "whole set"
    same = [
        other
        for other in rows
        if (other.key.dataset, other.key.ipc, other.key.method, other.key.tested_on)
        == (key.dataset, 0 if is_whole_set else key.ipc, method, key.tested_on)
        and _but_epochs(other.key.scored) == _but_epochs(key.scored)
        and (is_whole_set or other.key.scored == key.scored)
    ]
    return max(same, key=lambda other: (len(other.accuracies), other.accuracy)) if same else None


def _but_epochs(scored: Sequence[str]) -> list[str]:
    return [departure for departure in scored if not departure.endswith("epochs")]


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

    labels = [fill(f"{row.label}, tested on {row.key.tested_on}", width=75) for row in reversed(rows)]
    lines = sum(1 + label.count("\n") for label in labels)
    figure = Figure(figsize=(9, 1.5 + 0.2 * len(rows) + 0.12 * lines), layout="constrained")
    axes = figure.subplots()
    found: list[list[Accuracy | None]] = [[row.accuracy for row in rows], [row.paper for row in rows]]
    for number, (name, marker, color) in enumerate((("here", "o", "tab:blue"), ("paper", "s", "tab:gray"))):
        shown = [(len(rows) - 1 - place, pair) for place, pair in enumerate(found[number]) if pair]
        if shown:
            places, means, stds = zip(*((place - 0.25 * number, *pair) for place, pair in shown), strict=True)
            axes.errorbar(means, places, xerr=stds, fmt=marker, color=color, capsize=3, ms=5, label=name)
    axes.legend(loc="lower left", fontsize=8)
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


def _condensed_sets(folders: Iterable[Path]) -> tuple[dict[int, list[SyntheticSet]], list[str]]:
    """The first condensed set of every dataset by images per class, ConvNet and layer-wise cosine go first.

    Returns:
        The sets; and one sentence for each file that was left out.
    """
    found: dict[tuple[int, str], SyntheticSet] = {}
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
        if source.get("method") == "gradient matching" and {"ipc", "dataset"} <= source.keys():
            key = int(source["ipc"]), str(source["dataset"])
            best = found.get(key)
            if best is None or _is_preferred(source) > _is_preferred(best.source):
                found[key] = synthetic
    groups: dict[int, list[SyntheticSet]] = {}
    for (ipc, _), synthetic in sorted(found.items(), key=lambda item: item[0]):
        groups.setdefault(ipc, []).append(synthetic)
    return groups, problems


def _is_preferred(source: Mapping[str, Any]) -> tuple[bool, int]:
    is_paper = (source.get("network"), source.get("distance")) == ("ConvNet", "ours")
    return is_paper, int(source.get("iteration", 0))


def main(words: Sequence[str]) -> int:
    """Runs ``dc-lightning report``.

    Args:
        words: after ``report``.

    Returns:
        The exit code: 0.

    Raises:
        InputError: if a folder is not there, or nothing in it can be reported.
    """
    parser = OneSentenceParser(
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
        shown = table.rich()
        needed = Console(width=10_000).measure(shown).minimum + 3 * len(shown.columns)  # rich forgets some padding
        Console(width=max(console.width, needed)).print(shown)  # figures are never cut
    markdown = "\n".join(table.markdown() for table in found)
    write_whole(options.output / "report.md", markdown.encode())
    write_whole(options.output / "report.csv", to_csv(rows).encode())
    write_whole(options.output / "report.png", plot(rows))
    condensed, damaged = _condensed_sets(read)
    for problem in damaged:
        print(problem, file=sys.stderr)
    for ipc, sets in condensed.items():
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
