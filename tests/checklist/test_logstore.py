"""The log store on the ops host."""

from __future__ import annotations

import json
from typing import Any

from deploys.lib import fleet, log_store
from deploys.roles import logstore
from tests.checklist.targets import address, hosts, reached

testinfra_hosts = hosts("ops")[:1]


def test_it_runs(host: Any) -> None:
    """Both stores and their intake run, also after a boot, and what measures them; the timers are due."""
    for unit in (*logstore.UNITS, logstore.FIGURES_UNIT):
        assert host.service(unit).is_running, unit
        assert host.service(unit).is_enabled, unit
    for noun, _, _ in logstore.JOBS:
        assert host.service(f"relay-logs-{noun}.timer").is_running, noun


def test_it_can_be_asked_on_its_host_only(host: Any) -> None:
    """The stores listen on loopback; the intake answers hosts of the fleet, and tells none what is stored."""
    own = address(host.backend.host.name)
    ports = [instance.port for instance in log_store.INSTANCES]
    for port in ports:
        assert host.socket(f"tcp://127.0.0.1:{port}").is_listening
    others = {(own, port) for port in ports}
    assert reached(fleet.hosts("edge")[0].name, others) == set()
    ask = (
        "curl -s -o /dev/null -w '%%{http_code}' --cacert /etc/relay/tls/ca.crt "
        f"https://{fleet.hosts('ops')[0].fqdn}:{log_store.INTAKE_PORT}%s"
    )
    shown = "--cert /etc/relay/tls/host.crt --key /etc/relay/tls/host.key"
    assert host.run(ask % "/insert/business").stdout == "400"
    assert host.run(f"{ask % '/select/logsql/query?query=*'} {shown}").stdout == "404"


def test_its_settings_are_private(host: Any) -> None:
    """The account that writes copies is known to root only."""
    file = host.file(logstore.SETTINGS)
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
    assert json.loads(file.content_string)["hosts"] == [node.name for node in fleet.all_hosts()]
