"""Augmentation in plain torch: the four operations of DC's evaluation, those of DSA and IDC, CutMix."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from torch import Generator, Tensor

from dc_lightning.augmentation.paper import OPERATIONS, Operation, OperationPerImage
from dc_lightning.augmentation.siamese import DiffAugment, Siamese
from dc_lightning.errors import InputError
from dc_lightning.parts import Spec, find, make

AUGMENTATIONS: dict[str, Any] = {"siamese": Siamese, "diffaugment": DiffAugment}
"""Augmentations of whole batches by name."""

Augment = Callable[[Tensor, Tensor, Generator], "Tensor | tuple[Tensor, Tensor]"]
"""Called with images ``(n, C, H, W)``, labels ``(n,)`` or ``(n, classes)``, and a generator on the CPU; gives the
images, or images and labels, of that batch."""


class Augmented(Protocol):
    """What data provide for the augmentation that papers use on them; a `CondensationDataModule` does."""

    strategy: str
    augmentation: Sequence[Spec]


def make_augmentation(spec: Spec | Sequence[Spec] | None, data: Augmented) -> Augment | None:
    """The augmentation of batches that a recipe or a method names.

    Args:
        spec: a list of operations, of which each image gets one (DC), by name (crop, scale, rotate, noise) or import
            path of a callable ``(images, generator, mean)``; ``siamese`` (DSA) or ``diffaugment`` (IDC), whose strategy
            is that of the data unless it is given; or the import path of a callable of one's own, see `Augment`. None
            or empty is none.
        data: see `Augmented`.

    Raises:
        InputError: if there is no such augmentation.
    """
    if not spec:
        return None
    if not isinstance(spec, str | dict):
        return OperationPerImage([cast(Operation, make("augmentation", OPERATIONS, name)) for name in spec])
    part = make("augmentation", AUGMENTATIONS, spec)
    return part.of_data(data.strategy) if isinstance(part, Siamese) else cast(Augment, part)


def make_pair_augmentation(spec: Spec | None, data: Augmented) -> Any:
    """The augmentation of a method, which treats real and synthetic images alike; see `make_augmentation`.

    Raises:
        InputError: if it lacks the methods that `Siamese` has for that.
    """
    made = make_augmentation(spec, data)
    missing = [name for name in ("pair", "batch") if made is not None and not hasattr(made, name)]
    if missing:
        raise InputError(
            "model.augmentation must have the methods pair(real, synthetic, seed) and batch(images, seed); "
            f"{spec} lacks {', '.join(missing)}."
        )
    return made


def check_augmentation(spec: Spec | Sequence[Spec] | None) -> None:
    """Raises `InputError` unless all parts are there, before there are data; names those there are."""
    for part in [spec] if isinstance(spec, str | dict) else spec or []:
        find("augmentation", AUGMENTATIONS if isinstance(spec, str | dict) else OPERATIONS, part)
