"""The edge's public certificates, as the authority issued them."""

from __future__ import annotations

from typing import Any

from deploys.lib import edge_names, fleet
from deploys.roles import acme
from tests.checklist.targets import hosts, on

testinfra_hosts = hosts("edge")

KEYS = f"cat {acme.KEYS}/*.key"
STORED = f"cat {edge_names.CERTIFICATES}/edge-*.crt"


def test_certificates_are_in_place(host: Any) -> None:
    """Certificates of the authority are in place and loaded: for the wanted keys and names, and not ended."""
    if edge_names.by_acme():
        done = host.run(f"{acme.PROGRAM} status")
        assert done.rc == 0, done.stderr


def test_renewal_is_set_up(host: Any) -> None:
    """A timer renews, also after a boot; the last run was well; certbot's own timer is off."""
    if edge_names.by_acme():
        assert host.service("relay-acme.timer").is_running
        assert host.service("relay-acme.timer").is_enabled
        assert not host.service("certbot.timer").is_enabled
        assert host.run("systemctl is-failed --quiet relay-acme.service").rc != 0


def test_keys_are_roots(host: Any) -> None:
    """Keys are readable by root only."""
    if edge_names.by_acme():
        assert oct(host.file(acme.KEYS).mode) == "0o700"
        for kind in edge_names.KINDS:
            key = host.file(f"{acme.KEYS}/{kind}.key")
            assert (key.user, oct(key.mode)) == ("root", "0o600")


def test_edges_are_one() -> None:
    """All edges have the same keys, and a certificate that any other can use."""
    if edge_names.by_acme():
        edges = [on(node.name) for node in fleet.hosts("edge")]
        for command in (KEYS, STORED):
            assert len({edge.run(command).stdout for edge in edges}) == 1, command


def test_any_edge_answers_challenges(host: Any) -> None:
    """An answer to a challenge is found by way of every edge; strangers learn nothing else."""
    if not edge_names.by_acme():
        return
    path = ".well-known/acme-challenge/checklist"
    host.run_expect([0], f"echo answer | install -D -m 644 /dev/stdin {edge_names.WEBROOT}/{path}")
    try:
        for node in fleet.hosts("edge"):
            url = f"http://{edge_names.api()[0]}/{path}"
            answer = host.run(f"curl -s --resolve {edge_names.api()[0]}:80:{node.address} {url}").stdout
            assert answer.strip() == "answer", node.name
    finally:
        host.run(f"rm -f {edge_names.WEBROOT}/{path}")
