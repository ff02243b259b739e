"""The command line: ``dc-lightning`` with ``fit``, ``evaluate`` and ``select``, on LightningCLI."""

import errno
import inspect
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from dc_lightning import data
from dc_lightning.allocator import keep_freed_memory
from dc_lightning.callbacks import EvaluationCallback, require_writable
from dc_lightning.checkpoints import Checkpoints, Interrupted
from dc_lightning.compilation import compile_networks
from dc_lightning.condensation import CondensationModule, require_checkpoint
from dc_lightning.data import CondensationDataModule
from dc_lightning.errors import InputError
from dc_lightning.progress import RunProgress
from dc_lightning.selection import Method
from dc_lightning.synthetic import load_synthetic

_FORKING = ("ddp_fork", "ddp_notebook")


class CondensationTrainer(Trainer):
    """Lightning's Trainer with a further entry point."""

    def evaluate(
        self,
        model: CondensationModule,
        datamodule: CondensationDataModule,
        synthetic: str | list[str],
        experiment: int | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Scores saved synthetic sets by the recipe of the evaluation, several as the experiments of one table cell.

        Args:
            model: names the condensing network, for the pools S and SS, where the set does not.
            datamodule: the data that the set was made for.
            synthetic: a file of ours, a published file of the authors', or a folder of images; or a list of them.
            experiment: number of one set in an authors' file; None takes all of them.
            ckpt_path: not used; here, so that the configuration of a fit can be given.
            weights_only: not used; likewise.
        """
        paths = [synthetic] if isinstance(synthetic, str) else synthetic
        self.test(_SavedSets(model, datamodule, self._evaluation(), paths=paths, experiment=experiment), verbose=False)

    def select(
        self,
        model: CondensationModule,
        datamodule: CondensationDataModule,
        method: Method,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Selects real images, model.ipc of each class, and scores them by the recipe of the evaluation.

        Args:
            model: its ipc, and its network for the pools S and SS; nothing else of it is used.
            datamodule: the data to select from.
            method: random, herding, k-center or forgetting.
            ckpt_path: not used; here, so that the configuration of a fit can be given.
            weights_only: not used; likewise.
        """
        self.test(_Selection(model, datamodule, self._evaluation(), method=method), verbose=False)

    def _evaluation(self) -> EvaluationCallback:
        return next(part for part in _callbacks(self) if isinstance(part, EvaluationCallback))


class _Evaluation(LightningModule):
    """Runs the evaluation inside a Trainer, which starts and joins the processes."""

    def __init__(self, model: CondensationModule, data: CondensationDataModule, callback: EvaluationCallback) -> None:
        super().__init__()
        self.model_spec, self.ipc, self.data, self.callback = model.network_spec, model.ipc, data, callback

    def prepare_data(self) -> None:
        self.data.prepare_data()

    def test_dataloader(self) -> DataLoader:
        return DataLoader(cast(Dataset, [0]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        # The test loop's would reach the networks in training, and a fit evaluates without them.
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.inference_mode(False), torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
                self.evaluate()
        finally:
            torch.set_default_dtype(dtype)

    def evaluate(self) -> None:
        raise NotImplementedError


class _SavedSets(_Evaluation):
    def __init__(self, *parts: Any, paths: list[str], experiment: int | None) -> None:
        super().__init__(*parts)
        self.paths, self.experiment = paths, experiment

    def setup(self, stage: str) -> None:
        self.data.setup(stage)
        names = self.data.class_names
        self.sets = [
            found for path in self.paths for found in load_synthetic(path, self.data.mean, self.data.std, names)
        ]
        if self.experiment is not None:
            if not 0 <= self.experiment < len(self.sets):
                raise InputError(
                    f"experiment must be in 0..{len(self.sets) - 1}, as '{', '.join(self.paths)}' has {len(self.sets)} "
                    f"synthetic sets; got {self.experiment}."
                )
            self.sets = [self.sets[self.experiment]]
        if len({found.ipc for found in self.sets}) > 1:
            raise InputError(
                "Sets that are evaluated together must have one number of images per class; got "
                f"{sorted({found.ipc for found in self.sets})}."
            )
        if len({str(found.source.get("method")) for found in self.sets}) > 1:
            raise InputError("Sets that are evaluated together must be made by one method; evaluate each by itself.")
        self.model_spec = self.sets[0].source.get("network", self.model_spec)  # what the set says it was made with
        self.callback.check(self.trainer, self.data, self.model_spec, self.sets)

    def evaluate(self) -> None:
        self.callback.evaluate_saved(self.trainer, self.data, self.sets, self.model_spec, ", ".join(self.paths))


class _Selection(_Evaluation):
    def __init__(self, *parts: Any, method: Method) -> None:
        super().__init__(*parts)
        self.method = method

    def setup(self, stage: str) -> None:
        self.data.setup(stage)
        self.callback.check(self.trainer, self.data, self.model_spec, methods=[self.method])

    def evaluate(self) -> None:
        chosen = self.callback.select(self.trainer, self.data, self.method, self.ipc)
        path = self.callback.folder / "synthetic.pt"
        if self.trainer.is_global_zero:
            chosen.save(path)
            chosen.save_grid(path.with_suffix(".png"))
        self.callback.evaluate_saved(self.trainer, self.data, [chosen], self.model_spec, str(path))


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]


def _is_tensorboard(logger: Any) -> bool:
    return isinstance(logger, Namespace) and str(logger.get("class_path", "")).endswith("TensorBoardLogger")


def _newest_checkpoint(config: Namespace) -> str | None:
    """The ``last.ckpt`` written last below the logger's folder, for ``last`` and ``auto``."""
    logger = config.trainer.logger
    folder = Path(config.trainer.default_root_dir or ".")
    if _is_tensorboard(logger):
        folder = Path(logger.init_args.save_dir, logger.init_args.name or "")
    found = sorted(folder.glob("**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found and config.ckpt_path == "last":
        raise InputError(
            f"There is no checkpoints/last.ckpt below '{folder}' to go on from; give its path, or 'auto', which starts "
            "anew where there is none."
        )
    return str(found[-1]) if found else None


def _wait_for_a_later_second(folder: Path) -> None:
    """Waits until the curves that are written next will be read last.

    TensorBoard reads the files of a run by name: the second, then the host, process and file numbers as text, where 10
    comes before 9. The clock of another machine may be a few seconds ahead; what is further ahead is not waited for.
    """
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.[0-9]*")]
    while 0 <= max(seconds, default=-1) - int(time.time()) <= 5:
        time.sleep(0.01)


def _seed(value: int | bool | None) -> int:
    if value is None or isinstance(value, bool) or not 0 <= value < 2**32:
        raise InputError(
            f"seed_everything must be an integer in 0..2**32-1, from which every random draw is derived; got {value}."
        )
    return value


def _refuse_seeds_in(path: Path) -> None:
    """A seed in a configuration file would be overruled without a word."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return  # the parser says it better
    for part in ("model", "evaluation"):
        settings = content.get(part) if isinstance(content, dict) else None
        if isinstance(settings, dict) and "seed" in {**settings, **(settings.get("init_args") or {})}:
            raise InputError(f"{_ONE_SEED} It is in '{path}'.")


class _Parser(LightningArgumentParser):
    """Says what is wrong in one sentence, without the usage of a hundred options before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise InputError(_one_sentence(message)) from ex


_FROM_DATA = ("num_classes", "channels", "image_size", "class_names", "labels", "images")
_DATASETS = [
    name
    for name, part in vars(data).items()
    if isinstance(part, type) and issubclass(part, CondensationDataModule) and not inspect.isabstract(part)
]


def _one_sentence(message: str) -> str:
    """The parser's message without what it says of the types it tried."""
    if tried := re.search(r"Subtypes: .*?Errors:\s+- (.*?)\s+- Expected a <class 'NoneType'>", message, re.DOTALL):
        inner = tried.group(1)
        if "given class_path" in inner or ("import path" in inner and 'key "data"' in message):
            given = re.search(r"Given value: (.*)", message)
            return (
                f"Unknown dataset {given.group(1) if given else ''}: expected one of {', '.join(_DATASETS)}, or the "
                "import path of your own CondensationDataModule, with its init_args."
            )
        key, given = re.match(r'Parser key "([^"]+)"', message), re.search(r"Given value: (.*)", message)
        if inner.startswith("Expected a <class") and key and given:
            return f"{key.group(1)}: {' '.join(inner.split())}, got {given.group(1)}."
        return _one_sentence(inner)
    if "compute_fn" in message:  # our own message, wrapped by the parser
        return message.rpartition(" failed: ")[2]
    option = re.search(r"(?:Option '|model\.(?:init_args\.)?)(\w+)", message)
    if option and option.group(1) in _FROM_DATA:
        return f"{option.group(1)} is not an option of the model: it is taken from the data; leave it out."
    if "evaluation.seed" in message:
        return _ONE_SEED
    return " ".join(message.split())


_ONE_SEED = "Model and evaluation take the seed of the run: give seed_everything instead of a seed of theirs."


class CondensationCLI(LightningCLI):
    """LightningCLI with the evaluation, the checkpoints and the seed as top-level keys."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Refuses what would be overruled without a word."""
        words = sys.argv[1:] if args is None else args
        line = "\n".join(words) if isinstance(words, list) else ""
        for path in re.findall(r"^(?:--config|-c)[=\n](.+)$", line, re.MULTILINE):
            _refuse_seeds_in(Path(path))
        if isinstance(words, list) and any(re.match(r"--model\.(init_args\.)?seed\b", word) for word in words):
            raise InputError(_ONE_SEED)
        super().parse_arguments(parser, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the keys ``evaluation``, ``checkpoint`` and those of speed, and links the seed."""
        parser.add_lightning_class_args(EvaluationCallback, "evaluation")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_argument(
            "--keep_freed_memory",
            type=bool,
            default=True,
            help="Let glibc keep freed memory for the next step: faster on the CPU, holds the peak memory.",
        )
        parser.add_argument(
            "--compile",
            type=bool,
            default=False,
            help="Compile networks by torch.compile: half a minute at the start of every process, then faster.",
        )
        parser.add_argument(
            "--tf32",
            type=bool | None,
            default=None,
            help="Convolutions and matrix products of NVIDIA GPUs in TensorFloat-32; null is PyTorch's own choice.",
        )
        parser.set_defaults(
            {
                "model": {"class_path": "dc_lightning.condensation.CondensationModule"},
                "data": {"class_path": "dc_lightning.data.Digits"},
            }
        )
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "evaluation.seed", compute_fn=_seed)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """What ``dc-lightning`` can be told to do."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "evaluate": {"model", "datamodule"},
            "select": {"model", "datamodule"},
        }

    def before_instantiate_classes(self) -> None:
        """Sets the allocator before the first tensor, and the folder of a run that goes on."""
        config = self._configuration()
        if config.keep_freed_memory:
            keep_freed_memory()
        if config.compile and config.trainer.strategy in _FORKING:
            raise InputError(
                f"Networks cannot be compiled in forked processes (trainer.strategy {config.trainer.strategy}), where "
                "PyTorch aborts; take trainer.strategy ddp, or leave the compilation off."
            )
        compile_networks(config.compile)
        if config.tf32 is not None:
            torch.backends.cudnn.allow_tf32 = config.tf32
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        if config.trainer.default_root_dir and _is_tensorboard(config.trainer.logger):
            logger = config.trainer.logger.init_args
            logger.save_dir = config.trainer.default_root_dir if logger.save_dir == "." else logger.save_dir
        config.weights_only = True  # a checkpoint that would run code is refused
        if self.subcommand == "fit" and config.ckpt_path in ("last", "auto"):
            config.ckpt_path = _newest_checkpoint(config)
        self._iteration = 0
        if self.subcommand == "fit" and config.ckpt_path is not None:
            self._iteration = require_checkpoint(Path(config.ckpt_path))["curve"][0]

    def _go_on_in_the_same_folder(self, config: Namespace) -> None:
        """Gives the Trainer a logger in the run that the checkpoint belongs to, whose curves are cut there."""
        checkpoint = Path(config.ckpt_path)
        config.ckpt_path = None  # for the configuration that is saved
        folder = checkpoint.resolve().parent.parent
        if checkpoint.parent.name == "checkpoints" and _is_tensorboard(config.trainer.logger):
            settings = config.trainer.logger.init_args.as_dict()
            settings |= {"save_dir": str(folder.parent), "name": "", "version": folder.name}
            if self.trainer.is_global_zero:
                _wait_for_a_later_second(folder)
            self.trainer.logger = TensorBoardLogger(**{**settings, "purge_step": self._iteration})

    def _parse_ckpt_path(self) -> None:
        """Leaves the configuration as given: LightningCLI would let the checkpoint's win without a word."""

    def _configuration(self) -> Namespace:
        return cast(Namespace, self.config[self.subcommand])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer; what it refuses is bad input."""
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            raise InputError(" ".join(str(error).split())) from error

    def after_instantiate_classes(self) -> None:
        """Notes the configuration in the results."""
        logger = self.trainer.logger
        if self.trainer.is_global_zero:
            require_writable(Path((logger and logger.save_dir) or self.trainer.default_root_dir))
        self._dump_config()
        config = self._configuration()
        resume_from = config.ckpt_path if self.subcommand == "fit" else None
        if resume_from is not None:
            self._go_on_in_the_same_folder(config)
        for callback in _callbacks(self.trainer):
            if isinstance(callback, Checkpoints):
                callback.resume_from = resume_from
            if isinstance(callback, EvaluationCallback):
                callback.note_configuration(self.config_dump)


def _run(args: Sequence[str] | None) -> None:
    CondensationCLI(
        CondensationModule,
        CondensationDataModule,
        trainer_class=CondensationTrainer,
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
            "callbacks": [RunProgress()],
        },
        seed_everything_default=0,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        args=None if args is None else list(args),
        parser_kwargs={
            "description": "Dataset condensation with gradient matching. Besides the subcommands below, `reproduce "
            "TABLE` runs a table of the paper and `report FOLDER` prints it; each has a --help.",
            **{name: {"default_env": False} for name in CondensationCLI.subcommands()},
        },
    )


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG, errno.ESTALE)


def _end(message: str, exception: BaseException, code: int) -> int:
    """Says how the run ended and how to go on; a process other than the first leaves it to that one, if it can."""
    rank = getattr(rank_zero_only, "rank", 0)
    if rank and isinstance(exception, Interrupted) and exception.together:
        return code
    if rank:
        time.sleep(3)
        message = f"[rank {rank}] {message}"
    print(message, file=sys.stderr)
    if command := getattr(exception, "how_to_go_on", None):
        print(f"Go on with\n  {command}", file=sys.stderr)
    return code


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: the words of the command; those of the process if None.

    Returns:
        The exit code: 0, 2 for bad input, 128 and the signal's number where one ended the run.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for networks, distances and datasets of one's own, named by import path
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # a run that goes on
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    words = sys.argv[1:] if args is None else list(args)
    try:
        if words[:1] == ["reproduce"]:  # needs a system with POSIX signals and locks
            from dc_lightning import reproduce

            return reproduce.main(words[1:])
        if words[:1] == ["report"]:
            from dc_lightning import report

            return report.main(words[1:])
        _run(args)
    except (InputError, MisconfigurationException) as error:
        return _end(f"error: {error}", error, 2)
    except ValueError as error:  # a part that could not be made, wrapped by the parser
        if "Union subtypes" not in str(error):
            raise
        return _end(f"error: {_one_sentence(str(error))}", error, 2)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f" '{error.filename}'" if error.filename else ""
        return _end(f"error: A file{where} could not be written ({error.strerror}); make room there.", error, 2)
    except Interrupted as stop:
        return _end(str(stop), stop, 128 + stop.signum)
    return 0
