"""The folder of a run: results, pictures, checkpoints and configuration lie in one, whatever logs the curves."""

import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

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
    """Writes ``config.yaml`` into the folder of a run; where a resume is refused, that of the run stays."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes it, unless a checkpoint is still to be compared."""
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes that of a fit, whose checkpoint has been accepted."""
        super().setup(trainer, pl_module, "fit")


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
