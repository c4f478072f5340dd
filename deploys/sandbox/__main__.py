"""`python -m deploys.sandbox`, the same as `python -m deploys sandbox`."""

import sys

from deploys.sandbox.cli import main

if __name__ == "__main__":
    sys.exit(main())
