"""The cluster goes back to a moment of a busy minute, then to the present: calls are counted on each side."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deploys.sandbox import remote
from tests.fleet import runbook
from tests.fleet.conftest import backups
from tests.fleet.customers import Customers, failures
from tests.fleet.load import Call
from tests.fleet.patroni import query

# In each of the busy time's three parts.
CALLS = 120
# Against hanging.
AT_MOST_SECONDS = 180
NAME = "sandbox/relay"
# Request id: (transaction, time of the entry).
Captured = dict[str, tuple[str, datetime]]


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


def wait_until_well() -> None:
    """A member that has just come to life, or WAL that waits for a busy store, takes seconds."""
    deadline = time.monotonic() + AT_MOST_SECONDS
    while not (found := status())["well"]:
        assert time.monotonic() < deadline, found["next"]
        time.sleep(5)


def status() -> dict[str, Any]:
    """What `status` says; its exit code is 1 when something is wrong."""
    command = [sys.executable, "-m", "backups", "status", "sandbox", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=AT_MOST_SECONDS, check=False)
    return dict(json.loads(done.stdout)) if done.stdout else {"well": False, "next": done.stderr[-3000:]}


def captured(account: int) -> Captured:
    """Each captured call of the account."""
    columns = "request_id, xmin, created_at"
    rows = query(
        f"select {columns} from entries where kind = 'capture' and account_id = {account} order by id"  # noqa: S608 - a number
    )
    found = [line.split("|") for line in rows.splitlines()]
    return {request: (xid, datetime.fromisoformat(at)) for request, xid, at in found}


def assert_cut(before: Captured, after: Captured, *, seen: set[str], since: datetime) -> None:
    """What was `seen` before the target is there, what began at `since`, after it, or later is not.

    An entry knows when its transaction began; a restore goes by when it was committed, which may be seconds
    later. So only what somebody has read is known to have been committed.
    """
    assert after.items() <= before.items()
    assert seen <= set(after)
    assert not {key for key in after if before[key][1] >= since}
    assert 0 < len(after) < len(before)


@dataclass
class Busy:
    """A busy time: its calls, and what was captured when it was looked twice, each time followed by a moment.

    What was seen was committed before its moment; what begins at the moment or later is committed after it.
    """

    customers: Customers
    calls: list[Call]
    first: Captured
    first_moment: datetime
    second: Captured
    second_moment: datetime


def look(account: int) -> tuple[Captured, datetime]:
    """What is captured, and the next whole second (UTC)."""
    found = captured(account)
    return found, datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)


@pytest.fixture(scope="module")
def busy() -> Busy:
    customers = Customers()
    with customers.calling(remote.addresses("edge")) as calls:
        more(calls)
        first, first_moment = look(customers.account)
        more(calls)
        second, second_moment = look(customers.account)
        more(calls)
    assert failures(calls) == []
    return Busy(customers, calls, first, first_moment, second, second_moment)


def more(calls: list[Call]) -> None:
    """Waits until CALLS more of the `calls` that run have begun and ended."""
    deadline = time.monotonic() + AT_MOST_SECONDS
    now = time.monotonic()
    while (made := sum(call.began > now for call in calls)) < CALLS:
        assert time.monotonic() < deadline, f"only {made} calls have ended"
        time.sleep(0.5)


def test_there_and_back_again(busy: Busy) -> None:
    """By the runbook to a second, to a transaction, then to the last one again; replicas stream each time."""
    account = busy.customers.account
    changed = {"production": "sandbox", "2026-11-26T05:00:00Z": f"{busy.first_moment:%Y-%m-%dT%H:%M:%SZ}"}
    before = captured(account)
    assert {call.request_id for call in busy.calls} == set(before)
    backup = backups("list", "sandbox")["backups"][-1]["label"]
    timeline = query("select timeline_id from pg_control_checkpoint()")

    wait_until_well()
    assert "all is well" in runbook.follow("1. Look", changed)
    told = runbook.follow("3. The data is wrong", changed)
    assert "paused at" in told
    assert f"--timeline {timeline}" in told
    assert_cut(before, captured(account), seen=set(busy.first), since=busy.first_moment)

    # Of those that were committed between the two moments.
    later = [xid for xid, at in busy.second.values() if at >= busy.first_moment][-1]
    over_cluster("--to-transaction", later, "--set", backup, "--timeline", timeline)
    to_transaction = captured(account)
    assert_cut(before, to_transaction, seen=set(busy.first), since=busy.second_moment)
    assert later in {xid for xid, _ in to_transaction.values()}

    over_cluster("--timeline", timeline)
    assert captured(account) == before
    wait_until_well()
    runbook.follow("5. The bucket or a backup is damaged", changed)
