"""The sandbox's certificate authority on a fake host."""

from __future__ import annotations

import json
from typing import Any

from deploys.roles import acme, monitoring, pebble

ROOT = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
TRUST = "/etc/relay/tls/edge-ca.crt"


def test_names_lead_to_every_edge(plain_role: Any) -> None:
    unit = plain_role(pebble.pebble, "provider1").files["/etc/systemd/system/pebble-names.service"]
    record = '{"host": "api.sandbox.test", "addresses": ["172.30.77.11", "172.30.77.12"]}'
    assert f"-d '{record}' http://127.0.0.1:8055/add-a" in unit


def test_it_asks_the_edges_usual_ports_with_the_hosts_certificate(plain_role: Any) -> None:
    files = plain_role(pebble.pebble, "provider1").files
    told = json.loads(files[pebble.CONFIG])["pebble"]
    assert (told["httpPort"], told["certificate"]) == (80, "/etc/relay/tls/host.crt")
    assert told["managementListenAddress"].startswith("127.0.0.1:")
    unit = files["/etc/systemd/system/pebble.service"]
    assert f"--cacert /etc/relay/tls/ca.crt -o {pebble.ROOT}.new https://localhost:15000/roots/0" in unit
    assert "User=provider\n" in unit


def test_its_root_is_trusted_by_edges_and_probes(fake_role: Any) -> None:
    others = {"provider1": {f"cat {pebble.ROOT}": ROOT.splitlines()}}
    for role, host in ((acme.acme, "edge2"), (monitoring.monitoring, "ops1")):
        assert fake_role(role, host, others=others).files[TRUST] == ROOT
        assert TRUST not in fake_role(role, host, data={"edge_certificate": "fleet"}).files
    told = json.loads(fake_role(acme.acme, "edge1", others=others).files[acme.SETTINGS])
    assert told["directory"] == "https://provider1.sandbox.test:14000/dir"
    assert (told["ca_file"], told["trusted"]) == ("/etc/relay/tls/ca.crt", TRUST)


def test_while_it_is_away_nobody_forgets_its_root(fake_role: Any) -> None:
    for role, host in ((acme.acme, "edge2"), (monitoring.monitoring, "ops1")):
        outcome = fake_role(role, host, dead=["provider1"])
        assert TRUST not in outcome.files
        assert not [line for line in outcome.commands if "rm " in line and TRUST in line]


def test_elsewhere_nobody_is_told_to_trust_it(fake_role: Any) -> None:
    public = {"edge_acme_directory": "https://acme.example/dir"}
    outcome = fake_role(acme.acme, "edge1", data=public)
    assert TRUST not in outcome.files
    told = json.loads(outcome.files[acme.SETTINGS])
    assert (told["directory"], told["ca_file"], told["trusted"]) == ("https://acme.example/dir", "", "")


def test_probes_trust_whom_the_environment_says(fake_role: Any) -> None:
    def probed(**data: str) -> str:
        outcome = fake_role(monitoring.monitoring, "ops1", data=data)
        text: str = outcome.files["/etc/prometheus/blackbox.yml"]
        return text[text.index("  edge:") : text.index("  # The image registry")]

    assert f"ca_file: {TRUST}" in probed()
    assert "ca_file: /etc/relay/tls/ca.crt" in probed(edge_certificate="fleet")
    public = {"edge_acme_directory": "https://acme.example/dir"}
    assert "ca_file" not in probed(**public)
    assert "ca_file: /etc/private-ca.crt" in probed(edge_ca_file="/etc/private-ca.crt", **public)
