"""Holds and captures a second, and the CPU of a pair, of the real ledger code on a real PostgreSQL.

CPU is read from /proc, so that it holds on a noisy machine: PostgreSQL's is that of every process of the
server (backends, WAL writer, checkpointer), the relay's that of this process. Each case runs the same work
by group commit and one transaction a call, in the same run.

Run: python -m tests.bench.ledger_bench [--seconds 8] [--callers 200] [--case N] [--json]
Without --dsn and --owner-dsn it starts a PostgreSQL of its own.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import uvloop

from relay.asgi import new_request_id
from relay.ledger.ledger import Ledger
from relay.ledger.orders import CallFacts, CaptureOrder, HoldOrder
from relay.pricing.bound import MaxUsage
from relay.pricing.charge import Row
from relay.pricing.tariff import Admission, PriceVersion, Tariff
from tests.contract.postgres import initdb, make_database, prepare

TICK = os.sysconf("SC_CLK_TCK")
USAGE = {"prompt_tokens": 900, "completion_tokens": 120, "total_tokens": 1020}
METERS = {"in_text": 900, "out_text": 120}


@dataclass(frozen=True)
class Case:
    """How many accounts share the callers, and whether typed quotas and budgets take part."""

    name: str
    accounts: int
    quotas: bool
    budgets: bool


CASES = [
    Case("hot account", 1, quotas=False, budgets=False),
    Case("1,000 accounts", 1000, quotas=False, budgets=False),
    Case("hot account, grants and quotas", 1, quotas=True, budgets=False),
    Case("1,000 accounts, grants and quotas", 1000, quotas=True, budgets=False),
    Case("1,000 accounts, grants, quotas and budgets", 1000, quotas=True, budgets=True),
]


@dataclass(frozen=True)
class Figures:
    """The result of a case by one way of committing."""

    case: str
    way: str
    callers: int
    pairs: int
    pairs_per_second: float
    postgres_us: float
    relay_us: float
    p50_ms: float
    p99_ms: float


def process_cpu(pid: int) -> float:
    """Seconds of user and system time of a process, its dead children included."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return sum(int(value) for value in fields[11:15]) / TICK


