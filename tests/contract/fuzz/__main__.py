"""Command line of the differential fuzz: `make fuzz`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from tests.contract.fuzz.cases import Case, make
from tests.contract.fuzz.run import Bench, Summary, bench, fuzz, numbered

EXAMPLE = """examples:
  python -m tests.contract.fuzz --cases 1000000 --seed 7
  python -m tests.contract.fuzz --seed 7 --case 4711      one case again, with everything that it did

A relay with its PostgreSQL and a provider that sends the cases run on loopback. Whatever OpenAI's SDK accepts
from the provider it must accept through the relay, with the same chunks; every call is settled, and charged
by what came. Exit status: 0 when nothing was found, 1 otherwise.
"""


def main() -> int:
    """Run and print the summary."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.contract.fuzz",
        description="What a provider may send, read by OpenAI's SDK directly and through the relay.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, help="(default: of the clock, printed)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: 0)")
    parser.add_argument("--case", type=int, help="only this case, shown in full")
    parser.add_argument("--workers", type=int, default=24, help="calls at a time (default: %(default)s)")
    parser.add_argument("--program", type=Path, help="directory of another checkout whose relay is tried")
    options = parser.parse_args()
    if min(options.cases, options.workers) < 1:
        parser.error("--cases and --workers must be at least 1")
    seed = int(time.time()) if options.seed is None else options.seed
    one = options.case is not None
    first, count = (options.case, 1) if one else (options.first, options.cases)
    print(f"seed {seed}, cases {first} to {first + count - 1}", flush=True)
    summary = Summary(seed)
    with bench(options.program) as made:
        if one:
            show(make(seed, first))
        asyncio.run(fuzz(made, numbered(seed, first, count), summary, options.workers, say))
        if one:
            asyncio.run(show_both(made, make(seed, first)))
    for line in summary.lines():
        print(line)
    return 1 if summary.counts else 0


def say(text: str) -> None:
    """Progress."""
    print(text, flush=True)


def show(case: Case) -> None:
    """A case in full."""
    for name in case.__slots__:
        print(f"{name}: {getattr(case, name)!r}")


async def show_both(made: Bench, case: Case) -> None:
    """What both sides hear."""
    async with made.running():
        played = await made.play(case)
    print("directly:", played.direct)
    print("the relay's answer:", played.wire)
    print("through the relay:", played.relayed)


if __name__ == "__main__":
    sys.exit(main())
