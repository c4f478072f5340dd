"""The docker role on a fake host."""

from __future__ import annotations

import base64
import json
from typing import Any

from pyinfra.api.inventory import Inventory

from deploys import docker, fleet


def test_published_ports_are_for_edge_and_monitoring_only(sandbox_inventory: Inventory) -> None:
    rules = docker.published_rules().splitlines()
    accepted = [line.split() for line in rules if "-j RETURN" in line and "-s" in line]
    seen = {(words[words.index("-s") + 1], words[words.index("--ctorigdstport") + 1]) for words in accepted}
    assert seen == {
        ("172.30.77.11", "8000"),
        ("172.30.77.12", "8000"),
        ("172.30.77.41", "8000"),
        ("172.30.77.41", "8001"),
    }
    # Whatever else Docker publishes is dropped, before Docker's own rules accept it.
    assert rules[-3:] == [
        "-A DOCKER-USER -m conntrack --ctstate DNAT --ctdir ORIGINAL -j DROP",
        "-A DOCKER-USER -j RETURN",
        "COMMIT",
    ]


def test_root_is_logged_in_to_the_registry(fake_role: Any) -> None:
    outcome = fake_role(docker.docker, "app1")
    logins = json.loads(outcome.files["/root/.docker/config.json"])["auths"]
    login = base64.b64decode(logins["ops1.sandbox.test:5000"]["auth"]).decode()
    assert login == f"relay:{fleet.secret('registry_password')}"
    assert outcome.files["/etc/docker/certs.d/ops1.sandbox.test:5000/ca.crt"] == fleet.secret("ca_cert")


def test_no_secret_is_part_of_a_command_or_a_name(fake_role: Any) -> None:
    outcome = fake_role(docker.docker, "app1")
    shown = "\n".join([*outcome.commands, *outcome.operations])
    assert fleet.secret("registry_password") not in shown


def test_a_swarm_refuses_live_restore() -> None:
    assert docker.daemon()["live-restore"] is False


def test_pools_do_not_overlap() -> None:
    from ipaddress import ip_network

    from deploys import swarm

    settings = docker.daemon()
    pools = [settings["bip"], settings["default-address-pools"][0]["base"], swarm.ADDRESS_POOL]
    networks = [ip_network(pool, strict=False) for pool in pools]
    assert not any(a.overlaps(b) for a in networks for b in networks if a is not b)


def test_docker_restarts_only_after_its_settings_changed(fake_role: Any) -> None:
    outcome = fake_role(docker.docker, "app1")
    assert "Docker | Restart Docker (/etc/docker/daemon.json)" in outcome.changes
    assert outcome.commands.count("systemctl restart docker") == 1
