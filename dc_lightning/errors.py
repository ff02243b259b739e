"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Bad input: the message says in one sentence what was expected, what came and what to do.

    The command line prints the message alone and exits with 2; anything else that is raised is a bug and keeps its
    traceback.
    """
