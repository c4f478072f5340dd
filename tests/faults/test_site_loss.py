"""The site is lost while customers call: whoever reads only the runbook brings it back on new hosts.

Database and relay hosts are lost, then every host but the store's, which stands for another site's, and the
provider's. Acknowledged calls are counted against those that are there again.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from deploys.sandbox import remote
from deploys.sandbox.remote import relayctl
from tests.fleet import runbook
from tests.fleet.conftest import backups, deploys
from tests.fleet.customers import Customers
from tests.fleet.load import Call
from tests.fleet.test_3_restore import captured

# WAL is archived a minute after it was written at the latest, and takes seconds to get there.
ARCHIVED_WITHIN = timedelta(seconds=75)
CALLING_SECONDS = 100


def lose_and_rebuild(hosts: Sequence[str]) -> None:
    """Hosts disappear in the middle of calls; `rebuild` brings all back; what is missing is what it says."""
    customers = Customers()
    load = customers.load(remote.addresses("edge"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: asyncio.run(load.run(CALLING_SECONDS)))
        time.sleep(CALLING_SECONDS - 5)
        lost_at = datetime.now(UTC)
        deploys("sandbox", "rebuild", *hosts).ended_well()
        calls = running.result()

    began = time.monotonic()
    moment = {"production": "sandbox", "2026-11-26T05:00:00Z": lost_at.isoformat()}
    told = runbook.follow("4. All database hosts are lost", moment)
    print(f"{len(hosts)} hosts rebuilt in {time.monotonic() - began:.0f} s", flush=True)

    acknowledged = {call.request_id: call for call in calls if call.ok}
    there = captured(customers.account)
    missing = sorted(set(acknowledged) - set(there))
    print(
        f"acknowledged {len(acknowledged)}, found {len(there)}, lost with the site {len(missing)}", flush=True
    )
    at = datetime.fromisoformat(found(r"last transaction: (\S+)$", told))
    assert lost_at - ARCHIVED_WITHIN < at < lost_at
    gap = float(found(r"what was committed in the (\S+) s from then to", told))
    assert abs(gap - (lost_at - at).total_seconds()) < 1
    assert int(found(r"calls that ran then: (\d+),", told)) >= 0
    early = ended_by(calls, at - timedelta(seconds=1))
    assert early
    assert {call.request_id for call in early if call.ok} <= set(there)
    assert_serves(customers)


def found(pattern: str, text: str) -> str:
    """What the group of the pattern is in the text, the last time."""
    return str(re.findall(pattern, text, re.MULTILINE)[-1])


def ended_by(calls: Sequence[Call], until: datetime) -> list[Call]:
    """Calls that had ended by then; a call knows seconds of this machine's monotonic clock."""
    shift = datetime.now(UTC).timestamp() - time.monotonic()
    return [call for call in calls if call.ended + shift < until.timestamp()]


def assert_serves(customers: Customers) -> None:
    """Tokens of before work, the books agree, backups and checklist are green."""
    calls = asyncio.run(customers.load(remote.addresses("edge")).run(5))
    assert [call for call in calls if not call.ok] == []
    assert relayctl("audit", "conserve")["ok"]
    assert relayctl("audit", "recompute")["ok"]
    assert backups("status", "sandbox")["well"]
    deploys("plan", "sandbox").ended_well()
    deploys("verify", "sandbox", "--wait", "120").ended_well()


@pytest.mark.parametrize("groups", [("db", "app"), ("edge", "app", "db", "ops")], ids=" ".join)
def test_hosts_are_lost(groups: Sequence[str]) -> None:
    lose_and_rebuild([host for group in groups for host in remote.addresses(group)])
