"""Networks, distances and augmentations by name: a bare name is the paper's, a dotted one is imported.

A part stays a string or a mapping, ``{class_path: ..., init_args: {...}}``, until it is used: so it can be written
into a checkpoint, compared on a resume, and recorded with a result.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from dc_lightning import augmentation, distance, networks
from dc_lightning.augmentation import Operation
from dc_lightning.distance import Distance
from dc_lightning.errors import InputError
from dc_lightning.matching import freeze_batch_norm
from dc_lightning.networks import ImageSize, NetworkFactory
from dc_lightning.seeds import seeded

Spec = str | dict[str, Any]


def as_spec(part: Any) -> Spec:
    """A class or function as its import path; strings and mappings as they are.

    Raises:
        InputError: if it cannot be imported by a path, as what is defined inside a function.
    """
    if isinstance(part, str | Mapping):
        return cast(Spec, part)
    path = f"{getattr(part, '__module__', '')}.{getattr(part, '__qualname__', '<object>')}"
    if "<" in path:
        raise InputError(
            f"A network or distance is given by name, by import path, or as a class or function at the top level of a "
            f"module, so that a checkpoint can name it; got {part!r}."
        )
    return path


def part_name(spec: Spec) -> str:
    """How a part is called in tables and results: its name, with the arguments if there are any."""
    if isinstance(spec, str):
        return spec
    arguments = ", ".join(f"{key}={value}" for key, value in spec.get("init_args", {}).items())
    return spec["class_path"] + (f"({arguments})" if arguments else "")


def _find(kind: str, module: ModuleType, spec: Spec) -> Any:
    expected = f"expected one of {', '.join(module.NAMES)}, or the import path of your own (package.module.Name)"
    if isinstance(spec, Mapping):
        if "class_path" not in spec or set(spec) - {"class_path", "init_args"}:
            raise InputError(f"A {kind} given as a mapping has the keys class_path and init_args, got {dict(spec)}.")
        return _find(kind, module, spec["class_path"])
    if not isinstance(spec, str):
        raise InputError(f"Unknown {kind} {spec!r}: {expected}.")
    if "." not in spec:
        if spec not in module.NAMES:
            raise InputError(f"Unknown {kind} '{spec}': {expected}.")
        return getattr(module, spec)
    path, _, name = spec.rpartition(".")
    try:
        return getattr(importlib.import_module(path), name)
    except Exception as error:  # whatever a module of the user's raises
        raise InputError(f"The {kind} '{spec}' cannot be imported ({error}): {expected}.") from error


def find_network(spec: Spec) -> NetworkFactory:
    """The callable ``(channels, num_classes, image_size) -> nn.Module`` of a network.

    Raises:
        InputError: if there is no such network; names those there are.
    """
    factory = cast(Callable[..., nn.Module], _find("network", networks, spec))
    arguments = spec.get("init_args", {}) if isinstance(spec, Mapping) else {}
    return partial(factory, **arguments) if arguments else factory


def _make(kind: str, module: ModuleType, spec: Spec) -> Callable[..., Any]:
    """A function, or an instance of a class."""
    found = _find(kind, module, spec)
    arguments = spec.get("init_args", {}) if isinstance(spec, Mapping) else {}
    try:
        made = found(**arguments) if isinstance(found, type) else partial(found, **arguments) if arguments else found
    except TypeError as error:
        raise InputError(f"The {kind} {part_name(spec)} cannot be made: {error}.") from error
    if not callable(made):
        raise InputError(f"The {kind} {part_name(spec)} must be callable, but is a {type(made).__name__}.")
    return cast(Callable[..., Any], made)


def find_distance(spec: Spec) -> Distance:
    """The distance of two gradients; a class is instantiated with its ``init_args``.

    Raises:
        InputError: if there is no such distance; names those there are.
    """
    return cast(Distance, _make("distance", distance, spec))


def find_operation(spec: Spec) -> Operation:
    """The callable ``(images, generator, mean) -> images`` of an augmentation.

    Raises:
        InputError: if there is no such augmentation; names those there are.
    """
    return cast(Operation, _make("augmentation", augmentation, spec))


def make_network(spec: Spec, channels: int, num_classes: int, image_size: ImageSize, seed: int) -> nn.Module:
    """A freshly initialised network on the CPU, in train mode; the seed alone decides its weights.

    Raises:
        InputError: if there is no such network.
        ValueError: if the network cannot take the image size.
    """
    with seeded(seed):
        return find_network(spec)(channels, num_classes, image_size).train()


def check_network(spec: Spec, channels: int, num_classes: int, image_size: ImageSize) -> None:
    """Makes the network and passes two images, so that a misfit is found before a long run.

    Raises:
        InputError: if the network is unknown, cannot take the image size, or gives other than one logit a class.
    """
    size = f"{channels}x{image_size[0]}x{image_size[1]}"
    try:
        with torch.no_grad():
            network = make_network(spec, channels, num_classes, image_size, seed=0)
            logits = network(torch.zeros(2, channels, *image_size))
            freeze_batch_norm(network, torch.zeros(2, channels, *image_size))
            network(torch.zeros(1, channels, *image_size))  # one image per class is matched alone
    except InputError:
        raise
    except Exception as error:  # whatever a network of the user's raises
        reason = " ".join(str(error).split())
        raise InputError(f"The network {part_name(spec)} cannot take images of {size}: {reason}") from error
    if tuple(logits.shape) != (2, num_classes):
        raise InputError(
            f"The network {part_name(spec)} must give one logit a class, (2, {num_classes}) for two images of {size}; "
            f"got {tuple(logits.shape)}."
        )
