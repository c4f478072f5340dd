"""The last stage: what no role opened is closed."""

from __future__ import annotations

from typing import Any

from pyinfra.api.deploy import deploy

from deploys.roles import base, firewall

PRESENT = [
    "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in",
    "### tuple ### allow tcp 5432 0.0.0.0/0 any 172.30.77.21 in",
    "### tuple ### allow tcp 5432 0.0.0.0/0 any 172.30.77.99 in",
    "### tuple ### allow udp 4789 0.0.0.0/0 any 172.30.77.21 in",
    "### tuple ### allow tcp 8080 0.0.0.0/0 any 0.0.0.0/0 in",
]


@deploy("Site")
def _site() -> None:
    base.base()
    base.allow([5432], ["app"])
    firewall.firewall()


def test_rules_that_no_role_asked_for_go(fake_role: Any) -> None:
    outcome = fake_role(_site, "db1", responses={"user.rules": PRESENT})
    assert [line for line in outcome.commands if line.startswith("ufw delete")] == [
        "ufw delete allow proto tcp from 172.30.77.99 to any port 5432",
        "ufw delete allow proto tcp from any to any port 8080",
        "ufw delete allow proto udp from 172.30.77.21 to any port 4789",
    ]


def test_ssh_is_narrowed_to_the_networks_of_the_setting(fake_role: Any) -> None:
    data = {"ssh_allowed_from": ["192.0.2.0/24"]}
    outcome = fake_role(_site, "db1", responses={"user.rules": PRESENT[:2]}, data=data)
    changes = [line for line in outcome.commands if line.startswith("ufw") and "port 22" in line]
    assert changes == [
        "ufw allow proto tcp from 192.0.2.0/24 to any port 22",
        "ufw delete allow proto tcp from any to any port 22",
    ]


def test_alone_it_closes_nothing(fake_role: Any) -> None:
    outcome = fake_role(firewall.firewall, "db1", responses={"user.rules": PRESENT})
    assert outcome.operations == []
