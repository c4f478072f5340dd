"""The probe: calls through every edge, as a customer makes them, succeed."""

from __future__ import annotations

import json
import time
from typing import Any

from deploys.lib import fleet
from deploys.roles import probe
from tests.checklist.targets import hosts

testinfra_hosts = hosts("ops")[:1]

MINUTES = 3


def test_it_calls_each_minute(host: Any) -> None:
    """It runs, and what it saw last is not older than three minutes."""
    assert host.service(probe.UNIT).is_running
    assert host.service(probe.UNIT).is_enabled
    age = time.time() - host.file(probe.FIGURES).mtime.timestamp()
    assert age < 60 * MINUTES


def test_a_customers_call_succeeds_through_every_edge(host: Any) -> None:
    """A model answers, whole and streaming, through every edge."""
    seen = [json.loads(line) for line in host.run("relay-probe --json").stdout.splitlines()]
    assert {one["edge"] for one in seen} == {node.name for node in fleet.hosts("edge")}
    assert [f"{one['edge']} {one['kind']}: {one['words']}" for one in seen if one["why"]] == []


def test_its_token_is_private(host: Any) -> None:
    """The token is known to root only."""
    file = host.file(probe.SETTINGS)
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
