"""Fast failover: every database host watches the primary, and no fence is up."""

from __future__ import annotations

import json
from typing import Any

from deploys.lib import fleet
from deploys.roles.failover import FENCE, FIGURES
from tests.checklist.targets import hosts

testinfra_hosts = hosts("db")


def test_dead_primaries_are_watched_for(host: Any) -> None:
    """The watcher runs and would act, where it is switched on; else it is gone."""
    wanted = bool(fleet.setting("fast_failover"))
    assert host.service("relay-failover-watch").is_running == wanted
    assert host.service("relay-failover-watch").is_enabled == wanted
    if wanted:
        figures = host.file(FIGURES).content_string
        assert "failover_watch_ready 1\n" in figures


def test_no_fence_is_up(host: Any) -> None:
    """No host is cut off from a primary by a fence."""
    assert not host.file(FENCE).exists
    tables = json.loads(host.check_output("nft -j list tables") or "{}").get("nftables", [])
    assert "relay_failover" not in [entry.get("table", {}).get("name") for entry in tables]


def test_a_fence_is_back_before_postgresql_after_a_reboot(host: Any) -> None:
    """Patroni puts it back before it starts PostgreSQL."""
    if fleet.setting("fast_failover"):
        shown = host.check_output("systemctl show patroni.service --property ExecStartPre")
        assert "relay-failover-watch" in shown
        assert "--restore" in shown
