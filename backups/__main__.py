"""The command `python -m backups`."""

import sys

from backups.cli import main
from deploys.run.runs import recorded

if __name__ == "__main__":
    sys.exit(recorded(main))
