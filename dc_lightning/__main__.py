"""``python -m dc_lightning``."""

import sys

from dc_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
