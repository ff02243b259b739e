"""Parts by name: a bare name is one of ours, a dotted one is imported.

A part stays a string or a mapping, ``{class_path: ..., init_args: {...}}``, until it is used: so it can be written
into a checkpoint, compared on a resume, and recorded with a result.
"""

import pkgutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from dc_lightning.errors import InputError, suggestion, with_place

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
            f"A part is given by name, by import path, or as a class or function at the top level of a module, so that "
            f"a checkpoint can name it; got {part!r}."
        )
    return path


def part_name(spec: Spec) -> str:
    """How a part is called in tables and results: its name, with the arguments if there are any."""
    if isinstance(spec, str):
        return spec
    arguments = ", ".join(f"{key}={value}" for key, value in (spec.get("init_args") or {}).items())
    return spec["class_path"] + (f"({arguments})" if arguments else "")


def arguments_of(spec: Spec) -> dict[str, Any]:
    """The ``init_args`` of a part."""
    return dict(spec.get("init_args") or {}) if isinstance(spec, Mapping) else {}


def find(kind: str, known: Mapping[str, Any], spec: Any) -> Any:
    """The class or function that a part names.

    Args:
        kind: what it is, for messages: network, distance, augmentation.
        known: ours, by bare name.
        spec: see `Spec`.

    Raises:
        InputError: if there is none; names those there are, and the one that is near.
    """
    if isinstance(spec, Mapping):
        if "class_path" not in spec or set(spec) - {"class_path", "init_args"}:
            raise InputError(f"A {kind} given as a mapping has the keys class_path and init_args, got {dict(spec)}.")
        spec = spec["class_path"]
    expected = f"expected one of {', '.join(known)}, or the import path of your own (package.module.Name)"
    if isinstance(spec, str) and spec in known:
        return known[spec]
    if not isinstance(spec, str) or "." not in spec:
        hint = suggestion(spec, known) if isinstance(spec, str) else ""
        raise InputError(f"Unknown {kind} {spec!r}: {expected}.{hint}")
    try:
        return pkgutil.resolve_name(spec)
    except Exception as error:  # whatever a module of the user's raises
        raise InputError(f"The {kind} '{spec}' cannot be imported: {with_place(error)}; {expected}.") from error


def make(kind: str, known: Mapping[str, Any], spec: Spec) -> Callable[..., Any]:
    """A function, or an instance of a class, with its ``init_args``.

    Raises:
        InputError: if there is none, or it cannot be made.
    """
    found, arguments = find(kind, known, spec), arguments_of(spec)
    try:
        made = found(**arguments) if isinstance(found, type) else partial(found, **arguments) if arguments else found
    except TypeError as error:
        raise InputError(f"The {kind} {part_name(spec)} cannot be made: {error}.") from error
    if not callable(made):
        raise InputError(f"The {kind} {part_name(spec)} must be callable, but is a {type(made).__name__}.")
    return cast(Callable[..., Any], made)
