"""``dc-lightning reproduce TABLE``: runs the cells of a table that are not there yet, each as a fit of its own."""

import argparse
import fcntl
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dc_lightning.allocator import keep_freed_memory
from dc_lightning.condensation import default_chunk_size, default_loops
from dc_lightning.distance import layerwise_cosine
from dc_lightning.errors import InputError, OneSentenceParser
from dc_lightning.evaluation import pool
from dc_lightning.matching import match_class
from dc_lightning.networks import ImageSize
from dc_lightning.paper import DATASETS, TABLES, Cell, cells
from dc_lightning.parts import make_network
from dc_lightning.results import read_results
from dc_lightning.synthetic import write_whole

SHAPES: dict[str, tuple[int, int, ImageSize, int, int]] = {
    "MNIST": (1, 10, (28, 28), 60_000, 10_000),
    "FashionMNIST": (1, 10, (28, 28), 60_000, 10_000),
    "SVHN": (3, 10, (32, 32), 73_257, 26_032),
    "CIFAR10": (3, 10, (32, 32), 50_000, 10_000),
    "CIFAR100": (3, 100, (32, 32), 50_000, 10_000),
    "Digits": (1, 10, (8, 8), 1_437, 360),
}
"""Channels, classes, image size, training and test images: an estimate of the time needs no data."""

_MACHINE = (
    *("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.num_nodes", "data.root", "data.in_memory"),
    *("model.real_chunk_size", "model.batch_classes", "keep_freed_memory", "compile", "tf32", "evaluation.cache"),
    *("checkpoint.every_n", "checkpoint.last_every_seconds", "trainer.enable_progress_bar", "trainer.logger.save_dir"),
)
"""Flags that may differ between two runs of one cell."""


