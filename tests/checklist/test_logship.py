"""Logs of every host: they are collected, and arrive."""

from __future__ import annotations

import re
import time
from typing import Any

from deploys.lib import fleet
from deploys.roles import logship
from tests.checklist.targets import hosts, on

testinfra_hosts = hosts("all")
ARRIVE_SECONDS = 10
# By how much the hosts' clocks may differ.
CLOCKS_SECONDS = 2
FIGURES = "/var/lib/prometheus/node-exporter/log_store.prom"
LAST_LINE = re.compile(r'^log_host_last_line_timestamp_seconds\{host="([^"]+)"\} (\S+)$', re.MULTILINE)


def test_syslog_ng_runs(host: Any) -> None:
    """syslog-ng collects the host's logs, also after a boot."""
    assert host.service("syslog-ng").is_running
    assert host.service("syslog-ng").is_enabled
    assert host.run(f"syslog-ng --syntax-only -f {logship.CONFIG}").rc == 0
    assert host.service("relay-logship.timer").is_running


def test_its_configuration_and_buffer_are_private(host: Any) -> None:
    """What waits to be sent is for root only."""
    assert host.file(logship.CONFIG).mode == 0o600
    assert host.file(logship.BUFFER).mode == 0o700
    assert host.file(logship.BUFFER).user == "root"


def test_lines_arrive_redacted() -> None:
    """A line of every host is in the store within ten seconds, without the key that stood in it."""
    mark, key = f"check{time.time_ns()}", "sk-0123456789abcdefghij"
    names = {node.name for node in fleet.all_hosts()}
    for name in names:
        on(name).check_output("logger -t relay-check '%s key %s'", mark, key)
    store = on(fleet.hosts("ops")[0].name)
    deadline = time.monotonic() + ARRIVE_SECONDS
    found = ""
    while not all(f'"host":"{name}"' in found.replace(": ", ":") for name in names):
        assert time.monotonic() < deadline, f"arrived: {found}"
        time.sleep(1)
        found = store.check_output("relay-logs query --since 5m -- %s", mark)
    assert key not in found
    assert "[redacted]" in found


def test_every_host_shows_that_it_lives() -> None:
    """The line that each host writes every minute is in the store within ten seconds."""
    names = {node.name for node in fleet.all_hosts()}
    store = on(fleet.hosts("ops")[0].name)
    began = int(store.check_output("date +%s"))
    for name in names:
        on(name).check_output("systemctl start relay-logship.service")
    deadline = time.monotonic() + ARRIVE_SECONDS
    silent = names
    while silent:
        assert time.monotonic() < deadline, f"silent: {', '.join(sorted(silent))}"
        # systemd refuses more than five starts in ten seconds.
        time.sleep(3)
        store.check_output("relay-logs figures")
        last = dict(LAST_LINE.findall(store.check_output(f"cat {FIGURES}")))
        silent = {name for name in names if float(last.get(name, 0)) < began - CLOCKS_SECONDS}
