"""A fit inside the processes of another Trainer."""

from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from dc_lightning.data.datamodule import CondensationDataModule
from dc_lightning.methods.base import Condenser
from dc_lightning.run.checkpoints import Checkpoints
from dc_lightning.run.progress import RunProgress


class _SameProcesses(LightningEnvironment):
    """The processes of a Trainer, for another one that runs within it."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self._trainer = trainer

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return self._trainer.world_size

    def global_rank(self) -> int:
        return self._trainer.global_rank

    def local_rank(self) -> int:
        return self._trainer.local_rank

    def node_rank(self) -> int:
        return self._trainer.node_rank

    def teardown(self) -> None:
        """The processes go on."""


def agreed(trainer: Trainer, here: bool) -> bool:
    """What the first process sees in the folders, which all share."""
    return bool(trainer.strategy.broadcast(here))


def fit_within(trainer: Trainer, model: Condenser, data: CondensationDataModule, folder: Path) -> None:
    """Fits a model by the settings of a Trainer, in its processes, from the last checkpoint in the folder if any."""
    bar, device = trainer.progress_bar_callback, trainer.strategy.root_device.type
    outer = next(each for each in trainer.checkpoint_callbacks if isinstance(each, Checkpoints))
    callbacks: list[Any] = [Checkpoints(trainer.max_epochs or 1, outer.last_every_seconds)]
    if isinstance(bar, RunProgress):
        bar.close()
        callbacks.append(RunProgress(bar.lines))
    nested = Trainer(
        accelerator=device,
        devices=trainer.device_ids if device == "cuda" else trainer.num_devices,
        num_nodes=trainer.num_nodes,
        strategy=DDPStrategy(cluster_environment=_SameProcesses(trainer)) if trainer.world_size > 1 else "auto",
        precision=trainer.precision,
        max_epochs=trainer.max_epochs,
        callbacks=callbacks,
        logger=TensorBoardLogger(str(folder.parent), name="", version=folder.name, default_hp_metric=False),
        log_every_n_steps=1,
        enable_model_summary=False,
        use_distributed_sampler=False,
        enable_progress_bar=isinstance(bar, RunProgress),
    )
    last = folder / "checkpoints" / "last.ckpt"
    nested.fit(model, datamodule=data, ckpt_path=str(last) if agreed(trainer, last.is_file()) else None)
