"""The sandbox's certificate authority."""

from __future__ import annotations

from typing import Any

from deploys.lib import fleet
from deploys.roles import pebble
from tests.checklist.targets import hosts, reached

testinfra_hosts = hosts("provider")


def test_it_runs(host: Any) -> None:
    """pebble and its name server run, also after a boot, and its root is where others look for it."""
    for unit in pebble.UNITS:
        assert host.service(unit).is_running, unit
        assert host.service(unit).is_enabled, unit
    shown = host.run(f"curl -sf https://localhost:{pebble.MANAGEMENT}/roots/0").stdout
    assert "BEGIN CERTIFICATE" in shown
    assert host.file(pebble.ROOT).content_string == shown


def test_only_edges_ask_it() -> None:
    """Its directory is open to the edges alone."""
    ends = {(node.address, pebble.PORT) for node in fleet.hosts("provider")}
    for node in fleet.hosts("edge"):
        assert reached(node.name, ends) == ends
    assert reached(fleet.hosts("app")[0].name, ends) == set()
