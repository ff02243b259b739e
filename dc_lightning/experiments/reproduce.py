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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from dc_lightning import data
from dc_lightning.errors import InputError, OneSentenceParser, suggestion
from dc_lightning.experiments.paper import DATASETS, TABLES, Cell, cells
from dc_lightning.experiments.presets import METHODS
from dc_lightning.files import configuration_file, expanded_path, shipped, write_whole
from dc_lightning.run.results import read_results

_MACHINE = {
    "checkpoint.every_n",
    "checkpoint.last_every_seconds",
    "compile",
    "threads",
    "data.in_memory",
    "data.root",
    "evaluation.cache",
    "keep_freed_memory",
    "model.real_chunk_size",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.enable_progress_bar",
    "trainer.logger.save_dir",
    "trainer.num_nodes",
    "trainer.strategy",
}
"""Flags that may differ between two runs of one cell."""

_OPTIONS = [f"--{name}" for name in "method datasets ipc rows experiments output dry-run estimate config".split()]
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
    parser.add_argument("table", metavar="TABLE", help="see below")
    parser.add_argument(
        "--method", default="dc", help=f"that condenses: {', '.join(METHODS)}, or a YAML file that names another"
    )
    parser.add_argument("--datasets", nargs="+", help="these in place of the table's")
    parser.add_argument("--ipc", nargs="+", type=int, help="images per class, in place of the table's")
    parser.add_argument("--rows", nargs="+", help="these rows alone: methods in table 1, condensing networks elsewhere")
    parser.add_argument("--experiments", type=int, default=5, help="synthetic sets a cell, seeds 0.. (paper: 5)")
    parser.add_argument(
        "--output", type=expanded_path, default=Path("lightning_logs/reproduce"), help="one folder a cell below"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the cells, and make sure that they could run")
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="list the cells and their hours, by the least of three iterations of each",
    )
    return parser


def _overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """Flags of a fit in the order given: ``--key value`` or ``--key=value``, without the dashes."""
    found: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not re.fullmatch(r"--[a-z_]+\.[\w.]+|--config|--model|--keep_freed_memory|--compile|--threads", key):
            raise InputError(
                f"Unknown word '{word}': expected an option of reproduce (--help lists them), or a flag of fit such as "
                f"--trainer.max_epochs 100.{suggestion(key, _OPTIONS)}"
            )
        if not equals and (not rest or rest[0].startswith("--")):
            raise InputError(f"{key} needs a value.")
        name = key[2:].replace(".init_args.", ".")
        if name in _OF_THE_CELL or name.startswith("trainer.logger"):
            raise InputError(f"{key} is decided by the cells; choose them by --datasets, --ipc and --rows.")
        if name in ("model", "model.class_path"):
            raise InputError(f"{key} is decided by --method; write a YAML file that names your class, and give that.")
        found.append((key[2:], value if equals else rest.pop(0)))
        if key == "--config":
            found[-1] = ("config", configuration_file(found[-1][1]))
            if not Path(found[-1][1]).is_file():
                raise InputError(f"There is no configuration file '{found[-1][1]}'.")
    return found


def _method_file(method: str) -> Path:
    """The YAML of a method."""
    if method in METHODS:
        return shipped(f"methods/{method}.yaml")
    if not Path(method).is_file():
        raise InputError(
            f"Unknown method '{method}': expected one of {', '.join(METHODS)}, or a YAML file that names the class of "
            f"another.{suggestion(method, METHODS)}"
        )
    return Path(method)


