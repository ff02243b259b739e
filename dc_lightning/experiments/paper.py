"""The experiments of the papers, and the figures they give for them.

Test accuracies in percent, mean and standard deviation, of a ConvNet (5 synthetic sets, 20 networks each): DC's of
table 1 of its paper, DSA's means from the authors' readme and their spread as table 1 of KIP (Nguyen et al., NeurIPS
2021) quotes them, DM's on CIFAR as table 1 of PAD (2024) quotes them, IDC's means from its authors' readme, the best of
four tests of each run. DC's tables T2 to T7 are not repeated here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dc_lightning.evaluation.pools import POOLS

Accuracy = tuple[float, float | None]
"""Mean and standard deviation, in percent; None where only the mean is published."""

SHAPES = {
    "MNIST": (1, 28, 28),
    "FashionMNIST": (1, 28, 28),
    "SVHN": (3, 32, 32),
    "CIFAR10": (3, 32, 32),
    "CIFAR100": (3, 32, 32),
}
"""Of the images of each dataset in the papers."""

DATASETS = tuple(SHAPES)
SELECTIONS = ("random", "herding", "k-center", "forgetting")

_TABLE_1: dict[str, dict[str, Sequence[Accuracy | None]]] = {
    "random": {
        "MNIST": ((64.9, 3.5), (95.1, 0.9), (97.9, 0.2)),
        "FashionMNIST": ((51.4, 3.8), (73.8, 0.7), (82.5, 0.7)),
        "SVHN": ((14.6, 1.6), (35.1, 4.1), (70.9, 0.9)),
        "CIFAR10": ((14.4, 2.0), (26.0, 1.2), (43.4, 1.0)),
    },
    "herding": {
        "MNIST": ((89.2, 1.6), (93.7, 0.3), (94.9, 0.2)),
        "FashionMNIST": ((67.0, 1.9), (71.1, 0.7), (71.9, 0.8)),
        "SVHN": ((20.9, 1.3), (50.5, 3.3), (72.6, 0.8)),
        "CIFAR10": ((21.5, 1.2), (31.6, 0.7), (40.4, 0.6)),
    },
    "k-center": {
        "MNIST": ((89.3, 1.5), (84.4, 1.7), (97.4, 0.3)),
        "FashionMNIST": ((66.9, 1.8), (54.7, 1.5), (68.3, 0.8)),
        "SVHN": ((21.0, 1.5), (14.0, 1.3), (20.1, 1.4)),
        "CIFAR10": ((21.5, 1.3), (14.7, 0.9), (27.0, 1.4)),
    },
    "forgetting": {
        "MNIST": ((35.5, 5.6), (68.1, 3.3), (88.2, 1.2)),
        "FashionMNIST": ((42.0, 5.5), (53.9, 2.0), (55.0, 1.1)),
        "SVHN": ((12.1, 1.7), (16.8, 1.2), (27.2, 1.5)),
        "CIFAR10": ((13.5, 1.2), (23.3, 1.0), (23.3, 1.1)),
    },
    "DC": {
        "MNIST": ((91.7, 0.5), (97.4, 0.2), (98.8, 0.2)),
        "FashionMNIST": ((70.5, 0.6), (82.3, 0.4), (83.6, 0.4)),
        "SVHN": ((31.2, 1.4), (76.1, 0.6), (82.3, 0.3)),
        "CIFAR10": ((28.3, 0.5), (44.9, 0.5), (53.9, 0.5)),
        "CIFAR100": ((12.8, 0.3), (25.2, 0.3)),
    },
    "DSA": {
        "MNIST": ((88.7, 0.6), (97.8, 0.1), (99.2, 0.1)),
        "FashionMNIST": ((70.6, 0.6), (84.6, 0.3), (88.7, 0.2)),
        "SVHN": ((27.5, 1.4), (79.2, 0.5), (84.4, 0.4)),
        "CIFAR10": ((28.8, 0.7), (52.1, 0.5), (60.6, 0.5)),
        "CIFAR100": ((13.9, 0.3), (32.3, 0.3)),
    },
    "DM": {
        "CIFAR10": ((26.0, 0.8), (48.9, 0.6), (63.0, 0.4)),
        "CIFAR100": ((11.4, 0.3), (29.7, 0.3), (43.6, 0.4)),
    },
    "IDC-I": {
        "MNIST": ((88.9, None), (98.0, None), (98.8, None)),
        "FashionMNIST": ((70.7, None), (85.3, None), (89.1, None)),
        "SVHN": ((46.7, None), (77.0, None), (87.9, None)),
        "CIFAR10": ((36.7, None), (58.3, None), (69.5, None)),
        "CIFAR100": (None, (36.6, None)),
    },
    "IDC": {
        "MNIST": ((94.2, None), (98.4, None), (99.1, None)),
        "FashionMNIST": ((81.0, None), (86.0, None), (86.2, None)),
        "SVHN": ((68.5, None), (87.5, None), (90.1, None)),
        "CIFAR10": ((50.6, None), (67.5, None), (74.5, None)),
        "CIFAR100": (None, (45.1, None)),
    },
}

TABLE_1: dict[tuple[str, int, str], Accuracy] = {
    (dataset, ipc, method): accuracy
    for method, rows in _TABLE_1.items()
    for dataset, row in rows.items()
    for ipc, accuracy in zip((1, 10, 50), row, strict=False)
    if accuracy is not None
}
"""By dataset, images per class, and method."""

WHOLE_SET: dict[str, Accuracy] = {
    "MNIST": (99.6, 0.0),
    "FashionMNIST": (93.5, 0.1),
    "SVHN": (95.4, 0.1),
    "CIFAR10": (84.8, 0.1),
}
"""A ConvNet trained on all images; last row of table 1."""

_TABLE_2_ROWS: dict[str, Sequence[Accuracy]] = {
    "MLP": ((70.5, 1.2), (63.9, 6.5), (77.3, 5.8), (70.9, 11.6), (53.2, 7.0), (80.9, 3.6)),
    "ConvNet": ((69.6, 1.6), (91.7, 0.5), (85.3, 1.8), (85.1, 3.0), (83.4, 1.8), (90.0, 0.8)),
    "LeNet": ((71.0, 1.6), (90.3, 1.2), (85.0, 1.7), (84.7, 2.4), (80.3, 2.7), (89.0, 0.8)),
    "AlexNet": ((72.1, 1.7), (87.5, 1.6), (84.0, 2.8), (82.7, 2.9), (81.2, 3.0), (88.9, 1.1)),
    "VGG11BN": ((70.3, 1.6), (90.1, 0.7), (83.9, 2.7), (83.4, 3.7), (81.7, 2.6), (89.1, 0.9)),
    "ResNet18BN_AP": ((73.6, 1.2), (91.6, 0.5), (86.4, 1.5), (85.4, 1.9), (83.4, 2.4), (89.4, 0.9)),
}

TABLE_2: dict[tuple[str, str], Accuracy] = {
    (condensed_with, tested_on): accuracy
    for condensed_with, row in _TABLE_2_ROWS.items()
    for tested_on, accuracy in zip(POOLS["M"], row, strict=True)
}
"""MNIST, one image per class; by the network that condensed and the one that was trained and tested."""


@dataclass(frozen=True)
class Cell:
    """One synthetic set of a table, for every seed."""

    dataset: str  # name of a class of `dc_lightning.data`, or an import path
    ipc: int
    method: str = "dc"  # dc, dsa, dm, a YAML file of a method, or a selection
    network: str = "ConvNet"  # that condenses, and that selections and S are tested on
    distance: str = "ours"  # of gradients, where the method compares them
    pool: str = "S"  # test networks
    row: str = "dc"  # of the table

    @property
    def is_selection(self) -> bool:
        """Whether real images are selected, not condensed."""
        return self.method in SELECTIONS

    @property
    def name(self) -> str:
        """Of its folder; tables that share a cell share the folder."""
        parts = [self.dataset, f"ipc{self.ipc}", Path(self.method).stem, self.network]
        parts += [self.distance] if self.distance != "ours" else []
        return "_".join([*parts, self.pool] if self.pool != "S" else parts)


POOL_OF = {"table2": "M", "T2": "W", "T3": "D", "T4": "A", "T5": "P", "T6": "N"}
"""The pool of test networks of a table."""

TABLES: dict[str, str] = {
    "table1": "ConvNet on each dataset, and real images selected by other methods",
    "table2": "condensed with one network, tested on another",
    "T2": "widths of the ConvNet",
    "T3": "depths of the ConvNet",
    "T4": "activations of the ConvNet",
    "T5": "poolings of the ConvNet",
    "T6": "normalisations of the ConvNet",
    "T7": "the three distances",
    "figure2": "the images at one per class",
    "figure3": "the images at ten per class",
}
"""What can be reproduced."""


def cells(
    table: str, method: str = "dc", datasets: Sequence[str] | None = None, ipc: Sequence[int] | None = None
) -> list[Cell]:
    """The cells of a table.

    Args:
        table: a key of `TABLES`.
        method: that condenses; see `Cell`.
        datasets: in place of the paper's; MNIST alone in all but table 1 and the figures.
        ipc: images per class, in place of the paper's: 1, 10, 50 in table 1, and 1 in the others.
    """
    if table in ("table1", "figure2", "figure3"):
        default = {"table1": (1, 10, 50), "figure2": (1,), "figure3": (10,)}[table]
        rows = (method, "herding", "k-center", "forgetting") if table == "table1" else (method,)
        return [
            Cell(dataset, count, row, "ConvNetD2" if dataset == "Digits" else "ConvNet", row=row)  # 8x8 is halved twice
            for dataset in datasets or (DATASETS if table == "table1" else DATASETS[:4])
            for count in ipc or default
            for row in rows
            if ipc or dataset not in DATASETS or row not in SELECTIONS or (dataset, count, row) in TABLE_1
        ]
    networks = list(_TABLE_2_ROWS) if table in ("table2", "T7") else POOLS[POOL_OF[table]]
    return [
        Cell(dataset, count, method, network, distance, POOL_OF.get(table, "S"), row=network)
        for dataset in datasets or ("MNIST",)
        for count in ipc or (1,)
        for network in networks
        for distance in (("ours", "mse", "cos") if table == "T7" else ("ours",))
    ]
