"""The base role on a fake host."""

from __future__ import annotations

from typing import Any

from pyinfra.api.deploy import deploy

from deploys import base


@deploy("Ports")
def _ports() -> None:
    base.allow([5432], ["app"])


def test_allow_opens_the_port_to_each_host_of_the_group(fake_role: Any) -> None:
    commands = [line for line in fake_role(_ports, "db1").commands if line.startswith("ufw allow")]
    assert commands == [
        f"ufw allow proto tcp from 172.30.77.{last} to any port 5432" for last in (21, 22, 23)
    ]


def test_allow_leaves_rules_alone_that_are_there(fake_role: Any) -> None:
    rules = [f"### tuple ### allow tcp 5432 0.0.0.0/0 any 172.30.77.{last} in" for last in (21, 22)]
    outcome = fake_role(_ports, "db1", responses={"user.rules": rules})
    commands = [line for line in outcome.commands if line.startswith("ufw allow")]
    assert commands == ["ufw allow proto tcp from 172.30.77.23 to any port 5432"]
