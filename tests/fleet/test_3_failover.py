"""Faults of the database while a writer writes and customers call: what was acknowledged is there afterwards.

test_3_faults compares the books with these calls too. The long form is `make failovers RUNS=20`.
"""

from __future__ import annotations

import pytest

from deploys.sandbox import remote
from tests.faults import failover_drill as drill
from tests.fleet.customers import Customers, failures

# The last ones, which began when all was whole again.
SERVED_CALLS = 20
# Longer than Patroni's lease where the watchers should be quicker than it.
AFTER_SECONDS, AFTER_DEATH_SECONDS = 12, 25
FAULTS = (
    drill.kill_primary,
    drill.freeze_primary,
    drill.cut_primary_off,
    drill.kill_postgres,
    drill.kill_all_etcd,
)
# Nobody renews the key, so it is the watchers that end the outage. They take no machine that stands still for
# a dead host, so that Patroni's lease may end before they are sure: once, not always. `make failovers` tells
# how long the outages are.
DEAD = (drill.kill_primary, drill.freeze_primary)
TRIES = 2


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_was_acknowledged_is_there(customers: Customers, fault: drill.Fault) -> None:
    for _ in range(TRIES if fault in DEAD else 1):
        with customers.calling(remote.addresses("edge")) as calls:
            result = drill.strike(fault, AFTER_DEATH_SECONDS if fault in DEAD else AFTER_SECONDS)
        print(drill.row(result), flush=True)
        assert failures(calls[-SERVED_CALLS:]) == []
        assert result.acknowledged
        assert result.lost == 0
        assert result.back == "by itself"
        if result.released:
            break
    if fault in DEAD:
        assert result.released, "no watcher has acted: Patroni's lease ended it"
