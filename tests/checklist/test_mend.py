"""What the healer may do to a host: its program is there, and does only what the host's roles allow."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from deploys.lib import fleet
from deploys.roles import mend
from tests.checklist.targets import Answer, answers, hosts

testinfra_hosts = hosts("all")

FORBIDDEN = ("patroni.service", "etcd.service", "docker.service", "ssh.service", "reboot.target")
WELL = ("restart-unit", "prometheus-node-exporter.service")
UNKNOWN = ("failover",)


@cache
def asked(host: Any) -> dict[tuple[str, ...], Answer]:
    """What a host's program answers to each request that is made of it here."""
    calls = [*(("restart-unit", unit) for unit in FORBIDDEN), UNKNOWN, WELL]
    return dict(zip(calls, answers(host, mend.PROGRAM, calls), strict=True))


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
    for unit in FORBIDDEN:
        answer = asked(host)["restart-unit", unit]
        assert answer.rc == 3, f"{unit}: {answer}"
    assert asked(host)[UNKNOWN].rc == 2, asked(host)[UNKNOWN]


def test_what_is_well_is_left_alone(host: Any) -> None:
    """A unit that runs and answers is not restarted."""
    assert asked(host)[WELL].rc == 4, asked(host)[WELL].stderr


def test_everything_that_may_be_restarted_is_there_or_unknown(host: Any) -> None:
    """Exporters that alerts name run on the host whose list they are on."""
    node = next(node for node in fleet.all_hosts() if node.name == host.backend.host.name)
    for unit in mend.exporters(node).values():
        assert host.service(unit.removesuffix(".service")).is_running, unit
