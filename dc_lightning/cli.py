"""The command line: ``dc-lightning`` with one function a command, on LightningCLI."""

import errno
import inspect
import io
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, cast, get_args

import docstring_parser
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.nn import Parameter

from dc_lightning import data, methods
from dc_lightning.compilation import compile_networks, replay_graphs
from dc_lightning.data import CondensationDataModule
from dc_lightning.data.folder import ImageFiles
from dc_lightning.errors import InputError, OneSentenceParser, suggestion
from dc_lightning.evaluation.selection import Method
from dc_lightning.experiments.architecture_search import Space
from dc_lightning.experiments.commands import ExperimentTrainer
from dc_lightning.experiments.continual import Protocol
from dc_lightning.files import configuration_file, expanded
from dc_lightning.help import COMMANDS, quick_answer
from dc_lightning.methods import Condenser
from dc_lightning.methods.resume import require_checkpoint
from dc_lightning.parts import find
from dc_lightning.run.allocator import keep_freed_memory
from dc_lightning.run.checkpoints import Checkpoints, Interrupted
from dc_lightning.run.evaluation_callback import Baseline, EvaluationCallback, require_writable
from dc_lightning.run.folder import SaveConfiguration, continued_logger, require_free_logger, set_run_folder
from dc_lightning.run.progress import RunProgress, say
from dc_lightning.run.switches import refuse_switches
from dc_lightning.synthetic import export, load_synthetic, ready_sets
from dc_lightning.synthetic.formats import FORMATS
from dc_lightning.synthetic.initial import INITS
from dc_lightning.synthetic.ready import ready_set
from dc_lightning.threads import use_threads

_FORKING = ("ddp_fork", "ddp_notebook")
_DEFAULT_CLASSES = {"model": "CondensationModule", "data": "Digits"}
_NETWORK_OF_DEFAULT_DATA = "ConvNetD2"  # a third block would normalise maps of 2x2 pixels
_ONE_SEED = "Model and evaluation take the seed of the run: give seed_everything instead of a seed of theirs."


class _Parser(LightningArgumentParser):
    """Says what is wrong in one sentence, without the usage of a hundred options before it."""

    messages: ClassVar[list[str]] = []  # those of the parsers within it come first, and say more

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        words = " ".join(message.split())
        inner = [said for said in self.messages if said in words]
        self.messages.append(words)
        if inner:
            raise InputError(f"{message.splitlines()[0]} {inner[-1]}") from ex
        lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
        raise InputError(" ".join(lines if len(message) < 400 else [lines[0], lines[-1]])) from ex


