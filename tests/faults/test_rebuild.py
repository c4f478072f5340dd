"""A host of each role comes back empty: one apply takes it in, and nothing is left to change."""

from __future__ import annotations

import pytest

from tests.fleet.conftest import deploys

HOSTS = ("edge1", "app1", "app3", "db1", "db2", "ops1", "vault1", "provider1")


@pytest.mark.parametrize("host", HOSTS)
def test_one_apply_takes_an_empty_host_in(host: str) -> None:
    deploys("sandbox", "rebuild", host).ended_well()
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()
    deploys("verify", "sandbox", "--wait", "90").ended_well()
