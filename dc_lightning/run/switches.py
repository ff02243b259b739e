"""Switches and callbacks of Lightning that have no meaning in a condensation: they are refused, not ignored."""

import logging
from importlib.util import find_spec
from inspect import isclass
from pkgutil import resolve_name

from jsonargparse import Namespace
from pytorch_lightning import callbacks
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dc_lightning.errors import InputError

log = logging.getLogger(__name__)

_SWITCHES = {
    "barebones": (False, "checkpoints and results are what a run is for"),
    "sync_batchnorm": (False, "every process matches its own classes with the same network"),
    "max_steps": (-1, "a run could end within an outer iteration; give trainer.max_epochs"),
    "min_steps": (None, "a run has outer iterations; give trainer.min_epochs"),
    "limit_val_batches": (1.0, "there is no validation loop; see evaluation.every_n"),
    "val_check_interval": (None, "there is no validation loop; see evaluation.every_n"),
    "check_val_every_n_epoch": (1, "there is no validation loop; see evaluation.every_n"),
    "num_sanity_val_steps": (2, "there is no validation loop; see evaluation.every_n"),
    "limit_test_batches": (1.0, "accuracies are those of the whole test set"),
    "limit_predict_batches": (1.0, "nothing is predicted"),
    "limit_train_batches": (1.0, "model.outer_steps sets the matching steps"),
    "overfit_batches": (0.0, "model.outer_steps sets the matching steps"),
    "log_every_n_steps": (1, "curves have one point an outer iteration"),
    "gradient_clip_val": (0, "what is matched are gradients"),
    "gradient_clip_algorithm": (None, "what is matched are gradients"),
    "accumulate_grad_batches": (1, "all classes make one update already"),
    "reload_dataloaders_every_n_epochs": (0, "the images stay the same"),
    "enable_checkpointing": (True, "a run could not be resumed; see checkpoint.every_n"),
}
"""Switches of the Trainer that have no meaning here: a value that changes nothing, and why; the rest works."""

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

_OF_A_FIT = ("max_time", "profiler", "detect_anomaly", "callbacks")


def refuse_switches(given: Namespace, command: str = "fit") -> None:
    """Makes sure that no switch of a Trainer is ignored, and that no callback does something else than its name says.

    Raises:
        InputError: if one has no place here; says why.
    """
    for name, (neutral, reason) in _SWITCHES.items():
        is_one_batch = name.startswith("limit_") and isinstance(given[name], int)  # 1.0 are all
        if is_one_batch or given[name] not in (None, neutral):
            raise InputError(f"trainer.{name} has no place here: {reason}.")
    if command != "fit":
        if given.fast_dev_run:
            raise InputError(f"trainer.fast_dev_run is for fit; try {command} with --evaluation.recipe.epochs 1.")
        if unused := [name for name in _OF_A_FIT if given[name]]:
            names = ", ".join(f"trainer.{name}" for name in unused)
            rank_zero_only(log.warning)(f"{command} does not fit by this Trainer: not used are {names}.")
    if str(given.strategy).startswith("ddp_spawn"):
        raise InputError("trainer.strategy ddp_spawn would have to pickle the run; take ddp, or ddp_fork.")
    for spec in given.callbacks if isinstance(given.callbacks, list) else [given.callbacks]:
        path = spec.get("class_path") if isinstance(spec, Namespace) else None
        kind = resolve_name(path) if path else None
        if not isclass(kind):
            continue
        for name, reason in _CALLBACKS.items():
            if issubclass(kind, getattr(callbacks, name, ())):  # older versions lack some
                raise InputError(f"The callback {kind.__name__} has no place here: {reason}.")
        if issubclass(kind, callbacks.DeviceStatsMonitor) and find_spec("psutil") is None:
            raise InputError("The callback DeviceStatsMonitor needs psutil; install it by pip install psutil.")
