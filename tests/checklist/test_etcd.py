"""etcd: the quorum that decides which database host is the primary."""

from __future__ import annotations

import json
from typing import Any

from deploys.lib import fleet
from tests.checklist.targets import address, hosts, on, reached

testinfra_hosts = hosts("db")

CERTIFICATE = "--cacert /etc/relay/tls/ca.crt --cert /etc/relay/tls/host.crt --key /etc/relay/tls/host.key"


def own_address(host: Any) -> str:
    return address(host.backend.host.name)


def test_quorum() -> None:
    """All members of etcd are healthy and follow one leader."""
    first = on(fleet.hosts("db")[0].name)
    health = json.loads(first.check_output("relay-etcdctl endpoint health --cluster -w json 2>/dev/null"))
    assert [member["health"] for member in health] == [True] * len(fleet.hosts("db"))
    status = json.loads(first.check_output("relay-etcdctl endpoint status --cluster -w json"))
    assert len({member["Status"]["leader"] for member in status}) == 1
    assert first.check_output("relay-etcdctl alarm list") == ""


def test_certificate_is_required(host: Any) -> None:
    """etcd refuses clients and peers without a certificate of the fleet."""
    for port, path in ((2379, "v3/kv/range"), (2380, "version")):
        url = f"https://{own_address(host)}:{port}/{path}"
        refused = host.run(f"curl --silent --http1.1 --max-time 5 --cacert /etc/relay/tls/ca.crt {url}")
        assert refused.rc not in (0, 28), f"port {port} answered without a client certificate"
        allowed = host.run(f"curl --silent --http1.1 --max-time 5 --output /dev/null {CERTIFICATE} {url}")
        assert allowed.rc == 0, f"port {port} refused the host's own certificate"


def test_plain_http_is_refused(host: Any) -> None:
    """etcd does not speak without TLS."""
    answer = host.run(f"curl --silent --max-time 5 http://{own_address(host)}:2379/v2/keys/")
    assert "HTTPS" in answer.stdout or answer.rc != 0


def test_only_database_hosts_reach_it() -> None:
    """etcd's ports are closed to the rest of the fleet."""
    members = fleet.hosts("db")
    metrics = {(node.address, 2381) for node in members}
    inside = {(node.address, port) for node in members for port in (2379, 2380)}
    for group in ("edge", "app"):
        assert reached(fleet.hosts(group)[0].name, inside) == set(), group
    assert reached(fleet.hosts("ops")[0].name, inside | metrics) == metrics


def test_returning_member_does_not_disturb(host: Any) -> None:
    """A member that was away asks before it forces an election (pre-vote)."""
    environment = host.check_output("tr '\\0' '\\n' < /proc/$(pidof etcd)/environ")
    assert "ETCD_PRE_VOTE=true" in environment.splitlines()
