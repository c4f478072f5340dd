"""The primary's disk fills while customers call: it hands over by itself, and no call is refused for long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploys.sandbox import remote
from tests.faults.small_disk import FILL, sh, small_disk
from tests.fleet.conftest import deploys
from tests.fleet.customers import Customers, call_while, failures
from tests.fleet.patroni import leader, members, switch_over

HOST = "db1"


@pytest.fixture
def filling() -> Iterator[None]:
    with small_disk(HOST):
        yield
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()


def test_a_primary_whose_disk_fills_hands_over(filling: None) -> None:
    if (primary := leader()) != HOST:
        switch_over(primary, HOST)

    def fill() -> None:
        sh(HOST, FILL)

    calls, since = call_while(Customers(), remote.addresses("edge"), 20, fill, forgiven=10)
    assert leader() != HOST
    late = [call for call in calls if call.began >= since]
    assert failures(late) == []
    said = sh(HOST, "journalctl -u relay-disk-watch -n 20 -o cat --no-pager")
    assert "freeing the reserve" in said
    assert "handing over to" in said
    figures = sh(HOST, "cat /var/lib/prometheus/node-exporter/postgres_disk.prom")
    assert "postgres_disk_handovers_total 1" in figures
    (own,) = [member for member in members() if member["Member"] == HOST]
    assert own["State"] == "streaming"
