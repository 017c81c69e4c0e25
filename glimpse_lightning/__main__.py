"""``python -m glimpse_lightning``."""

import sys

from glimpse_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
