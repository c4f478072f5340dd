"""Restore drills on the ops host: they are due, and can write down what they find."""

from __future__ import annotations

import json
from typing import Any

from tests.checklist.targets import hosts

testinfra_hosts = hosts("ops")[:1]


def test_the_timer_runs(host: Any) -> None:
    """A drill is due, and the last one did not break off."""
    assert host.service("relay-drill.timer").is_running
    assert host.service("relay-drill.timer").is_enabled
    assert host.check_output("systemctl show --value --property Result relay-drill.service") == "success"


def test_figures_are_written(host: Any) -> None:
    """The figures that the alerts look at can be written, and say how old a drill may be."""
    host.check_output("relay-backups drill figures")
    figures = host.check_output("cat /var/lib/prometheus/node-exporter/drill.prom")
    assert "drill_max_age_seconds " in figures


def test_nothing_of_a_drill_is_left(host: Any) -> None:
    """No scratch instance of a drill is left behind."""
    left = json.loads(host.check_output("relay-backups scratch list --json"))
    assert [one for one in left if one["kind"] == "drill" and not one["runs"]] == []


def test_keys_are_private(host: Any) -> None:
    """The key that signs is root's, those of the store are pgBackRest's, too."""
    for path, group, mode in (
        ("/etc/relay/drill.key", "root", 0o600),
        ("/etc/relay/drill.reference", "root", 0o600),
        ("/etc/pgbackrest/drill.conf", "postgres", 0o640),
        ("/etc/pgbackrest/receipts.conf", "postgres", 0o640),
    ):
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", group, mode)
