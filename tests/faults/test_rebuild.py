"""Hosts of each role come back empty, one or several at once: one apply takes them in."""

from __future__ import annotations

import pytest

from tests.fleet.conftest import deploys

# The last: several at once, of which each cluster loses no more than it can.
HOSTS = ("edge1", "app1", "app3", "db1", "db2", "ops1", "vault1", "provider1", "edge2 app2 db3")


@pytest.mark.parametrize("hosts", HOSTS)
def test_one_apply_takes_empty_hosts_in(hosts: str) -> None:
    for host in hosts.split():
        deploys("sandbox", "rebuild", host).ended_well()
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()
    deploys("verify", "sandbox", "--wait", "90").ended_well()
