"""The cluster goes back to a moment of a busy minute, then to the present: calls are counted on each side."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deploys.sandbox import remote
from tests.fleet import runbook
from tests.fleet.conftest import backups
from tests.fleet.customers import Customers
from tests.fleet.load import Call
from tests.fleet.patroni import query

BUSY_SECONDS = 20
NAME = "sandbox/relay"
# Request id: (transaction, time of the entry).
Captured = dict[str, tuple[str, datetime]]
# From a transaction's begin to its commit, at most, where two processors carry the whole fleet.
CLOSE = timedelta(seconds=4)


def over_cluster(*target: str) -> dict[str, Any]:
    """Restores over the cluster, and prints how long nobody could write."""
    words = ("restore", "sandbox", "--over-cluster", NAME, *target, "--yes", "--reason", "fleet test")
    result = dict(backups(*words)["result"])
    print(
        f"restored {' '.join(target)}: writable after {result['writable_seconds']} s, "
        f"three streaming after {result['streaming_seconds']} s",
        flush=True,
    )
    return result


def captured(account: int) -> Captured:
    """Each captured call of the account."""
    columns = "request_id, xmin, created_at"
    rows = query(
        f"select {columns} from entries where kind = 'capture' and account_id = {account} order by id"  # noqa: S608 - a number
    )
    found = [line.split("|") for line in rows.splitlines()]
    return {request: (xid, datetime.fromisoformat(at)) for request, xid, at in found}


def assert_cut(before: Captured, after: Captured, *, until: datetime, since: datetime) -> None:
    """What began before `until` is there, what began at `since` or later is not.

    An entry knows when its transaction began; a restore goes by when it was committed, a little later.
    """
    assert after.items() <= before.items()
    assert {key for key, (_, at) in before.items() if at < until} <= set(after)
    assert not {key for key in after if before[key][1] >= since}
    assert 0 < len(after) < len(before)


@pytest.fixture(scope="module")
def busy() -> tuple[Customers, list[Call], datetime]:
    """A busy time with a moment in its middle; the calls that were acknowledged."""
    customers = Customers()
    with ThreadPoolExecutor(1) as pool:
        load = customers.load(remote.addresses("edge"))
        running = pool.submit(lambda: asyncio.run(load.run(BUSY_SECONDS)))
        time.sleep(BUSY_SECONDS / 2)
        moment = datetime.now(UTC).replace(microsecond=0)
        calls = running.result()
    assert [call for call in calls if not call.ok] == []
    return customers, calls, moment


def test_there_and_back_again(busy: tuple[Customers, list[Call], datetime]) -> None:
    """By the runbook to a second, to a transaction, then to the last one again; replicas stream each time."""
    customers, calls, moment = busy
    changed = {"production": "sandbox", "2026-11-26T05:00:00Z": f"{moment:%Y-%m-%dT%H:%M:%SZ}"}
    before = captured(customers.account)
    assert {call.request_id for call in calls} == set(before)
    backup = backups("list", "sandbox")["backups"][-1]["label"]
    timeline = query("select timeline_id from pg_control_checkpoint()")

    assert "all is well" in runbook.follow("1. Look", changed)
    told = runbook.follow("3. The data is wrong", changed)
    assert "paused at" in told
    assert f"--timeline {timeline}" in told
    assert_cut(before, captured(customers.account), until=moment - CLOSE, since=moment)

    later, at = [one for one in before.values() if one[1] > moment][10]
    over_cluster("--to-transaction", later, "--set", backup, "--timeline", timeline)
    to_transaction = captured(customers.account)
    assert_cut(before, to_transaction, until=at - CLOSE, since=at + CLOSE)
    assert later in {xid for xid, _ in to_transaction.values()}

    over_cluster("--timeline", timeline)
    assert captured(customers.account) == before
    assert backups("status", "sandbox")["well"]
    runbook.follow("5. The bucket or a backup is damaged", changed)