def _wrapped_in(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """What a part of ours said, or a library that is missing, where a parser has wrapped it."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and value of each option of a command line: ``--name value`` or ``--name=value``."""
    for number, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            yield name, value if equals else next(iter(words[number + 1 : number + 2]), "")


def _with_configuration_files(words: Sequence[str]) -> list[str]:
    """``--config`` in its long form, with the path of a file; see `configuration_file`."""
    found: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("-c", "--config"):
            found += ["--config", configuration_file(value)] if equals else ["--config"]
        else:
            found.append(configuration_file(word) if found[-1:] == ["--config"] else word)
    return found


def _configuration_files(words: Sequence[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The configuration files of a command line that can be read; of the others the parser says what is wrong."""
    for name, value in _options(words):
        if name == "config":
            try:
                content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                continue
            if isinstance(content, dict):
                yield Path(value), content


def _with_known_classes(words: list[str]) -> list[str]:
    """Checks that the model and the data are classes that can be imported, and names the default where there is none.

    Where no model is named, and the data are the digits, that has a network for their size.

    A default of the parser's would leave its arguments to another class that is named, whose own defaults would be
    overruled silently.
    """
    missing = []
    for key, module, base in (("model", methods, Condenser), ("data", data, CondensationDataModule)):
        known = {name: part for name, part in vars(module).items() if inspect.isclass(part) and part is not base}
        given: list[Any] = [value for name, value in _options(words) if name in (key, f"{key}.class_path")]
        for _, content in _configuration_files(words):
            part = content.get(key)
            given.append(part.get("class_path") if isinstance(part, dict) else part)
        given = [name for name in given if isinstance(name, str) and name]
        for name in given:
            if not name.startswith("{") and not Path(name).is_file():
                find(key, {other: part for other, part in known.items() if issubclass(part, base)}, name)
        missing += [] if given else [f"--{key}", _DEFAULT_CLASSES[key]]
    if missing[:1] == ["--model"] and {*given} <= {"Digits", "dc_lightning.data.Digits"}:
        missing[2:2] = ["--model.network", _NETWORK_OF_DEFAULT_DATA]  # before the user's words, which overrule it
    return [words[0], *missing, *words[1:]]


def _require_values(words: Sequence[str]) -> None:
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        is_option = word.startswith("--") and "=" not in word and following.startswith("--")
        if is_option and word[2:].rpartition(".")[2] not in ("help", "print_config", "print_shtab"):
            raise InputError(f"{word} needs a value.")


def _refuse_seeds(words: Sequence[str]) -> None:
    """A seed of the model or the evaluation would be overruled silently."""
    if any(name.replace(".init_args", "") in ("model.seed", "evaluation.seed") for name, _ in _options(words)):
        raise InputError(_ONE_SEED)
    for path, content in _configuration_files(words):
        for part in ("model", "evaluation"):
            settings = content.get(part)
            if isinstance(settings, dict) and "seed" in {**settings, **(settings.get("init_args") or {})}:
                raise InputError(f"{_ONE_SEED} It is in '{path}'.")


def _seed(value: int | bool | None) -> int:
    if value is None or isinstance(value, bool) or not 0 <= value < 2**32:
        raise InputError(
            f"seed_everything must be an integer in 0..2**32-1, from which every random draw is derived; got {value}."
        )
    return value


_PATHS = {"root", "path", "cache", "ckpt_path", "default_root_dir", "save_dir", "dir", "dirpath"}
_PATHS |= {"synthetic", "other_recipes", "output", "proxies", "whitening"}


def _expand_paths(config: Namespace) -> None:
    """Replaces ``~`` and ``$VARIABLE`` in every path, once for all that read it."""
    for key, value in list(config.items()):
        is_path = key.rpartition(".")[2] in _PATHS
        if is_path and isinstance(value, str):
            config[key] = expanded(value)
        for place, part in enumerate(value if isinstance(value, list) else []):
            if isinstance(part, Namespace):
                _expand_paths(part)
            elif is_path and isinstance(part, str):
                value[place] = expanded(part)


def _loggers(config: Namespace) -> list[Namespace]:
    """Settings of the loggers; the first one's folder is that of the run."""
    given = config.trainer.logger
    found = given if isinstance(given, list) else [given]
    return [logger for logger in found if isinstance(logger, Namespace)]


def _is_tensorboard(logger: Namespace) -> bool:
    return str(logger.class_path).endswith("TensorBoardLogger")


def _newest_checkpoint(config: Namespace) -> str | None:
    """The ``last.ckpt`` written last below the logger's folder, for ``last`` and ``auto``."""
    folder = Path(config.trainer.default_root_dir or ".")
    for logger in _loggers(config)[:1]:
        own = logger.init_args.as_dict()
        folder = Path(own.get("save_dir") or folder, own.get("name") or "" if _is_tensorboard(logger) else "")
    found = sorted(folder.glob("**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found and config.ckpt_path == "last":
        raise InputError(
            f"There is no checkpoints/last.ckpt below '{folder}' to resume from; give its path, or 'auto', which "
            "starts from the beginning where there is none."
        )
    return str(found[-1]) if found else None


class CondensationCLI(LightningCLI):
    """LightningCLI with the evaluation, the checkpoints and the seed as top-level keys: parses words, and runs them.

    Args:
        words: a command and its options.
        run: False only makes sure that the words are understood.

    Raises:
        InputError: if they are not.
    """

    def __init__(self, words: Sequence[str], run: bool = True) -> None:
        self._only_parse, self._command = not run, "".join(words[:1])
        try:
            super().__init__(
                Condenser,
                CondensationDataModule,
                trainer_class=ExperimentTrainer,
                parser_class=_Parser,
                trainer_defaults={
                    "max_epochs": 1000,
                    "logger": {
                        "class_path": "pytorch_lightning.loggers.TensorBoardLogger",
                        "init_args": {"save_dir": ".", "name": "lightning_logs", "default_hp_metric": False},
                    },
                    "log_every_n_steps": 1,
                    "enable_model_summary": False,
                    "use_distributed_sampler": False,
                },
                seed_everything_default=0,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=SaveConfiguration,
                save_config_kwargs={"overwrite": True},
                auto_configure_optimizers=False,
                args=list(words),
                parser_kwargs={
                    "allow_abbrev": False,  # its subcommands take it from there
                    **{name: {"default_env": False, "allow_abbrev": False} for name in self.subcommands()},
                },
            )
        except InputError as error:
            raise InputError(f"{error}{_suggested_option(words, str(error))}") from error

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Refuses what would be overruled silently, and names the default classes."""
        _Parser.messages.clear()
        words = _with_configuration_files(cast(list[str], args))
        if words[:1] and words[0] in self.subcommands():
            _require_values(words)
            for name, value in _options(words):
                if words[0] == "fit" and name == "ckpt_path" and value not in ("last", "auto", "null"):
                    require_checkpoint(Path(expanded(value)))  # an older one's configuration is not understood
            _refuse_seeds(words)
            words = _with_known_classes(words)
        self.config = parser.parse_args(words)  # LightningCLI's own warns of words that are not those of the process
        _expand_paths(self.config)
        if self._only_parse:
            raise _Parsed(self.config[words[0]].as_dict())

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the keys ``evaluation``, ``checkpoint`` and those of speed, and links the seed."""
        parser.add_lightning_class_args(EvaluationCallback, "evaluation")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        memory = "Let glibc keep freed memory for the next step: faster on the CPU, holds the peak memory."
        compilation = "Compile networks by torch.compile: half a minute at the start of every process, then faster."
        graphs = (
            "Record the work of a step on a GPU once and replay it (CUDA graphs), so that it does not wait for Python."
        )
        threads = "Threads of a process on the CPU: auto takes one for small images, and otherwise PyTorch's."
        parser.add_argument("--keep_freed_memory", type=bool, default=True, help=memory)
        parser.add_argument("--compile", type=bool, default=False, help=compilation)
        parser.add_argument("--cuda_graphs", type=bool, default=False, help=graphs)
        parser.add_argument("--threads", type=PositiveInt | Literal["auto"], default="auto", help=threads)
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "evaluation.seed", compute_fn=_seed)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """What LightningCLI runs by a method of the Trainer; of a command that is given that alone, which is faster."""
        every = {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}
        every |= {name: {"model", "datamodule"} for name in ("evaluate", "select", "continual", "architecture_search")}
        return {self._command: every[self._command]} if self._command in every else every

    def before_instantiate_classes(self) -> None:
        """Sets the allocator before the first tensor, and finds the checkpoint to resume from."""
        config = self.config[self.subcommand]
        refuse_switches(config.trainer, cast(str, self.subcommand).replace("_", "-"))
        if config.keep_freed_memory:
            keep_freed_memory()
        if config.compile and config.trainer.strategy in _FORKING:
            raise InputError(
                f"Networks cannot be compiled in forked processes (trainer.strategy {config.trainer.strategy}), where "
                "PyTorch aborts; take trainer.strategy ddp, or leave the compilation off."
            )
        compile_networks(config.compile)
        replay_graphs(config.cuda_graphs)
        use_threads(config.threads)
        for logger in filter(_is_tensorboard, _loggers(config)):
            if config.trainer.default_root_dir and logger.init_args.save_dir == ".":
                logger.init_args.save_dir = config.trainer.default_root_dir
        config.weights_only = True  # a checkpoint that would run code is refused
        if self.subcommand == "fit" and config.ckpt_path in ("last", "auto"):
            config.ckpt_path = _newest_checkpoint(config)
        self._iteration = 0
        if self.subcommand == "fit" and config.ckpt_path is not None:
            checkpoint = require_checkpoint(Path(config.ckpt_path))
            self._iteration, self._images = checkpoint["curve"][0], checkpoint["state_dict"]["images"]

    def _resume_in_the_same_folder(self, config: Namespace) -> None:
        """Has the run that the checkpoint belongs to continued: its folder, and its curves, which are cut there."""
        checkpoint = Path(config.ckpt_path)
        config.ckpt_path = None  # for the configuration that is saved
        folder = checkpoint.resolve().parent.parent
        if checkpoint.parent.name != "checkpoints":
            return
        set_run_folder(self.trainer, folder)
        first = self.trainer.logger
        if isinstance(first, TensorBoardLogger | CSVLogger):
            given = _loggers(config)[0].init_args
            settings = {**given, "save_dir": str(folder.parent), "name": "", "version": folder.name}
            callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            saver = next(part for part in callbacks if isinstance(part, SaveConfiguration))
            self.trainer.loggers = self.trainer.loggers[1:]
            saver.continued = partial(continued_logger, type(first), settings, self._iteration)

    def _parse_ckpt_path(self) -> None:
        """Leaves the configuration as given: LightningCLI would let the checkpoint's win silently."""

    def instantiate_classes(self) -> None:
        """Makes the parts; a library that one of them needs is named."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            said = _wrapped_in(error, InputError) or _wrapped_in(error, ModuleNotFoundError)
            if said is None:
                raise
            raise InputError(" ".join(str(said).split())) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with a progress bar of ours unless there is another or none; what it refuses is bad input."""
        settings = self.config_init[self.subcommand]["trainer"]
        given = settings["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        if settings["enable_progress_bar"] is not False and not any(isinstance(part, ProgressBar) for part in given):
            settings["callbacks"] = [*given, RunProgress()]
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            raise InputError(" ".join(str(error).split())) from error

    def after_instantiate_classes(self) -> None:
        """Notes the configuration in the results."""
        logger, writes = self.trainer.logger, not getattr(self.trainer, "fast_dev_run", False)
        if self.trainer.is_global_zero and writes:
            require_writable(Path((logger and logger.save_dir) or self.trainer.default_root_dir))
        self._dump_config()
        config = self.config[self.subcommand]
        resume_from = config.ckpt_path if self.subcommand == "fit" else None
        if resume_from is not None:
            self.model.images = Parameter(self._images)  # or it would make some to start from, which takes minutes
            self._resume_in_the_same_folder(config)
        elif writes:
            require_free_logger(self.trainer)
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.sort(key=lambda callback: not isinstance(callback, EvaluationCallback))  # makes the images for others
        for callback in callbacks:
            if isinstance(callback, Checkpoints):
                callback.resume_from = resume_from
            if isinstance(callback, EvaluationCallback):
                callback.configuration = self.config_dump


class _Parsed(Exception):  # noqa: N818 (no error)
    """The words were understood; nothing is to be run."""


def check_words(words: Sequence[str]) -> dict[str, Any]:
    """The configuration that the words of a fit, evaluate or select come to.

    Raises:
        InputError: if they are not understood.
    """
    try:
        CondensationCLI(words, run=False)
    except _Parsed as parsed:
        return cast(dict[str, Any], parsed.args[0])
    raise AssertionError("the words were run")


def _export(words: Sequence[str]) -> int:
    parser = OneSentenceParser(prog="dc-lightning export", description="Writes a set in a form to share it by.")
    parser.add_argument("set", metavar="SET", type=expanded, help="a synthetic.pt, or the name of a set that ships")
    parser.add_argument("path", metavar="PATH", type=expanded, help="a new folder (folder, parquet), or a new file")
    parser.add_argument(
        "--to", default="folder", metavar="FORMAT", help=f"{', '.join(FORMATS)}; folder has PNG files, parquet a card"
    )
    options = parser.parse_args(words)
    sets = load_synthetic(options.set)
    if len(sets) > 1:
        raise InputError(f"'{options.set}' holds {len(sets)} sets; export takes a file of one, such as a synthetic.pt.")
    scores = next((ready.in_words() for ready in ready_sets() if ready.path == Path(options.set)), "")
    if not Path(options.set).exists():
        scores = ready_set(options.set).in_words()
    print(export(sets[0], options.path, options.to, scores))
    return 0


def _sets(words: Sequence[str]) -> int:
    parser = OneSentenceParser(prog="dc-lightning sets", description="Lists the sets that ship, with their scores.")
    parser.parse_args(words)
    short = {ready_set(ready.short_name).name: ready.short_name for ready in ready_sets()}
    for ready in ready_sets():
        names = " = ".join(filter(None, (ready.name, short.get(ready.name))))
        say(f"{names}: {ready.results['columns'][0]['name']}, {ready.in_words()}")
    return 0


def _run(words: list[str]) -> int:
    if (answer := quick_answer(words)) is not None:
        print(answer)
        return 0
    command, *options = words
    if command == "export":
        return _export(options)
    if command == "sets":
        return _sets(options)
    if command == "reproduce":
        from dc_lightning.experiments import reproduce  # needs a system with POSIX signals and locks

        return reproduce.main(options, check_words)
    if command == "report":
        from dc_lightning.experiments import report

        return report.main(options)
    command = command.replace("-", "_") if command in COMMANDS else command
    CondensationCLI([command, *("--help" if word == "--help-all" else word for word in options)])
    return 0


def _suggested_option(words: Sequence[str], message: str) -> str:
    """The option that is near one of the words which is none, if a message is about it."""
    known = ["config", "print_config", "help", "seed_everything", "ckpt_path", "synthetic", "experiment", "method"]
    known += "compile cuda_graphs factor keep_freed_memory labels output proxies threads weights_only whitening".split()
    classes: dict[str, list[Any]] = {
        "model": [part for part in vars(methods).values() if inspect.isclass(part)],
        "data": [ImageFiles, *(part for part in vars(data).values() if inspect.isclass(part))],
        "trainer": [Trainer],
        "evaluation": [EvaluationCallback],
        "checkpoint": [Checkpoints],
        "protocol": [Protocol],
        "space": [Space],
    }
    for key, parts in classes.items():
        names = {name for part in parts for name in inspect.signature(part).parameters} - {"seed"}  # see _ONE_SEED
        known += [key, *(f"{key}.{name}" for name in sorted(names))]
    values = {"model.init": INITS, "method": get_args(Method), "evaluation.baselines": get_args(Baseline)}
    for name, value in _options(words):
        for word in value.strip("[]").split(",") if name in values else ():
            if word.strip() not in values[name] and (near := suggestion(word.strip(), values[name])):
                return near
        plain = name.replace(".init_args", "")
        parent, last = ".".join(plain.split(".")[:2]), plain.rpartition(".")[2]
        if plain not in known and parent not in known and last in message:
            longer = [each for each in known if each.startswith(plain) and ("." in plain or "." not in each)]
            longer += [each for each in known if each.endswith((f".{last}", f"_{last}"))]
            named = " or ".join(f"'--{each}'" for each in longer[:3])
            return f" Did you mean {named}?" if longer else suggestion(plain, known).replace("'", "'--", 1)
        if value and last in message and re.search(rf"(?<![\w.]){re.escape(value)}('\))?$", message):
            return _meaning(plain, classes.get(plain.partition(".")[0], ()))
    return ""


def _meaning(option: str, classes: Sequence[Any]) -> str:
    """What the docstrings say of an option whose value was not understood."""
    for part in classes:
        for text in (part.__doc__, part.__init__.__doc__):
            for each in docstring_parser.parse(text or "").params:
                if each.arg_name == option.rpartition(".")[2] and each.description:
                    return f" (--{option}: {' '.join(each.description.split()).split('. ')[0].rstrip('.')})"
    return ""


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG, errno.ESTALE)


def _end(message: str, exception: BaseException, code: int) -> int:
    """Says how the run ended and how to resume it; a process other than the first leaves it to that one, if it can."""
    rank = getattr(rank_zero_only, "rank", 0)
    if rank and isinstance(exception, Interrupted) and exception.together:
        return code
    if rank:
        time.sleep(3)
        message = f"[rank {rank}] {message}"
    print(message, file=sys.stderr)
    if command := getattr(exception, "resume_command", None):
        print(f"Resume with\n  {command}", file=sys.stderr)
    return code


def main(args: Sequence[str] | None = None) -> int:
    """Runs the words of a command, those of the process if None.

    Returns:
        The exit code: 0, 2 for bad input, 128 and the signal's number where one ended the run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a letter that a terminal lacks must not end a run
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for networks, distances and datasets of one's own, named by import path
    of_a_resume = "exists and is not empty", "callbacks used to create the checkpoint.*Timer"
    for message in ("LeafSpec", "does not have many workers", *of_a_resume):
        warnings.filterwarnings("ignore", message=f".*{message}")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        return _run(sys.argv[1:] if args is None else list(args))
    except (InputError, MisconfigurationException) as error:
        return _end(f"error: {error}", error, 2)
    except ValueError as error:
        if (said := _wrapped_in(error, InputError)) is None:
            raise
        return _end(f"error: {said}", error, 2)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f" '{error.filename}'" if error.filename else ""
        return _end(f"error: A file{where} could not be written ({error.strerror}); make room there.", error, 2)
    except Interrupted as stop:
        return _end(str(stop), stop, 128 + stop.signum)
