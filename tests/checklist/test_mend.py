"""What the healer may do to a host: its program is there, and does only what the host's roles allow."""

from __future__ import annotations

import json
from typing import Any

from deploys.lib import fleet
from deploys.roles import mend
from tests.checklist.targets import answers, hosts

testinfra_hosts = hosts("all")


def test_the_healer_can_be_taken_in(host: Any) -> None:
    """The socket for the healer's requests listens; no program runs while there is none."""
    assert host.service("relay-mend.socket").is_running
    assert host.service("relay-mend.socket").is_enabled


def test_only_the_first_ops_host_may_ask(host: Any) -> None:
    """Requests are taken from the certificate of the one host that heals."""
    rules = json.loads(host.run("cat /etc/relay/mend.json").stdout)
    assert rules["healers"] == [mend.healer_host().fqdn]


def test_what_is_forbidden_is_refused(host: Any) -> None:
    """No unit of the database, the swarm or SSH may be restarted, and no unknown action is done."""
    units = ("patroni.service", "etcd.service", "docker.service", "ssh.service", "reboot.target")
    calls = [*(["restart-unit", unit] for unit in units), ["failover"]]
    *found, unknown = answers(host, mend.PROGRAM, calls)
    for unit, answer in zip(units, found, strict=True):
        assert answer.rc == 3, f"{unit}: {answer}"
    assert unknown.rc == 2, f"failover: {unknown}"


def test_what_is_well_is_left_alone(host: Any) -> None:
    """A unit that runs and answers is not restarted."""
    found = host.run("relay-mend restart-unit prometheus-node-exporter.service")
    assert found.rc == 4, found.stderr


def test_everything_that_may_be_restarted_is_there_or_unknown(host: Any) -> None:
    """Exporters that alerts name run on the host whose list they are on."""
    node = next(node for node in fleet.all_hosts() if node.name == host.backend.host.name)
    for unit in mend.exporters(node).values():
        assert host.service(unit.removesuffix(".service")).is_running, unit
