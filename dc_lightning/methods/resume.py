"""The description of a condensation in its files, and which checkpoints can be resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dc_lightning.errors import InputError
from dc_lightning.files import read_tensors

if TYPE_CHECKING:
    from dc_lightning.methods.base import Condenser

FORMAT = "dc_lightning checkpoint 2"

_MAY_CHANGE = ("real_chunk_size", "lr_images", "lr_images_cooldown")
"""Settings that may change on resume: memory and speed, and what a run needs that diverged or is to end."""


def require_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of a condensation, before anything is built for it.

    Raises:
        InputError: if it is missing, damaged, of something else or of another version, or would have to run code to be
            read.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint at '{path}'; give the path of a .ckpt file.")
    content = read_tensors(path)
    if not isinstance(content, dict) or not isinstance(content.get("curve"), tuple):
        raise InputError(f"'{path}' is not a checkpoint of a condensation; give a .ckpt file that a run of it wrote.")
    if content.get("format") != FORMAT:
        raise InputError(
            f"'{path}' was written by another version of dc_lightning (format {content.get('format', 'of 0.1.0')}, "
            f"expected {FORMAT}); finish the run with that version, or start a new one. Its synthetic.pt can be read."
        )
    return content


def identity_of(condenser: "Condenser") -> dict[str, Any]:
    """What a checkpoint says of the run it is of, besides the settings of the method."""
    data = condenser.data
    about_data = {
        "dataset": data.title,
        "batch_real": data.batch_real,
        "mean": list(data.mean),
        "std": list(data.std),
        "classes": data.num_classes,
        "image_shape": [data.channels, *data.image_size],
        "images": sum(data.real.counts()) if data.real is not None else 0,
    }
    return {"format": FORMAT, "method": condenser.name, "data": about_data}


def require_same(checkpoint: Mapping[str, Any], condenser: "Condenser") -> None:
    """Makes sure that a run is resumed with the settings that its checkpoint was made with.

    Without a run, as by ``load_from_checkpoint``, the method takes the images of the checkpoint.

    Raises:
        InputError: if not; names what differs.
    """
    if getattr(condenser, "_trainer", None) is None:
        condenser.images = nn.Parameter(checkpoint["state_dict"]["images"].clone())
        return
    identity = identity_of(condenser)
    made_with = {**checkpoint["hyper_parameters"], **checkpoint["data"], "name": checkpoint["method"]}
    now = {**condenser.hparams, **identity["data"], "name": identity["method"]}
    differing = [
        f"{key} was {made_with.get(key)} and is {now.get(key)}"
        for key in dict.fromkeys([*now, *made_with])
        if not key.startswith("_") and key not in _MAY_CHANGE and made_with.get(key) != now.get(key)
    ]
    if differing:
        raise InputError(
            f"The checkpoint was made with other settings: {'; '.join(differing)}. Resume with the configuration it "
            "was made with (config.yaml in its run's folder), or start a new run without a checkpoint."
        )


def pace_of(condenser: "Condenser") -> dict[str, Any]:
    """What may change on resume and bears on the images: their rate, its cooldown and its end, the precision."""
    found = {name: getattr(condenser, name) for name in ("lr_images", "lr_images_cooldown")}
    end = condenser.trainer.max_epochs if condenser.lr_images_cooldown else None
    return {**found, "max_epochs": end, "precision": str(condenser.trainer.precision)}


def pace_if_finished(checkpoint: Mapping[str, Any], condenser: "Condenser") -> dict[str, Any]:
    """At what pace a run was finished that is only to be evaluated again; empty if it is to go on."""
    trainer = getattr(condenser, "_trainer", None)
    finished = trainer is not None and checkpoint["curve"][0] == trainer.max_epochs
    return {name: value for name, value in checkpoint.get("pace", {}).items() if finished and name != "max_epochs"}


def changes_of_pace(checkpoint: Mapping[str, Any], condenser: "Condenser") -> str:
    """Where a run went on at another pace, and what it was before, in words; empty if nowhere."""
    said, before = checkpoint.get("resumed", ""), checkpoint.get("pace", {})
    if getattr(condenser, "_trainer", None) is None or not checkpoint["global_step"] or condenser.finished_at:
        return str(said)
    now = pace_of(condenser)
    changed = [f"{name} {value}" for name, value in before.items() if value not in (None, now[name])]
    here = [f"from iteration {checkpoint['curve'][0]}, before with {', '.join(changed)}"] if changed else []
    return "; ".join([*filter(None, [said]), *here])


def require_finite(condenser: "Condenser") -> None:
    """Makes sure that a run has not diverged.

    Raises:
        InputError: if the loss or an image is no finite number; names the outer iteration.
    """
    loss = condenser.matching_loss
    if not (bool(loss.isfinite()) and bool(condenser.images.isfinite().all())):
        raise InputError(
            "The matching loss or the images became NaN or infinite in outer iteration "
            f"{condenser.current_epoch + 1} (loss {float(loss)}); the last good checkpoint is kept. Resume it with a "
            f"smaller model.lr_images than {condenser.lr_images}."
        )


def source_of(condenser: "Condenser") -> dict[str, Any]:
    """What images came from: name and class of the method, all its settings, data."""
    data = condenser.data
    own, given = type(condenser), condenser.hparams
    settings = {key: getattr(condenser, key, None) if value is None else value for key, value in given.items()}
    own_statistics = {"mean": list(data.mean), "std": list(data.std)} if data.own_statistics else {}
    return {
        **{key: value for key, value in settings.items() if not key.startswith("_")},
        "method": condenser.name,
        "class": f"{own.__module__}.{own.__qualname__}",
        "dataset": data.title,
        "image_shape": [data.channels, *data.image_size],
        "batch_real": data.batch_real,
        **({"validation": data.validation} if data.validation else {}),
        **own_statistics,
        "max_epochs": condenser.trainer.max_epochs,  # the end that a cooldown was planned for
        "precision": str(condenser.trainer.precision),
        **({"resumed": condenser.resumed} if condenser.resumed else {}),
        **condenser.finished_at,
    }
