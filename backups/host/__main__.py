"""What a host does for its backups. Installed as `relay-backups`.

relay-backups stanza --check     what the repository lacks on the primary, one line each
relay-backups backup             a full backup, checked afterwards; only the primary makes one
relay-backups check              archived WAL and the newest backup, as figures for Prometheus
relay-backups retention          what would be dropped; --yes drops it (ops hosts, deleting account)
relay-backups restore …          one host's part of a restore of the cluster (`python -m backups restore`)
relay-backups replica DIRECTORY  the newest backup as a replica; Patroni runs it
relay-backups drill run          restore a random point beside the fleet and prove it (ops hosts)
relay-backups scratch restore    restore beside the fleet, to look and to step (ops hosts)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from backups.core.repository import RepositoryError
from backups.core.verification import Failed
from backups.core.wal import WalError
from backups.host.common import HostError

NOUNS = ("stanza", "backup", "check", "retention", "restore", "replica", "drill", "scratch")


def main(words: Sequence[str] | None = None) -> int:
    """Runs a noun; 0 done, 1 failed, 2 misused."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-backups", description=__doc__, formatter_class=layout)
    nouns = parser.add_subparsers(dest="noun", required=True)
    for name in NOUNS:
        module = import_module(f"backups.host.{name}")
        about = str(module.__doc__)
        one = nouns.add_parser(name, help=about.splitlines()[0], description=about, formatter_class=layout)
        module.options(one)
        one.set_defaults(run=module.run)
    options = parser.parse_args(words)
    try:
        return int(options.run(options))
    except (HostError, Failed, RepositoryError, WalError) as error:
        print(f"relay-backups {options.noun}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
