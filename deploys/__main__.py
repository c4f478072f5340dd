"""The command `python -m deploys`."""

import sys

if {"plan", "apply"} & set(sys.argv[1:2]):
    # pyinfra reaches all hosts at once with gevent, which must replace blocking calls before their import.
    from gevent import monkey

    monkey.patch_all()

from deploys.run.cli import main
from deploys.run.runs import recorded
from deploys.sandbox.cli import main as sandbox

if __name__ == "__main__":
    sys.exit(sandbox(sys.argv[2:]) if sys.argv[1:2] == ["sandbox"] else recorded(main))
