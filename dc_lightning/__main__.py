"""``python -m dc_lightning``, and ``dc-lightning``."""

import sys


def run() -> int:
    """Runs the command line; Ctrl-C while it is being imported ends without a traceback."""
    try:
        from dc_lightning.cli import main

        return main()
    except KeyboardInterrupt:
        print("Stopped by SIGINT before the run started.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
