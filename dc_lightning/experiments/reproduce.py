"""``dc-lightning reproduce TABLE``: runs the cells of a table that are not there yet, each as a fit of its own."""

import argparse
import fcntl
import hashlib
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from dc_lightning import data
from dc_lightning.errors import InputError, OneSentenceParser, require_at_least, require_known, suggestion
from dc_lightning.experiments.paper import DATASETS, TABLES, Cell, cells
from dc_lightning.experiments.presets import METHODS
from dc_lightning.files import configuration_file, expanded_path, shipped, write_whole
from dc_lightning.run.results import read_results

_MACHINE = set(
    "checkpoint.every_n checkpoint.last_every_seconds compile cuda_graphs threads data.in_memory data.root "
    "evaluation.cache keep_freed_memory model.real_chunk_size trainer.accelerator trainer.devices trainer.num_nodes "
    "trainer.enable_progress_bar trainer.logger.save_dir trainer.strategy".split()
)
"""Flags that may differ between two runs of one cell."""

_OPTIONS = [f"--{name}" for name in "method datasets ipc rows experiments output dry-run estimate".split()]
_FLAGS = [f"--{name}" for name in "config model keep_freed_memory compile cuda_graphs threads".split()]  # without a dot
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_OF_THE_CELL = {"model.network", "model.ipc", "model.distance", "evaluation.networks", "data", "data.class_path"}


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:<9} {what}" for name, what in TABLES.items())
    parser = OneSentenceParser(
        prog="dc-lightning reproduce",
        description="Runs the cells of a table that are not there yet; stop it and start it as you like.",
        epilog=f"tables:\n{names}\n\nAny flag of `dc-lightning fit`, such as --data.root or --trainer.max_epochs, goes "
        "to every cell, and into its results.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("table", metavar="TABLE", help="see below")
    add("--method", default="dc", help=f"that condenses: {', '.join(METHODS)}, or a YAML file that names another")
    add("--datasets", nargs="+", help="these in place of the table's")
    add("--ipc", nargs="+", type=int, help="images per class, in place of the table's")
    add("--rows", nargs="+", help="these rows alone: methods in table 1, condensing networks elsewhere")
    add("--experiments", type=int, default=5, help="synthetic sets a cell, seeds 0.. (paper: 5)")
    add("--output", type=expanded_path, default=Path("lightning_logs/reproduce"), help="one folder a cell below")
    add("--dry-run", action="store_true", help="list the cells, and make sure that they could run")
    add("--estimate", action="store_true", help="list the cells and their hours, by the best of three iterations")
    return parser


def _overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """Flags of a fit in the order given: ``--key value`` or ``--key=value``, without the dashes."""
    found: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if key not in _FLAGS and not re.fullmatch(r"--[a-z_]+\.[\w.]+", key):
            raise InputError(
                f"Unknown word '{word}': expected an option of reproduce (--help lists them), or a flag of fit such as "
                f"--trainer.max_epochs 100.{suggestion(key, (*_OPTIONS, *_FLAGS))}"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{key} needs a value.")
            value = rest.pop(0)
        name = key[2:].replace(".init_args.", ".")
        if name in _OF_THE_CELL or name.startswith("trainer.logger"):
            raise InputError(f"{key} is decided by the cells; choose them by --datasets, --ipc and --rows.")
        if name in ("model", "model.class_path"):
            raise InputError(f"{key} is decided by --method; write a YAML file that names your class, and give that.")
        if name == "config":
            value = configuration_file(value)
            if not Path(value).is_file():
                raise InputError(f"There is no configuration file '{value}'.")
        found.append((key[2:], value))
    return found


def _method_file(method: str) -> Path:
    """The YAML of a method."""
    if method not in METHODS and Path(method).is_file():
        return Path(method)
    require_known("method", method, METHODS, ", or a YAML file that names the class of another")
    return shipped(f"methods/{method}.yaml")


def _select_cells(options: argparse.Namespace) -> list[Cell]:
    if (least := min(options.ipc or [1])) < 1:
        raise InputError(f"--ipc must be at least 1 (synthetic images per class), got {least}.")
    require_at_least("--", experiments=(options.experiments, 1))
    require_known("table", options.table, TABLES)
    _method_file(options.method)
    ours = [name for name in options.datasets or [] if not hasattr(data, name) and "." not in name]
    require_known("dataset", ours, [*DATASETS, "Digits"])
    found = cells(options.table, options.method, options.datasets, options.ipc)
    rows = list(dict.fromkeys(cell.row for cell in found))
    wanted = [options.method if row.upper() == options.method.upper() else row for row in options.rows or []]
    stand = " (random images stand beside the method, the whole set beside all)"
    require_known(f"row of {options.table}", wanted, rows, stand)
    return [cell for cell in found if not wanted or cell.row in wanted]


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


@dataclass(frozen=True)
class _Run:
    """One experiment of a cell."""

    cell: Cell
    seed: int
    output: Path
    overrides: Sequence[tuple[str, str]]

    @property
    def folder(self) -> Path:
        return self.output / self.cell.name / f"seed_{self.seed}"

    @property
    def command(self) -> list[str]:
        """What follows ``dc-lightning``."""
        cell = self.cell
        settings = {
            "data": cell.dataset,
            "model.network": cell.network,
            "model.ipc": str(cell.ipc),
            "evaluation.networks": cell.pool,
            "evaluation.cache": str(self.output / "whole_set"),
            "trainer.logger.save_dir": str(self.output),
            "trainer.logger.name": cell.name,
            "trainer.logger.version": f"seed_{self.seed}",
            "evaluation.baselines": "[whole set]" if cell.is_selection else "[random, whole set]",
            "seed_everything": str(self.seed),
        }
        configurations = [pair for pair in self.overrides if pair[0] == "config"]  # first: all else refines them
        rest = [pair for pair in self.overrides if pair[0] != "config"]
        if cell.is_selection:
            settings |= {"method": cell.method, "evaluation.features_network": cell.network}
        else:
            configurations.insert(0, ("config", str(_method_file(cell.method))))
            if cell.distance != "ours":
                settings["model.distance"] = cell.distance
            if cell.pool not in ("S", "SS"):
                settings["evaluation.every_n"] = "0"  # the paper evaluates on the way for these two alone
        words = [word for key, value in [*configurations, *settings.items(), *rest] for word in (f"--{key}", value)]
        return ["select" if cell.is_selection else "fit", *words]

    def is_there(self) -> bool:
        """Whether it has ended, and with these settings."""
        return is_finished(self.folder) and not self.made_otherwise()

    def made_otherwise(self) -> str:
        """What is said where the folder is that of other settings, else nothing."""
        note = self.folder / "command.json"
        if not note.is_file():
            return ""
        try:
            before, now = dict(json.loads(note.read_text())), _comparable(self.command)
        except (ValueError, TypeError):
            return f"'{note}' is damaged; remove the folder"
        keys = sorted(key for key in before | now if before.get(key) != now.get(key))
        given = [f"{key} was {before.get(key, 'not given')}, is {now.get(key, 'not given')}" for key in keys]
        started = f"it was started with other settings ({', '.join(given)})"
        return f"{started}; give another --output, or remove '{self.folder}'" if keys else ""

    def complete(self) -> str:
        """Runs it, or resumes it; says what went wrong, or nothing."""
        if problem := self.made_otherwise():
            return problem
        write_whole(self.folder / "command.json", json.dumps(_comparable(self.command)).encode())
        last, errors = self.folder / "checkpoints" / "last.ckpt", self.folder / "errors.txt"
        resume = ["--ckpt_path", str(last)] if self.command[0] == "fit" and last.is_file() else []
        try:
            code = _subprocess([*self.command, *resume], errors)
        except InputError as held:
            return str(held)
        lines = errors.read_text(errors="replace").strip().splitlines()
        if code == 0 and is_finished(self.folder):
            errors.unlink()
            return ""
        said = [line for line in lines if line.startswith("error:")] or lines[-1:] or ["no message"]
        return f"exit code {code}: {said[0]}"


def is_finished(folder: Path) -> bool:
    """Whether the folder has whole results: they are written last, and at once."""
    try:
        read_results(folder / "results.json")
    except (InputError, FileNotFoundError):
        return False
    return True


def _subprocess(command: Sequence[str], errors: Path) -> int:
    """Runs ``dc-lightning`` in its own process group; forwards each signal and waits, so that the run can save.

    The lock of the cell is handed on: should this process be killed, nothing else starts the cell while that runs.

    Raises:
        InputError: if another process has the lock.
        KeyboardInterrupt: with the number of a signal that came.
    """
    stopped: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(signum: int, frame: FrameType | None) -> None:
        stopped.append(signum)
        if process is not None:
            process.send_signal(signum)

    with (errors.parent / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise InputError(f"another process is at work on it, see '{errors.parent}'") from held
        old = {signum: signal.signal(signum, forward) for signum in _SIGNALS}
        try:
            words = [sys.executable, "-m", "dc_lightning", *command]
            with errors.open("wb") as file:
                process = subprocess.Popen(words, stderr=file, start_new_session=True, pass_fds=[lock.fileno()])
            if stopped:
                process.send_signal(stopped[0])
            code = process.wait()
        finally:
            for signum, handler in old.items():
                signal.signal(signum, handler)
    if stopped:
        raise KeyboardInterrupt(stopped[0])
    return code


Parse = Callable[[Sequence[str]], dict[str, Any]]
"""Gives the configuration that the words of a fit come to, or raises `InputError`."""


def main(words: Sequence[str], parse: Parse) -> int:
    """Runs ``dc-lightning reproduce`` with these words.

    Returns:
        The exit code: 0 if all cells are there, 1 if one failed, 128 and the number of a signal that ended it.

    Raises:
        InputError: for an unknown table, dataset, row or flag; names the valid ones.
    """
    options, rest = _parser().parse_known_args(words)
    overrides, chosen, console = _overrides(rest), _select_cells(options), Console(soft_wrap=True)
    seeds = range(options.experiments)
    by_cell = {cell: [_Run(cell, seed, options.output, overrides) for seed in seeds] for cell in chosen}
    for cell in {cell.is_selection: cell for cell in chosen}.values():
        parse(by_cell[cell][0].command)
    if options.dry_run or options.estimate:
        _print_cells(f"{options.table}: {TABLES[options.table]}", by_cell, parse if options.estimate else None)
        return 0
    runs = [run for each in by_cell.values() for run in each]
    failed: list[str] = []
    for number, run in enumerate(runs, 1):
        title = f"{run.cell.name}, seed {run.seed}"
        try:
            there = run.is_there()
            console.print(f"[{number}/{len(runs)}] {title}{': is there' if there else ''}", markup=False)
            problem = "" if there else run.complete()
        except KeyboardInterrupt as stop:
            if failed:
                print(f"{len(failed)} failed so far:\n  " + "\n  ".join(failed), file=sys.stderr)
            signum = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
            print(f"Stopped by {signum.name}; the same command continues where it was.", file=sys.stderr)
            return 128 + signum
        except OSError as error:
            problem = f"'{error.filename}' cannot be read or written ({error.strerror})"
        if problem:
            failed.append(f"{title}: {problem}")
            print(f"error: {failed[-1]}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(runs)} failed:\n  " + "\n  ".join(failed), file=sys.stderr)
    console.print(f"{len(runs) - len(failed)} of {len(runs)} are in {options.output}", markup=False)
    return 1 if failed else 0


def _print_cells(title: str, by_cell: Mapping[Cell, Sequence[_Run]], parse: Parse | None) -> None:
    """Prints the cells, with their hours if there is a ``parse`` to estimate them by."""
    table = Table("cell", title=title)
    for name in ("there", "hours each", "hours left") if parse else ("there",):
        table.add_column(name, justify="right")
    total = 0.0
    for cell, runs in by_cell.items():
        done = sum(run.is_there() for run in runs)
        row = [cell.name, f"{done}/{len(runs)}"]
        if parse:
            hours = _estimated_hours(runs[0].command, parse)
            total += hours * (len(runs) - done)
            row += [f"{hours:.2f}", f"{hours * (len(runs) - done):.2f}"]
        table.add_row(*row)
    if parse:
        table.add_section()
        table.add_row("all", "", "", f"{total:.2f}")
        table.caption = "from three timed iterations and one network here; networks on the whole set not counted"
    Console().print(table)


def _estimated_hours(command: Sequence[str], parse: Parse) -> float:
    """Time of a cell on this machine, from its own command with four iterations, one network and no baselines.

    The first iteration is left out, and the least of the others taken, as other processes may have been at work.

    Raises:
        InputError: if that fails; says what it said.
    """
    short = "--trainer.max_epochs 4 --evaluation.num_networks 1 --evaluation.every_n 0 --evaluation.baselines [] "
    short += "--evaluation.choose_iteration false --trainer.logger.save_dir"
    if command[0] == "select":
        command = [*command, "--method", "random"]
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "dc_lightning", *command, *short.split(), folder]
        ended = subprocess.run(call, capture_output=True, text=True)
        found = list(Path(folder).rglob("results.json"))
        if ended.returncode or not found:
            raise InputError(f"The cell cannot be timed: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}")
        trial = read_results(found[0])
    configuration = parse(command)
    networks = configuration["evaluation"]["num_networks"] * (trial["seconds"] - trial["seconds_condensing"])
    if command[0] == "select":
        return float(networks) / 3600
    iterations, every = configuration["trainer"]["max_epochs"], configuration["evaluation"]["every_n"]
    evaluations = 2 + (-(-iterations // every) if every else 0)  # of random images too
    evaluations += configuration["evaluation"]["choose_iteration"]  # the chosen images once more
    return float(iterations * trial["least_seconds_per_iteration"] + evaluations * networks) / 3600
