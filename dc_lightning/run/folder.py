"""The folder of a run: results, pictures, checkpoints and configuration lie in one, whatever logs the curves."""

import csv
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dc_lightning.errors import InputError

_NOTED = "_dc_lightning_folder"
_RESUMED = "_dc_lightning_resumed_folder"


def set_run_folder(trainer: Trainer, folder: Path) -> None:
    """Gives a run the folder of the one that it resumes."""
    setattr(trainer, _RESUMED, folder)


def is_resumed(trainer: Trainer) -> bool:
    """Whether a run continues another one in its folder."""
    return hasattr(trainer, _RESUMED) or trainer.ckpt_path is not None


def taken(folder: Path) -> str:
    """What is said to a new run if its folder holds the results of another one; nothing if it does not."""
    said = (
        f"'{folder}' holds the results of another run, which would be lost; give another folder or "
        "--trainer.logger.version, or resume it by --ckpt_path."
    )
    return said if (folder / "results.json").is_file() else ""


def require_free_logger(trainer: Trainer) -> None:
    """Makes sure that the folder of the first logger has no results, before the logger writes or removes anything.

    Raises:
        InputError: if it has.
    """
    logger: Any = trainer.loggers[0] if trainer.loggers else None
    if isinstance(logger, TensorBoardLogger | CSVLogger) and (said := taken(Path(logger.log_dir))):
        raise InputError(said)


def run_folder(trainer: Trainer) -> Path:
    """Folder of a run, the same on every process, all of which must call this: a new one for a new run.

    That of the first logger; without one ``lightning_logs/version_N`` below ``default_root_dir``.
    """
    if not hasattr(trainer, _NOTED):
        found = getattr(trainer, _RESUMED, None) or _own_folder(trainer)
        setattr(trainer, _NOTED, trainer.strategy.broadcast(str(found)))
    return Path(getattr(trainer, _NOTED))


class SaveConfiguration(SaveConfigCallback):
    """Writes ``config.yaml`` into the folder of a run; where a resume is refused, all files of the run stay.

    Attributes:
        continued: makes the first logger of a run that is resumed, which cuts its curves.
    """

    continued: Callable[[], Logger] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes it, unless a checkpoint is still to be compared."""
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes that of a fit, whose checkpoint has been accepted."""
        if self.continued is not None:
            trainer.loggers = [self.continued(), *trainer.loggers]
        super().setup(trainer, pl_module, "fit")


_CURVES = ("matching_loss", "accuracy", "final")


def continued_logger(kind: type[Logger], settings: dict[str, Any], iteration: int) -> Logger:
    """A logger of TensorBoard or CSV files in the folder of a run that is resumed, whose curves it cuts.

    Args:
        kind: TensorBoardLogger or CSVLogger.
        settings: its arguments, that folder in them.
        iteration: outer iterations that are done; what was logged from there on is logged again.
    """
    folder = Path(settings["save_dir"], settings["version"])
    if issubclass(kind, TensorBoardLogger):
        if not getattr(rank_zero_only, "rank", 0):
            _wait_for_a_later_second(folder)
        return kind(**{**settings, "purge_step": iteration})
    return _continued_csv(settings, folder / "metrics.csv", iteration)


def _wait_for_a_later_second(folder: Path) -> None:
    """Waits until the curves that are written next will be read last.

    TensorBoard reads the files of a run by name: the second, then the host, process and file numbers as text, where 10
    comes before 9. The clock of another machine may be a few seconds ahead; what is further ahead is not waited for.
    """
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.[0-9]*")]
    while 0 <= max(seconds, default=-1) - int(time.time()) <= 5:
        time.sleep(0.01)


def _continued_csv(settings: dict[str, Any], path: Path, iteration: int) -> CSVLogger:
    is_there = path.is_file() and not getattr(rank_zero_only, "rank", 0)
    before = path.read_text().splitlines() if is_there else []
    logger = CSVLogger(**settings)  # removes the file
    for row in csv.DictReader(before):
        step, is_ours = row.get("step") or "", any(row.get(name) for name in row if name.startswith(_CURVES))
        if step.isdigit() and (int(step) < iteration or not is_ours):
            metrics: dict[str, Any] = {name: float(value) for name, value in row.items() if value and name != "step"}
            logger.log_metrics(metrics, step=int(step))
    logger.save()
    return logger


def remove_failed_start(trainer: Trainer) -> None:
    """Removes the folder of a run that ended before it did anything: nothing but its configuration is there."""
    if not hasattr(trainer, _NOTED):
        return
    folder = Path(getattr(trainer, _NOTED))
    files = [path for path in folder.rglob("*") if path.is_file()]
    started = ("config.yaml", "hparams.yaml", "events.out.tfevents.")
    if files and all(path.name.startswith(started) for path in files):
        shutil.rmtree(folder, ignore_errors=True)


def _own_folder(trainer: Trainer) -> Path:
    # where nothing logs, the folder has the number that Lightning's own logger would give it
    logger: Any = trainer.loggers[0] if trainer.loggers else TensorBoardLogger(trainer.default_root_dir)
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return Path(logger.log_dir)
    if logger.version is None:
        _ = logger.experiment  # which some number when it starts
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
