"""Switches and callbacks of Lightning that have no meaning in a condensation: they are refused, not ignored."""

import inspect
import logging
from importlib.util import find_spec
from inspect import isclass
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import Trainer, callbacks
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dc_lightning.errors import InputError

log = logging.getLogger(__name__)

_SWITCHES = {
    "barebones": "checkpoints and results are what a run is for",
    "sync_batchnorm": "every process matches its own classes with the same network",
    "max_steps": "a run could end within an outer iteration; give trainer.max_epochs",
    "min_steps": "a run has outer iterations; give trainer.min_epochs",
    "limit_val_batches": "there is no validation loop; see evaluation.every_n",
    "val_check_interval": "there is no validation loop; see evaluation.every_n",
    "check_val_every_n_epoch": "there is no validation loop; see evaluation.every_n",
    "num_sanity_val_steps": "there is no validation loop; see evaluation.every_n",
    "limit_test_batches": "accuracies are those of the whole test set",
    "limit_predict_batches": "nothing is predicted",
    "limit_train_batches": "model.outer_steps sets the matching steps",
    "overfit_batches": "model.outer_steps sets the matching steps",
    "log_every_n_steps": "curves have one point an outer iteration",
    "gradient_clip_val": "what is matched are gradients",
    "gradient_clip_algorithm": "what is matched are gradients",
    "accumulate_grad_batches": "all classes make one update already",
    "reload_dataloaders_every_n_epochs": "the images stay the same",
    "enable_checkpointing": "a run could not be resumed; see checkpoint.every_n",
}
"""Switches of the Trainer that have no meaning here, and why; the rest works."""


_HARMLESS = {
    "enable_checkpointing": True,
    "log_every_n_steps": 1,
    "limit_train_batches": 1.0,
    "limit_val_batches": 1.0,
    "limit_test_batches": 1.0,
    "limit_predict_batches": 1.0,
    "num_sanity_val_steps": 2,
    "gradient_clip_val": 0,
}
"""Values that say what happens without them."""

_OF_A_FIT = ("max_time", "profiler", "detect_anomaly", "callbacks")


def refuse_switches(given: Namespace, command: str = "fit") -> None:
    """Makes sure that no switch is ignored, and that no callback does something else than its name says.

    Args:
        given: the configuration of the Trainer.
        command: that it is for.

    Raises:
        InputError: if one has no place here; says why.
    """
    for name, reason in _SWITCHES.items():
        default = inspect.signature(Trainer).parameters[name].default
        is_one_batch = name.startswith("limit_") and isinstance(given[name], int)  # 1.0 are all
        if is_one_batch or given[name] not in (None, default, _HARMLESS.get(name, default)):
            raise InputError(f"trainer.{name} has no place here: {reason}.")
    if command != "fit":
        if given.fast_dev_run:
            raise InputError(f"trainer.fast_dev_run is for fit; try {command} with --evaluation.recipe.epochs 1.")
        if unused := [name for name in _OF_A_FIT if given[name]]:
            names = ", ".join(f"trainer.{name}" for name in unused)
            rank_zero_only(log.warning)(f"{command} does not fit by this Trainer: not used are {names}.")
    if str(given.strategy).startswith("ddp_spawn"):
        raise InputError("trainer.strategy ddp_spawn would have to pickle the run; take ddp, or ddp_fork.")
    _refuse_callbacks(given.callbacks)


_CALLBACKS = {
    "BaseFinetuning": "images have no layers to freeze",
    "BasePredictionWriter": "nothing is predicted",
    "BatchSizeFinder": "data.batch_real sets the real images of a step",
    "GradientAccumulationScheduler": "all classes make one update already",
    "LearningRateFinder": "a matching loss says little of the accuracy; compare several model.lr_images",
    "OnExceptionCheckpoint": "checkpoints/last.ckpt is kept whatever ends a run",
    "ModelPruning": "images have no weights to prune",
    "SpikeDetection": "every step has another loss by design; a run that diverges ends by itself",
    "StochasticWeightAveraging": "the rate of the images has no scheduler; see model.lr_images_cooldown",
    "ThroughputMonitor": "a step has batches of every class; see seconds_per_iteration in results.json",
    "Timer": "give trainer.max_time",
    "WeightAveraging": "images are evaluated and resumed as they are, not as an average",
}


def _refuse_callbacks(given: Any) -> None:
    for spec in given if isinstance(given, list) else [given]:
        path = spec.get("class_path") if isinstance(spec, Namespace) else None
        kind = resolve_name(path) if path else None
        if not isclass(kind):
            continue
        for name, reason in _CALLBACKS.items():
            if issubclass(kind, getattr(callbacks, name, ())):  # older versions lack some
                raise InputError(f"The callback {kind.__name__} has no place here: {reason}.")
        if issubclass(kind, callbacks.DeviceStatsMonitor) and find_spec("psutil") is None:
            raise InputError("The callback DeviceStatsMonitor needs psutil; install it by pip install psutil.")
