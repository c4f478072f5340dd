"""`python -m deploys …`"""

import sys

from deploys.cli import main

if __name__ == "__main__":
    sys.exit(main())
