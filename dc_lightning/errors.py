"""The one exception for what a user can fix, and what other people's errors say in a line."""

import argparse
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn


class InputError(ValueError):
    """Bad input: the message says in one sentence what was expected, what came and what to do.

    The command line prints the message alone and exits with 2; anything else that is raised is a bug and keeps its
    traceback.
    """


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough to be quoted in a sentence of ours."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """Likewise the last line, where a parser says first what it tried."""
    return ([type(error).__name__, *str(error).strip().splitlines()])[-1].strip()


def with_place(error: BaseException) -> str:
    """Type, message and place of an error that other people's code raised: ``KeyError: 'a' (my_parts.py, line 3)``."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "<frozen" not in frame.filename]
    if not frames or Path(frames[-1].filename).name in ("pkgutil.py", "parts.py"):  # it could not be found
        return said
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})"


def suggestion(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'ConvNet'?`` where a known word is near, else nothing."""
    by_lower_case = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.7)
    return f" Did you mean '{by_lower_case[near[0]]}'?" if near else ""


def require_at_least(prefix: str = "", **settings: tuple[float | None, float]) -> None:
    """Checks several numbers at once, each given with its least value; None passes.

    Raises:
        InputError: if one is smaller, or not a number.
    """
    for name, (value, least) in settings.items():
        if value is not None and not value >= least:
            raise InputError(f"{prefix}{name} must be at least {least}, got {value}.")


def require_known(kind: str, words: Any, known: Iterable[str], more: str = "") -> None:
    """Checks one word or several that name a ``kind``; ``more`` follows the known ones in the message.

    Raises:
        InputError: if one is unknown; names those that are known, and the one that is near.
    """
    known = list(known)
    for word in words if isinstance(words, list | tuple) else [words]:
        if word not in known:
            expected = f"expected one of {', '.join(known)}{more}"
            raise InputError(f"Unknown {kind} '{word}': {expected}.{suggestion(str(word), known)}")


class OneSentenceParser(argparse.ArgumentParser):
    """Raises `InputError` for words that it does not understand, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """See `InputError`; suggests the option that is near."""
        hints = [suggestion(word, self._option_string_actions) for word in message.split() if word.startswith("--")]
        raise InputError(f"{self.prog}: {message}.{''.join(hints[:1])}")