def _select_cells(options: argparse.Namespace) -> list[Cell]:
    for count in options.ipc or []:
        if count < 1:
            raise InputError(f"--ipc must be at least 1 (synthetic images per class), got {count}.")
    if options.experiments < 1:
        raise InputError(f"--experiments must be at least 1, got {options.experiments}.")
    if options.table not in TABLES:
        raise InputError(
            f"Unknown table '{options.table}': expected one of {', '.join(TABLES)}.{suggestion(options.table, TABLES)}"
        )
    _method_file(options.method)
    known = [*DATASETS, "Digits"]
    unknown = [name for name in options.datasets or [] if not hasattr(data, name) and "." not in name]
    if unknown:
        raise InputError(
            f"Unknown dataset {', '.join(unknown)}: expected any of {', '.join(known)}." + suggestion(unknown[0], known)
        )
    found = cells(options.table, options.method, options.datasets, options.ipc)
    rows = list(dict.fromkeys(cell.row for cell in found))
    wanted = [options.method if row.upper() == options.method.upper() else row for row in options.rows or []]
    unknown = [row for row in wanted if row not in rows]
    if unknown:
        raise InputError(
            f"Unknown row {', '.join(unknown)} of {options.table}: expected any of {', '.join(rows)} (random images "
            f"stand beside the method, the whole set beside all).{suggestion(unknown[0], rows)}"
        )
    return [cell for cell in found if not wanted or cell.row in wanted]


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
    if cell.is_selection:
        settings |= {"method": cell.method, "evaluation.features_network": cell.network}
        settings["evaluation.baselines"] = "[whole set]"
    else:
        settings["evaluation.baselines"] = "[random, whole set]"
        if cell.distance != "ours":
            settings["model.distance"] = cell.distance
        if cell.pool not in ("S", "SS"):
            settings["evaluation.every_n"] = "0"  # the paper evaluates on the way for these two alone
    settings["seed_everything"] = str(seed)
    first = [] if cell.is_selection else [("config", str(_method_file(cell.method)))]
    first += [pair for pair in overrides if pair[0] == "config"]  # so that all else refines it
    rest = [pair for pair in overrides if pair[0] != "config"]
    words = [word for key, value in [*first, *settings.items(), *rest] for word in (f"--{key}", value)]
    return ["select" if cell.is_selection else "fit", *words]


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
    resume = ["--ckpt_path", str(last)] if command[0] == "fit" and last.is_file() else []
    try:
        code = run([*command, *resume], folder / "errors.txt")
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
    return f"it was started with other settings ({differing}); give another --output, or remove '{folder}'"


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
    """Runs ``dc-lightning`` in its own process group; forwards each signal and waits, so that the run can save.

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


Parse = Callable[[Sequence[str]], dict[str, Any]]
"""Gives the configuration that the words of a fit come to, or raises `InputError`."""


def main(words: Sequence[str], parse: Parse) -> int:
    """Runs ``dc-lightning reproduce``.

    Args:
        words: after ``reproduce``.
        parse: see `Parse`.

    Returns:
        The exit code: 0 if all cells are there, 1 if one failed, 128 and the number of a signal that ended it.

    Raises:
        InputError: for an unknown table, dataset, row or flag; names the valid ones.
    """
    options, rest = _parser().parse_known_args(words)
    overrides, chosen, console = _overrides(rest), _select_cells(options), Console(soft_wrap=True)
    for cell in {cell.is_selection: cell for cell in chosen}.values():
        parse(_command(cell, 0, options.output, overrides))
    if options.dry_run or options.estimate:
        _print_cells(chosen, options, overrides, parse)
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
    print(f"Stopped by {signal.Signals(signum).name}; the same command continues where it was.", file=sys.stderr)
    return 128 + signum


def _print_cells(
    chosen: Sequence[Cell], options: argparse.Namespace, overrides: Sequence[tuple[str, str]], parse: Parse
) -> None:
    table = Table(title=f"{options.table}: {TABLES[options.table]}")
    table.add_column("cell")
    table.add_column("there", justify="right")
    if options.estimate:
        table.add_column("hours each", justify="right")
        table.add_column("hours left", justify="right")
        table.caption = (
            "from three timed iterations and one network on this machine; networks on the whole set not counted"
        )
    total = 0.0
    for cell in chosen:
        done = 0
        for seed in range(options.experiments):
            folder = options.output / cell.name / f"seed_{seed}"
            command = _command(cell, seed, options.output, overrides)
            done += is_finished(folder) and not _made_otherwise(folder, command)
        row = [cell.name, f"{done}/{options.experiments}"]
        if options.estimate:
            hours = _estimated_hours(_command(cell, 0, options.output, overrides), parse)
            total += hours * (options.experiments - done)
            row += [f"{hours:.2f}", f"{hours * (options.experiments - done):.2f}"]
        table.add_row(*row)
    if options.estimate:
        table.add_section()
        table.add_row("all", "", "", f"{total:.2f}")
    Console().print(table)


def _estimated_hours(command: Sequence[str], parse: Parse) -> float:
    """Time of a cell on this machine, from its own command with four iterations, one network and no baselines.

    The first iteration is left out, and the least of the others taken, as other processes may have been at work.

    Raises:
        InputError: if that fails; says what it said.
    """
    short = {"trainer.max_epochs": "4", "evaluation.num_networks": "1", "evaluation.every_n": "0"}
    short["evaluation.choose_iteration"] = "false"
    if command[0] == "select":
        command = ["select", *command[1:], "--method", "random"]
    with tempfile.TemporaryDirectory() as folder:
        short |= {"evaluation.baselines": "[]", "trainer.logger.save_dir": folder}
        words = [word for key, value in short.items() for word in (f"--{key}", value)]
        call = [sys.executable, "-m", "dc_lightning", *command, *words]
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