def server_cpu(postmaster: int) -> float:
    """Seconds of all processes of a server; those that ended are in the postmaster's own account."""
    total = process_cpu(postmaster)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):  # it may end while it is looked at
                stat = (entry / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
                if int(stat[1]) == postmaster:
                    total += (int(stat[11]) + int(stat[12])) / TICK
    return total


def admission() -> Admission:
    """A frozen price with four rows, as a real model has."""
    rows = (
        Row("in_text", 2_500_000_000),
        Row("cache_read", 1_250_000_000),
        Row("out_text", 10_000_000_000),
        Row("in_audio", 40_000_000_000),
    )
    now = datetime.now(UTC)
    version = PriceVersion(1, "bench", "sell", "", "", "USD", now, None, 1, 0, False, rows)
    return Admission("bench", "default", now, Tariff(version))


def fill(owner_dsn: str, case: Case) -> list[int]:
    """Accounts with two grants each, and two typed quotas where the case has them (half of the calls ask)."""
    with psycopg.connect(owner_dsn, autocommit=True) as connection:
        ids = [
            int(row[0])
            for row in connection.execute(
                "insert into accounts (name) select %s || n from generate_series(1, %s) n returning id",
                (f"{case.name} {time.monotonic_ns()} ", case.accounts),
            )
        ]
        for source, priority, expires in (("plan_period", 0, "30 days"), ("purchase", 30, None)):
            _grants(connection, ids, "credit", 10**15, source, priority, expires)
        if case.quotas:
            _grants(connection, ids, "text_tokens", 10**13, "plan_period", 0, "30 days")
            _grants(connection, ids, "images", 10**6, "purchase", 30, None)
        if case.budgets:
            connection.execute(
                "insert into budgets (scope, scope_id, maximum) select 'account', unnest(%s::bigint[]), 1e18",
                (ids,),
            )
            connection.execute(
                "insert into budgets (scope, maximum) values ('global', 1e18) on conflict do nothing"
            )
        connection.execute("analyze")
    return ids


def _grants(
    connection: "psycopg.Connection[tuple[object, ...]]",
    ids: list[int],
    unit: str,
    amount: int,
    source: str,
    priority: int,
    expires: str | None,
) -> None:
    connection.execute(
        "select ledger_grant(id, %s, %s, %s, %s || id, %s, now() + %s::interval, 'bench', 'bench')"
        " from unnest(%s::bigint[]) id",
        (unit, amount, source, f"{source}:", priority, expires, ids),
    )


class Callers:
    """`count` callers that hold and capture one after the other, without a pause, for a while."""

    def __init__(self, ledger: Ledger, case: Case, accounts: list[int], count: int) -> None:
        self._ledger = ledger
        self._case = case
        self._accounts = accounts
        self._count = count
        self._admission = admission()
        self._end = 0.0
        self.latencies: list[float] = []

    async def run(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        await asyncio.gather(*(self._caller(number) for number in range(self._count)))

    async def _caller(self, number: int) -> None:
        call, turn = number, number
        while time.monotonic() < self._end:
            began = time.monotonic()
            await self._pair(new_request_id(), self._accounts[call % len(self._accounts)], turn % 2 == 0)
            turn += 1
            self.latencies.append(time.monotonic() - began)
            call += self._count

    async def _pair(self, request_id: UUID, account: int, quotas: bool) -> None:
        now = datetime.now(UTC)
        bound = self._admission.bound(MaxUsage(input_units=900, max_output=400))
        if not (quotas and self._case.quotas):
            bound = replace(bound, quotas={})
        expires_at = now + timedelta(minutes=10)
        order = HoldOrder(request_id, account, account, self._admission, bound, expires_at)
        hold = await self._ledger.hold(order)
        facts = CallFacts(
            "ok", 1, True, None, now, 850, 120, ({"channel_id": 1, "outcome": "ok", "ms": 850},)
        )
        await self._ledger.capture(CaptureOrder(hold, METERS, USAGE, facts))


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def measure(dsn: str, owner_dsn: str, case: Case, way: str, callers: int, seconds: float) -> Figures:
    """Run one case one way: "group commit", or "one transaction a call" (a batch is never more than one)."""
    accounts = fill(owner_dsn, case)
    postmaster = postmaster_of(owner_dsn)
    ledger = Ledger(dsn, max_batch=512 if way == "group commit" else 1)
    await ledger.start()
    work = Callers(ledger, case, accounts, callers)
    await work.run(1.0)
    work.latencies.clear()
    before = (server_cpu(postmaster), time.process_time(), time.monotonic())
    await work.run(seconds)
    after = (server_cpu(postmaster), time.process_time(), time.monotonic())
    await ledger.close()
    pairs = len(work.latencies)
    return Figures(
        case.name,
        way,
        callers,
        pairs,
        round(pairs / (after[2] - before[2])),
        round((after[0] - before[0]) / pairs * 1e6, 1),
        round((after[1] - before[1]) / pairs * 1e6, 1),
        round(percentile(work.latencies, 0.5) * 1000, 1),
        round(percentile(work.latencies, 0.99) * 1000, 1),
    )


def postmaster_of(dsn: str) -> int:
    """The process id of the server's first process."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select pg_backend_pid()").fetchone()
        if row is None:
            raise RuntimeError("no backend")
        stat = Path(f"/proc/{row[0]}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return int(stat[1])


def table(figures: list[Figures]) -> str:
    """The figures for people."""
    lines = [
        f"{'case':44} {'way':22} {'callers':>7} {'pairs/s':>8} {'PostgreSQL µs':>14} {'relay µs':>9}"
        f" {'p50 ms':>7} {'p99 ms':>7}"
    ]
    lines += [
        f"{f.case:44} {f.way:22} {f.callers:7} {f.pairs_per_second:8.0f} {f.postgres_us:14.1f}"
        f" {f.relay_us:9.1f} {f.p50_ms:7.1f} {f.p99_ms:7.1f}"
        for f in figures
    ]
    return "\n".join(lines)


def run(dsn: str, owner_dsn: str, callers: int, seconds: float, cases: list[Case]) -> list[Figures]:
    """All cases both ways, side by side."""
    figures = []
    for case in cases:
        for way in ("group commit", "one transaction a call"):
            figures.append(uvloop.run(measure(dsn, owner_dsn, case, way, callers, seconds)))
            print(table(figures[-1:]).splitlines()[1], file=sys.stderr, flush=True)
    return figures


@contextmanager
def database(dsn: str | None, owner_dsn: str | None) -> Iterator[tuple[str, str]]:
    """The given database, or one of a server that lives as long as the run."""
    if dsn and owner_dsn:
        yield dsn, owner_dsn
        return
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as directory:
        server = initdb(Path(directory))
        with (server.data / "postgresql.conf").open("a") as config:
            config.write("fsync = on\n")
        server.control("start")
        try:
            prepare(server)
            made = make_database(server)
            yield made.app_dsn, made.superuser_dsn
        finally:
            server.control("stop", "-m", "fast")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=200, help="at a time (default: %(default)s)")
    parser.add_argument(
        "--dsn", help="of relay_app, to a migrated database on this machine (default: its own)"
    )
    parser.add_argument("--owner-dsn", help="of its owner, to the same database")
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="only this case")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    cases = CASES if options.case is None else [CASES[options.case]]
    with database(options.dsn, options.owner_dsn) as (dsn, owner_dsn):
        figures = run(dsn, owner_dsn, options.callers, options.seconds, cases)
    print(json.dumps([asdict(f) for f in figures]) if options.json else table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
