"""``python -m dc_lightning``, and ``dc-lightning``."""

import os
import sys


def run() -> int:
    """Runs the command line; Ctrl-C while it is being imported ends without a traceback.

    OpenMP's threads sleep while they wait for each other, unless the environment says otherwise: by default they spin,
    and small tensors then take many times as long where other processes use the cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    try:
        from dc_lightning.cli import main

        return main()
    except KeyboardInterrupt:
        print("Stopped by SIGINT before the run started.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