_OF_THE_CELL = ("model.network", "model.ipc", "model.distance", "evaluation.networks", "data.class_path")


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:<9} {what}" for name, what in TABLES.items())
    parser = OneSentenceParser(
        prog="dc-lightning reproduce",
        description="Runs the cells of a table of the paper that are not there yet; stop it and start it as you like.",
        epilog=f"tables:\n{names}\n\nAny flag of `dc-lightning fit`, such as --data.root or --trainer.max_epochs, goes "
        "to every cell, and into its results.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("table", choices=list(TABLES), metavar="TABLE", help="see below")
    parser.add_argument("--datasets", nargs="+", help="these in place of the table's")
    parser.add_argument("--ipc", nargs="+", type=int, help="images per class, in place of the table's")
    parser.add_argument("--rows", nargs="+", help="these rows alone: methods in table 1, condensing networks elsewhere")
    parser.add_argument("--experiments", type=int, default=5, help="synthetic sets a cell, seeds 0.. (paper: 5)")
    parser.add_argument("--output", type=Path, default=Path("lightning_logs/reproduce"), help="one folder a cell below")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and the time that each would need")
    return parser


def _overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """Flags of a fit in the order given: ``--key value`` or ``--key=value``, without the dashes."""
    found: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not re.fullmatch(r"--[a-z_]+\.[\w.]+|--config|--keep_freed_memory|--compile|--tf32", key):
            raise InputError(
                f"Unknown word '{word}': expected an option of reproduce (--help lists them), or a flag of fit such as "
                "--trainer.max_epochs 100."
            )
        if not equals and (not rest or rest[0].startswith("--")):
            raise InputError(f"{key} needs a value.")
        name = key[2:].replace(".init_args.", ".")
        if name in _OF_THE_CELL or name.startswith("trainer.logger"):
            raise InputError(f"{key} is decided by the cells; choose them by --datasets, --ipc and --rows.")
        found.append((key[2:], value if equals else rest.pop(0)))
        if key == "--config" and not Path(found[-1][1]).is_file():
            raise InputError(f"There is no configuration file '{found[-1][1]}'.")
    return found


def _select_cells(options: argparse.Namespace) -> list[Cell]:
    for count in options.ipc or []:
        if count < 1:
            raise InputError(f"--ipc must be at least 1 (synthetic images per class), got {count}.")
    if options.experiments < 1:
        raise InputError(f"--experiments must be at least 1, got {options.experiments}.")
    unknown = [name for name in options.datasets or [] if name not in SHAPES and "." not in name]
    if unknown:
        raise InputError(f"Unknown dataset {', '.join(unknown)}: expected any of {', '.join(DATASETS)}, Digits.")
    found = cells(options.table, options.datasets, options.ipc)
    rows = list(dict.fromkeys(cell.row for cell in found))
    unknown = [row for row in options.rows or [] if row not in rows]
    if unknown:
        raise InputError(
            f"Unknown row {', '.join(unknown)} of {options.table}: expected any of {', '.join(rows)} (random images "
            "stand beside DC, the whole set beside all)."
        )
    return [cell for cell in found if not options.rows or cell.row in options.rows]


def _command(cell: Cell, seed: int, output: Path, overrides: Sequence[tuple[str, str]]) -> list[str]:
    """The words that run one experiment of a cell, after ``dc-lightning``."""
    settings = {
        "data": cell.dataset,
        "model.network": cell.network,
        "model.ipc": str(cell.ipc),
        "evaluation.networks": cell.pool,
        "evaluation.cache": str(output / "whole_set"),
        "trainer.logger.save_dir": str(output),
        "trainer.logger.name": cell.name,
        "trainer.logger.version": f"seed_{seed}",
    }
    if cell.method == "DC":
        settings |= {"model.distance": cell.distance, "model.lr_images": str(cell.lr_images)}
        settings["evaluation.baselines"] = "[random, whole set]"
        if cell.pool not in ("S", "SS"):
            settings["evaluation.every_n"] = "0"  # the paper evaluates on the way for these two alone
    else:
        settings |= {"method": cell.method, "evaluation.features_network": cell.network}
        settings["evaluation.baselines"] = "[whole set]"
    settings["seed_everything"] = str(seed)
    first = [pair for pair in overrides if pair[0] == "config"]  # so that all else refines it
    rest = [pair for pair in overrides if pair[0] != "config"]
    words = [word for key, value in [*first, *settings.items(), *rest] for word in (f"--{key}", value)]
    return ["fit" if cell.method == "DC" else "select", *words]


def _comparable(command: Sequence[str]) -> dict[str, str]:
    """What a command says of the result, with the content of configuration files."""
    found: dict[str, str] = {}
    for word, value in zip(command[1::2], command[2::2], strict=True):
        key = word[2:].replace(".init_args.", ".")
        if key == "config":
            content = hashlib.blake2b(Path(value).read_bytes(), digest_size=6).hexdigest()
            found[key] = f"{found.get(key, '')} {Path(value).name} ({content})".strip()
        elif key not in _MACHINE:
            found[key] = value
    return found


def _run_one(folder: Path, command: Sequence[str], run: Callable[[Sequence[str], Path], int]) -> str | None:
    """Runs one experiment of a cell unless it is there; says what went wrong."""
    if problem := _made_otherwise(folder, command):
        return problem
    if is_finished(folder):
        return None
    write_whole(folder / "command.json", json.dumps(_comparable(command)).encode())
    last = folder / "checkpoints" / "last.ckpt"
    go_on = ["--ckpt_path", str(last)] if command[0] == "fit" and last.is_file() else []
    try:
        code = run([*command, *go_on], folder / "errors.txt")
    except InputError as held:
        return str(held)
    lines = (folder / "errors.txt").read_text(errors="replace").strip().splitlines()
    if code == 0 and is_finished(folder):
        (folder / "errors.txt").unlink()
        return None
    said = [line for line in lines if line.startswith("error:")] or lines[-1:]
    return f"exit code {code}: {said[0] if said else 'no message'}"


def _made_otherwise(folder: Path, command: Sequence[str]) -> str | None:
    note = folder / "command.json"
    if not note.is_file():
        return None
    try:
        before, now = dict(json.loads(note.read_text())), _comparable(command)
    except (ValueError, TypeError):
        return f"'{note}' is damaged; remove the folder"
    keys = sorted(key for key in before | now if before.get(key) != now.get(key))
    if not keys:
        return None
    differing = ", ".join(f"{key} was {before.get(key, 'not given')}, is {now.get(key, 'not given')}" for key in keys)
    return f"it was begun with other settings ({differing}); give another --output, or remove '{folder}'"


def is_finished(folder: Path) -> bool:
    """Whether the folder has whole results: they are written last, and at once."""
    try:
        read_results(folder / "results.json")
    except (InputError, FileNotFoundError):
        return False
    return True


class _Stopped(BaseException):
    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def _subprocess(command: Sequence[str], errors: Path) -> int:
    """Runs ``dc-lightning`` in a session of its own; a signal goes on to it once, and is waited for, so that it saves.

    The lock of the cell is handed on: should this process be killed, nothing else starts the cell while that runs.
    """
    stopped: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(signum: int, frame: FrameType | None) -> None:
        stopped.append(signum)
        if process is not None and process.poll() is None:
            process.send_signal(signum)

    with _lock(errors.parent) as lock, errors.open("wb") as file:
        old = {signum: signal.signal(signum, forward) for signum in _SIGNALS}
        try:
            words = [sys.executable, "-m", "dc_lightning", *command]
            process = subprocess.Popen(words, stderr=file, start_new_session=True, pass_fds=[lock])
            if stopped:
                process.send_signal(stopped[0])
            code = process.wait()
        finally:
            for signum, handler in old.items():
                signal.signal(signum, handler)
    if stopped:
        raise _Stopped(stopped[0])
    return code


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Holds the cell for this process and its child.

    Raises:
        InputError: if another has it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise InputError(f"another process is at work on it, see '{folder}'") from held
        yield file.fileno()


def main(words: Sequence[str]) -> int:
    """Runs ``dc-lightning reproduce``.

    Args:
        words: after ``reproduce``.

    Returns:
        The exit code: 0 if all cells are there, 1 if one failed, 128 and the number of a signal that ended it.

    Raises:
        InputError: for an unknown table, dataset, row or flag; names the valid ones.
    """
    options, rest = _parser().parse_known_args(words)
    overrides, chosen, console = _overrides(rest), _select_cells(options), Console(soft_wrap=True)
    if options.dry_run:
        _print_estimates(chosen, options, overrides)
        return 0
    jobs = [(cell, seed) for cell in chosen for seed in range(options.experiments)]
    failed: list[str] = []
    for number, (cell, seed) in enumerate(jobs, 1):
        title = f"{cell.name}, seed {seed}"
        folder = options.output / cell.name / f"seed_{seed}"
        command = _command(cell, seed, options.output, overrides)
        try:
            there = is_finished(folder) and not _made_otherwise(folder, command)
            console.print(f"[{number}/{len(jobs)}] {title}{': is there' if there else ''}", markup=False)
            problem = _run_one(folder, command, _subprocess)
        except _Stopped as stop:
            return _say_stopped(stop.signum, failed)
        except KeyboardInterrupt:
            return _say_stopped(signal.SIGINT, failed)
        except OSError as error:
            problem = f"'{error.filename}' cannot be read or written ({error.strerror})"
        if problem:
            failed.append(f"{title}: {problem}")
            print(f"error: {failed[-1]}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(jobs)} failed:\n  " + "\n  ".join(failed), file=sys.stderr)
    console.print(f"{len(jobs) - len(failed)} of {len(jobs)} are in {options.output}", markup=False)
    return 1 if failed else 0


def _say_stopped(signum: int, failed: Sequence[str]) -> int:
    if failed:
        print(f"{len(failed)} failed so far:\n  " + "\n  ".join(failed), file=sys.stderr)
    print(f"Stopped by {signal.Signals(signum).name}; the same command goes on where it was.", file=sys.stderr)
    return 128 + signum


def _print_estimates(chosen: Sequence[Cell], options: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> None:
    table = Table(title=f"{options.table}: {TABLES[options.table]}")
    for name in ("cell", "there", "hours each", "hours left"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    total, settings = 0.0, _settings(overrides)
    if settings.get("keep_freed_memory", "true").lower() != "false":
        keep_freed_memory()
    on_gpu = torch.cuda.is_available() and settings.get("trainer.accelerator") != "cpu"
    clock = Clock(torch.device("cuda" if on_gpu else "cpu"))
    trained: set[object] = set()  # the networks of the whole set are kept: the first that needs one pays
    for cell in chosen:
        done = 0
        for seed in range(options.experiments):
            folder = options.output / cell.name / f"seed_{seed}"
            command = _command(cell, seed, options.output, overrides)
            done += is_finished(folder) and not _made_otherwise(folder, command)
        if cell.dataset not in SHAPES:
            table.add_row(cell.name, f"{done}/{options.experiments}", "", "")
            continue
        hours = clock.seconds(cell, settings) / 3600
        left = hours * (options.experiments - done)
        for network in [cell.network] * (cell.method != "DC") + pool(cell.pool, cell.network):
            if (cell.dataset, network) not in trained and isinstance(network, str):
                trained.add((cell.dataset, network))
                once = clock.whole_set_seconds(network, cell.dataset, settings) / 3600
                hours, left = hours + once, left + once * (done < options.experiments)
        total += left
        table.add_row(cell.name, f"{done}/{options.experiments}", f"{hours:.2f}", f"{left:.2f}")
    table.add_section()
    table.add_row("all", "", "", f"{total:.2f}")
    table.caption = "from a few steps measured on this machine, one process; others at work make it longer"
    Console().print(table)


def _settings(overrides: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Flags and the content of configuration files, by dotted names without ``init_args``."""
    found: dict[str, str] = {}

    def note(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                note(f"{name}.{key}" if name else str(key), inner)
        elif value is not None:
            found[name.replace(".init_args.", ".")] = str(value)

    for key, value in overrides:
        if key == "config":
            try:
                note("", yaml.safe_load(Path(value).read_text()))
            except yaml.YAMLError as error:
                raise InputError(f"'{value}' is no YAML file: {' '.join(str(error).split())}") from error
    for key, value in overrides:
        if key != "config":
            note(key, value)
    return found


def _number(overrides: dict[str, str], key: str, default: int) -> int:
    try:
        return int(overrides.get(key, default))
    except ValueError as error:
        raise InputError(f"--{key} must be an integer, got {overrides[key]}.") from error


class Clock:
    """Measures a few steps of every part of a cell, each once.

    Args:
        device: that the runs will use.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known: dict[object, float] = {}

    def _time(self, key: object, step: Callable[[], object], repeats: int = 2) -> float:
        if key not in self._known:
            step()
            begun = self._now()
            for _ in range(repeats):
                step()
            self._known[key] = (self._now() - begun) / repeats
        return self._known[key]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _network(self, name: str, dataset: str) -> tuple[nn.Module, Callable[[int], Tensor]]:
        channels, classes, size, _, _ = SHAPES[dataset]
        network = make_network(name, channels, classes, size, seed=0).to(self.device)
        return network, lambda count: torch.randn(count, channels, *size, device=self.device)

    def seconds(self, cell: Cell, overrides: dict[str, str]) -> float:
        """Estimated time of one experiment of a cell, evaluation included.

        Args:
            cell: of `SHAPES`' datasets.
            overrides: flags of the fit.
        """
        _, classes, _, _, test_count = SHAPES[cell.dataset]
        images = classes * cell.ipc
        networks = _number(overrides, "evaluation.num_networks", 20)
        augmented = cell.dataset == "MNIST"
        default = 1000 if augmented else 300
        epochs = _number(overrides, f"evaluation.recipe.epochs{'_augmented' if augmented else ''}", default) + 1
        scored = sum(
            epochs * self._training(name, cell.dataset, images) + self._test(name, cell.dataset) * test_count / 256
            for name in pool(cell.pool, cell.network)
            if isinstance(name, str)
        )
        if cell.method != "DC":
            return networks * scored
        iterations = _number(overrides, "trainer.max_epochs", 1000)
        every = _number(overrides, "evaluation.every_n", 500 if cell.pool in ("S", "SS") else 0)
        evaluations = 2 + (-(-iterations // every) if every else 0)  # of random images too
        steps, inner = default_loops(cell.ipc)
        steps = _number(overrides, "model.outer_steps", steps)
        inner = _number(overrides, "model.inner_epochs", inner)
        real = _number(overrides, "data.batch_real", 256)
        matching = classes * self._matching(cell.network, cell.dataset, real, cell.ipc)
        training = inner * self._training(cell.network, cell.dataset, images)
        return iterations * (steps * matching + (steps - 1) * training) + evaluations * networks * scored

    def whole_set_seconds(self, network: str, dataset: str, overrides: dict[str, str]) -> float:
        """Estimated time of one network on the whole set: the upper bound, and what selections start from."""
        epochs = _number(overrides, "evaluation.whole_set_epochs", 20)
        return epochs * self._training(network, dataset, SHAPES[dataset][3])

    def _matching(self, name: str, dataset: str, real: int, ipc: int) -> float:
        network, noise = self._network(name, dataset)
        network.eval()
        first, second = noise(real), noise(ipc)
        return self._time(
            ("match", name, dataset, real, ipc),
            lambda: match_class(
                network, first, second, 0, layerwise_cosine, real_chunk_size=default_chunk_size(self.device)
            ),
        )

    def _training(self, name: str, dataset: str, count: int) -> float:
        """One epoch over so many images."""
        network, noise = self._network(name, dataset)
        batch = noise(min(count, 256))
        labels = torch.zeros(len(batch), dtype=torch.int64, device=self.device)
        step = self._time(
            ("train", name, dataset, len(batch)), lambda: cross_entropy(network(batch), labels).backward()
        )
        return step * count / len(batch)

    def _test(self, name: str, dataset: str) -> float:
        network, noise = self._network(name, dataset)
        batch = noise(256)
        with torch.no_grad():
            return self._time(("test", name, dataset), lambda: network(batch))
