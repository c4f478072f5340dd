"""The site is lost while customers call: one command brings cluster and relay back on new hosts.

Here database and relay hosts are lost; tests/faults/test_site_loss.py loses every host but the one that is
the store of another site. Acknowledged calls are counted against those that are there again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from deploys.sandbox import remote
from deploys.sandbox.remote import relayctl
from tests.fleet.conftest import deploys
from tests.fleet.load import Call
from tests.fleet.test_3_faults import Customers
from tests.fleet.test_3_restore import NAME, backups, captured

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
    words = ("rebuild", "sandbox", "--over-cluster", NAME, "--lost-at", lost_at.isoformat())
    result = backups(*words, "--yes", "--reason", "the site is lost", seconds=1500)["result"]
    print(f"{len(hosts)} hosts rebuilt in {time.monotonic() - began:.0f} s: {json.dumps(result)}", flush=True)

    acknowledged = {call.request_id: call for call in calls if call.ok}
    there = captured(customers.account)
    missing = sorted(set(acknowledged) - set(there))
    print(
        f"acknowledged {len(acknowledged)}, found {len(there)}, lost with the site {len(missing)}", flush=True
    )
    at = datetime.fromisoformat(result["last_transaction_at"])
    assert lost_at - ARCHIVED_WITHIN < at < lost_at
    assert abs(result["gap_seconds"] - (lost_at - at).total_seconds()) < 1
    early = ended_by(calls, at - timedelta(seconds=1))
    assert early
    assert {call.request_id for call in early if call.ok} <= set(there)
    assert_serves(customers)


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


def test_database_and_relay_hosts_are_lost() -> None:
    lose_and_rebuild([*remote.addresses("db"), *remote.addresses("app")])
