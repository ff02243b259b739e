"""The one exception for what a user can fix, and what other people's errors say in a line."""

import argparse
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn


class InputError(ValueError):
    """Bad input: the message says in one sentence what was expected, what came and what to do.

    The command line prints the message alone and exits with 2; anything else that is raised is a bug and keeps its
    traceback.
    """


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, short enough to be quoted in a sentence of ours."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def with_place(error: BaseException) -> str:
    """Type, message and place of an error that somebody else's code raised: ``KeyError: 'a' (my_parts.py, line 3)``."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({place.filename}, line {place.lineno})"


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


class OneSentenceParser(argparse.ArgumentParser):
    """Raises `InputError` for words that it does not understand, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """See `InputError`."""
        raise InputError(f"{self.prog}: {message}.")
