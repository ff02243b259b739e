"""``python -m dc_lightning``, and ``dc-lightning``."""

import os
import sys

from dc_lightning.errors import InputError
from dc_lightning.help import quick_answer


def run() -> int:
    """Runs the command line; help and unknown commands are answered before anything long is imported.

    Ctrl-C during the import ends without a traceback.

    OpenMP's threads sleep while they wait for each other, unless the environment says otherwise: by default they spin,
    and small tensors then take many times as long where other processes use the cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    try:
        if (answer := quick_answer(sys.argv[1:])) is not None:
            print(answer)
            return 0
        from dc_lightning.cli import main

        return main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped by SIGINT before the run started.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
