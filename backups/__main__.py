"""The command `python -m backups`."""

import sys

from backups.cli import main

if __name__ == "__main__":
    sys.exit(main())
