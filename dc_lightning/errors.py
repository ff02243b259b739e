"""The one exception for what a user can mend."""

import argparse
from typing import NoReturn


class InputError(ValueError):
    """Bad input: the message says in one sentence what was expected, what came and what to do.

    The command line prints the message alone and exits with 2; anything else that is raised is a bug and keeps its
    traceback.
    """


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, short enough to be quoted in a sentence of ours."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class OneSentenceParser(argparse.ArgumentParser):
    """Raises `InputError` for words that it does not understand, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """See `InputError`."""
        raise InputError(f"{self.prog}: {message}.")
