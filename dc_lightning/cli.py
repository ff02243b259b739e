"""The command line: ``dc-lightning fit`` and ``dc-lightning evaluate``, on LightningCLI."""

import errno
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
from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from dc_lightning.allocator import keep_freed_memory
from dc_lightning.callbacks import Checkpoints, EvaluationCallback, Interrupted, RunProgress, require_writable
from dc_lightning.condensation import CondensationModule, require_checkpoint
from dc_lightning.data import CondensationDataModule
from dc_lightning.errors import InputError
from dc_lightning.synthetic import load_synthetic


class CondensationTrainer(Trainer):
    """Lightning's Trainer with a further entry point."""

    def evaluate(
        self,
        model: CondensationModule,
        datamodule: CondensationDataModule,
        synthetic: str,
        experiment: int | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Scores a saved synthetic set by the recipe of the evaluation.

        Args:
            model: names the condensing network, for the pools S and SS.
            datamodule: the data that the set was made for.
            synthetic: a file of ours, a published file of the authors', or a folder of images.
            experiment: number of one set in an authors' file; None takes all of them.
            ckpt_path: not used; here, so that the configuration of a fit can be given.
            weights_only: not used; likewise.
        """
        callback = next(part for part in _callbacks(self) if isinstance(part, EvaluationCallback))
        self.test(_Evaluation(model, datamodule, callback, synthetic, experiment), verbose=False)


class _Evaluation(LightningModule):
    """Runs the evaluation inside a Trainer, which starts and joins the processes."""

    def __init__(
        self,
        model: CondensationModule,
        data: CondensationDataModule,
        callback: EvaluationCallback,
        path: str,
        experiment: int | None,
    ) -> None:
        super().__init__()
        self.model_spec, self.data, self.callback = model.network_spec, data, callback
        self.path, self.experiment = path, experiment

    def prepare_data(self) -> None:
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        self.data.setup(stage)
        names = self.data.class_names
        self.sets = load_synthetic(self.path, self.data.mean, self.data.std, names)
        if self.experiment is not None:
            if not 0 <= self.experiment < len(self.sets):
                raise InputError(
                    f"experiment must be in 0..{len(self.sets) - 1}, as '{self.path}' has {len(self.sets)} synthetic "
                    f"sets; got {self.experiment}."
                )
            self.sets = [self.sets[self.experiment]]
        self.callback.check_sets(self.trainer, self.data, self.sets, self.model_spec)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(cast(Dataset, [0]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        with torch.inference_mode(False):  # the test loop's would reach the networks that are trained here
            self.callback.evaluate_saved(self.trainer, self.data, self.sets, self.model_spec, self.path)


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


def _seed(value: int | bool | None) -> int:
    if value is None or isinstance(value, bool):
        raise InputError(f"seed_everything must be an integer, from which every random draw is derived; got {value}.")
    return value


class _Parser(LightningArgumentParser):
    """Says what is wrong in one sentence, without the usage of a hundred options before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise InputError(_one_sentence(message)) from ex


_FROM_DATA = ("num_classes", "channels", "image_size", "class_names", "labels", "images")
_DATASETS = ("Digits", "MNIST", "FashionMNIST", "SVHN", "CIFAR10", "CIFAR100", "ImageFolder", "TorchDataset")


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
        if isinstance(words, list) and any(re.match(r"--model\.(init_args\.)?seed\b", word) for word in words):
            raise InputError(_ONE_SEED)
        super().parse_arguments(parser, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the keys ``evaluation``, ``checkpoint`` and ``keep_freed_memory``, and links the seed."""
        parser.add_lightning_class_args(EvaluationCallback, "evaluation")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_argument(
            "--keep_freed_memory",
            type=bool,
            default=True,
            help="Let glibc keep freed memory for the next step: faster on the CPU, holds the peak memory.",
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
        }

    def before_instantiate_classes(self) -> None:
        """Sets the allocator before the first tensor, and the folder of a run that goes on."""
        config = self._configuration()
        if config.keep_freed_memory:
            keep_freed_memory()
        config.weights_only = True  # a checkpoint that would run code is refused
        if self.subcommand == "fit" and config.ckpt_path in ("last", "auto"):
            config.ckpt_path = _newest_checkpoint(config)
        if self.subcommand == "fit" and config.ckpt_path is not None:
            self._go_on_in_the_same_folder(config)

    def _go_on_in_the_same_folder(self, config: Namespace) -> None:
        """Points the logger at the run that the checkpoint belongs to, and cuts its curves there."""
        checkpoint = Path(config.ckpt_path)
        content = require_checkpoint(checkpoint)
        folder = checkpoint.resolve().parent.parent
        logger = config.trainer.logger
        if checkpoint.parent.name == "checkpoints" and _is_tensorboard(logger):
            changes = {"save_dir": str(folder.parent), "name": "", "version": folder.name}
            for key, value in (*changes.items(), ("purge_step", content["curve"][0])):
                logger.init_args[key] = value

    def _parse_ckpt_path(self) -> None:
        """Leaves the configuration as given: LightningCLI would let the checkpoint's win without a word."""

    def _configuration(self) -> Namespace:
        return cast(Namespace, self.config[self.subcommand])

    def after_instantiate_classes(self) -> None:
        """Notes the configuration in the results."""
        logger = self.trainer.logger
        require_writable(Path((logger and logger.save_dir) or self.trainer.default_root_dir))
        self._dump_config()
        for callback in _callbacks(self.trainer):
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
        parser_kwargs={name: {"default_env": False} for name in ("fit", "evaluate")},
    )


def _end(message: str, exception: BaseException, code: int) -> int:
    """Says how the run ended and how to go on; a process other than the first leaves it to that one, if it can."""
    rank = getattr(rank_zero_only, "rank", 0)
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
    try:
        _run(args)
    except (InputError, MisconfigurationException) as error:
        return _end(f"error: {error}", error, 2)
    except ValueError as error:  # a part that could not be made, wrapped by the parser
        if "Union subtypes" not in str(error):
            raise
        return _end(f"error: {_one_sentence(str(error))}", error, 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return _end(f"error: A file could not be written ({error.strerror}); make room.", error, 2)
    except Interrupted as stop:
        return _end(str(stop), stop, 128 + stop.signum)
    return 0
