"""What each host opens to whom, and that what no role opened is closed."""

from __future__ import annotations

from typing import Any

import pytest
from pyinfra.api.deploy import deploy

from deploys.roles import base, firewall

PRESENT = [
    "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in",
    "### tuple ### allow tcp 5432 0.0.0.0/0 any 172.30.77.21 in",
    "### tuple ### allow tcp 5432 0.0.0.0/0 any 172.30.77.99 in",
    "### tuple ### allow udp 4789 0.0.0.0/0 any 172.30.77.21 in",
    "### tuple ### allow tcp 8080 0.0.0.0/0 any 0.0.0.0/0 in",
]
EDGE, APP, DB, OPS = ("11", "12"), ("21", "22", "23"), ("31", "32", "33"), ("41",)


@deploy("Site")
def _site() -> None:
    base.base()
    firewall.firewall()


def _allowed(outcome: Any) -> set[str]:
    """``tcp 5432 21``: protocol, port, and the last part of the address."""
    lines = [line.split() for line in outcome.commands if line.startswith("ufw allow")]
    return {f"{line[3]} {line[-1]} {line[5].removeprefix('172.30.77.')}" for line in lines}


def _rules(proto: str, ports: tuple[int, ...], *sources: str) -> set[str]:
    return {f"{proto} {port} {source}" for port in ports for source in sources}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("edge1", _rules("tcp", (80, 443), "any") | _rules("tcp", (9113, 9118), *OPS)),
        (
            "app1",
            _rules("tcp", (2377, 7946), *APP)
            | _rules("udp", (7946, 4789), *APP)
            | _rules("tcp", (9323, 9434), *OPS),
        ),
        (
            "db1",
            _rules("tcp", (2379, 2380, 8008), *DB)
            | _rules("tcp", (5432,), *DB, *APP, *OPS)
            | _rules("tcp", (2381, 8008, 9187), *OPS),
        ),
        (
            "ops1",
            _rules("tcp", (5000, 6379), *APP, *OPS)
            | _rules("tcp", (9121,), *OPS)
            | _rules("tcp", (9427,), *EDGE, *APP, *DB, *OPS, "51", "61")
            | _rules("tcp", (9431,), *EDGE, *OPS),
        ),
        ("vault1", _rules("tcp", (8333,), *DB, *OPS, *EDGE, "21") | _rules("tcp", (9327,), *OPS)),
        ("provider1", _rules("tcp", (9443,), "any") | _rules("tcp", (14000,), *EDGE)),
    ],
)
def test_a_host_opens_what_its_roles_need_and_no_more(plain_role: Any, host: str, expected: set[str]) -> None:
    everywhere = _rules("tcp", (22,), "any") | _rules("tcp", (9100, 9120), *OPS)
    assert _allowed(plain_role(base.base, host)) == expected | everywhere


def test_rules_that_are_there_are_left_alone(fake_role: Any) -> None:
    opened = _allowed(fake_role(base.base, "db1", responses={"user.rules": PRESENT}))
    assert {rule for rule in opened if " 5432 " in rule} == _rules("tcp", (5432,), *DB, "22", "23", *OPS)


def test_ssh_is_open_before_the_rest_is_closed(plain_role: Any) -> None:
    commands = [line for line in plain_role(base.base, "db1").commands if line.startswith("ufw")]
    assert commands[-3:] == ["ufw default deny incoming", "ufw default allow outgoing", "ufw --force enable"]
    assert "ufw allow proto tcp from any to any port 22" in commands


def test_rules_that_no_role_needs_go(fake_role: Any) -> None:
    outcome = fake_role(_site, "db1", responses={"user.rules": PRESENT})
    assert [line for line in outcome.commands if line.startswith("ufw delete")] == [
        "ufw delete allow proto tcp from 172.30.77.99 to any port 5432",
        "ufw delete allow proto tcp from any to any port 8080",
        "ufw delete allow proto udp from 172.30.77.21 to any port 4789",
    ]
    # What they let in goes on otherwise: a database host that left kept its place in the cluster.
    (ended,) = [line for line in outcome.commands if line.startswith("ss ")]
    assert "dst 172.30.77.99 sport = :5432" in ended


def test_ssh_is_narrowed_to_the_networks_of_the_setting(fake_role: Any) -> None:
    data = {"ssh_allowed_from": ["192.0.2.0/24"]}
    outcome = fake_role(_site, "db1", responses={"user.rules": PRESENT[:2]}, data=data)
    changes = [line for line in outcome.commands if line.startswith("ufw") and "port 22" in line]
    assert changes == [
        "ufw allow proto tcp from 192.0.2.0/24 to any port 22",
        "ufw delete allow proto tcp from any to any port 22",
    ]


def test_a_protocol_without_ports_is_known_again(fake_role: Any) -> None:
    present = ["### tuple ### allow vrrp any 0.0.0.0/0 any 172.30.77.12 in", PRESENT[0]]
    data = {"edge_virtual_address": "172.30.77.10/24"}
    outcome = fake_role(_site, "edge1", responses={"user.rules": present}, data=data)
    assert [line for line in outcome.commands if "vrrp" in line] == [
        "ufw allow proto vrrp from 172.30.77.11 to any"
    ]
    left = fake_role(_site, "edge1", responses={"user.rules": present})
    assert "ufw delete allow proto vrrp from 172.30.77.12 to any" in left.commands
