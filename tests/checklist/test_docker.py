"""Docker Engine, and the firewall around the ports that containers publish."""

from __future__ import annotations

import json
from typing import Any

from deploys.roles import docker
from tests.checklist.targets import address, engine, hosts, names, reached

testinfra_hosts = hosts("app")


def test_engine(host: Any) -> None:
    """Docker runs, starts at boot and bounds the logs of containers."""
    assert host.run("systemctl is-active docker && systemctl is-enabled docker").rc == 0
    assert engine(host, "info")["LoggingDriver"] == "json-file"
    settings = json.loads(host.run("cat /etc/docker/daemon.json").stdout)
    assert settings["log-opts"] == {"max-size": "20m", "max-file": "5"}


def test_published_ports() -> None:
    """The edge reaches the relay's port, monitoring also its metrics, nobody else either of them."""
    readers = {8000: ("edge", "ops"), 8001: ("ops",)}
    published = [(address(name), port) for name in names("app") for port in readers]
    for group in ("edge", "ops", "db"):
        allowed = {end for end in published if group in readers[end[1]]}
        assert reached(names(group)[0], published) == allowed, f"from {names(group)[0]}"
    assert reached(None, published) == set(), "from outside"


def test_guard_survives_a_reload(host: Any) -> None:
    """The guard of published ports is part of what ufw loads at boot."""
    saved = host.run(f"sed -n '/DOCKER-USER/p' {docker.AFTER_RULES}").stdout
    assert all(node in saved for node in (address(name) for name in names("edge")))
    loaded = host.run("iptables -S DOCKER-USER").stdout.splitlines()
    assert loaded[-2:] == [
        "-A DOCKER-USER -m conntrack --ctstate DNAT --ctdir ORIGINAL -j DROP",
        "-A DOCKER-USER -j RETURN",
    ]
