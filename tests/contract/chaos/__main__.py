"""Command line of the drill: `make chaos`."""

from __future__ import annotations

import argparse
import signal
import sys

from tests.contract.chaos import report
from tests.contract.chaos.drill import Plan, run

EXAMPLE = """example:
  python -m tests.contract.chaos --calls 3000 --kill-every 1 --failovers 2

Everything runs on loopback: two PostgreSQL servers with synchronous replication, the relays, their worker, a
fake provider and the customers. A replica that has not answered a call since its start is not killed again
yet. Exit status: 0 when all calls were made and all books agree, 1 otherwise.
"""


def main() -> int:
    """Run the drill and print its summary."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.contract.chaos",
        description="Paid calls while replicas are killed and the database fails over; then the books.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--calls", type=int, default=100_000, help="acknowledged calls (default: %(default)s)"
    )
    parser.add_argument(
        "--kill-every", type=float, default=1.0, metavar="S", help="seconds (default: %(default)s)"
    )
    parser.add_argument("--failovers", type=int, default=2, metavar="K", help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=64, help="calls at a time (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=3, help="relays (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="give up after (default: %(default)s)")
    options = parser.parse_args()
    if min(options.calls, options.workers, options.replicas) < 1:
        parser.error("--calls, --workers and --replicas must be at least 1")
    if min(options.kill_every, options.minutes) <= 0 or options.failovers < 0:
        parser.error("--kill-every and --minutes must be above 0, --failovers 0 or more")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whatever ends the drill, its processes end
    plan = Plan(**vars(options))
    result = run(plan, lambda line: print(line, flush=True))
    for line in report.lines(result):
        print(line)
    return 0 if result.complete and result.agrees else 1


if __name__ == "__main__":
    sys.exit(main())
