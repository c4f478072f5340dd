"""The docker role on a fake host."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import dataclass
from subprocess import CalledProcessError, CompletedProcess
from typing import Any

import pytest
from pyinfra.api.inventory import Inventory

from deploys.lib import fleet
from deploys.roles import docker
from tests.unit.deploys.scripts import load


def test_published_ports_are_for_edge_and_monitoring_only(sandbox_inventory: Inventory) -> None:
    rules = docker.published_rules(fleet.hosts("app")[0]).splitlines()
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


def test_root_is_logged_in_to_the_registry(plain_role: Any) -> None:
    outcome = plain_role(docker.docker, "app1")
    logins = json.loads(outcome.files["/root/.docker/config.json"])["auths"]
    login = base64.b64decode(logins["ops1.sandbox.test:5000"]["auth"]).decode()
    assert login == f"relay:{fleet.secret('registry_password')}"
    assert outcome.files["/etc/docker/certs.d/ops1.sandbox.test:5000/ca.crt"] == fleet.secret("ca_trusted")


def test_no_secret_is_part_of_a_command_or_a_name(plain_role: Any) -> None:
    outcome = plain_role(docker.docker, "app1")
    shown = "\n".join([*outcome.commands, *outcome.operations])
    assert fleet.secret("registry_password") not in shown


def test_a_swarm_refuses_live_restore() -> None:
    assert docker.daemon()["live-restore"] is False


def test_pools_do_not_overlap() -> None:
    from ipaddress import ip_network

    from deploys.roles import swarm

    settings = docker.daemon()
    pools = [settings["bip"], settings["default-address-pools"][0]["base"], swarm.ADDRESS_POOL]
    networks = [ip_network(pool, strict=False) for pool in pools]
    assert not any(a.overlaps(b) for a in networks for b in networks if a is not b)


def test_a_changed_engine_is_restarted_by_the_program_that_watches_the_swarm(plain_role: Any) -> None:
    outcome = plain_role(docker.docker, "app1")
    (load,) = [line for line in outcome.commands if "mkdir -p /var/lib/relay/loaded/docker" in line]
    assert load.index(docker.VALIDATE) < load.index(docker.RESTART)


def test_the_engine_is_measured(plain_role: Any) -> None:
    outcome = plain_role(docker.docker, "app1")
    assert json.loads(outcome.files["/etc/docker/daemon.json"])["metrics-addr"] == "0.0.0.0:9323"


@dataclass
class Engine:
    """Answers of a swarm's engine; a restart takes its only task away for `slow` questions."""

    manager: bool = True
    nodes: tuple[str, ...] = ("app1\tReady\tActive", "app2\tReady\tActive")
    services: tuple[str, ...] = ("relay_relay 2/2 (max 1 per node)",)
    slow: int = 0
    calls: int = 0
    restarts: int = 0
    availability: tuple[str, ...] = ()

    def docker(self, *words: str) -> list[str]:
        if words[0] == "info":
            return ["true n1" if self.manager else "false n1"]
        if words[:2] == ("node", "update"):
            self.availability += (words[3],)
            return []
        if words[0] == "ps" and "health=healthy" not in words:
            self.calls -= 1
            return ["task"] if self.calls > 0 else []
        if words[0] == "ps":
            self.slow -= bool(self.restarts)
            return [] if self.restarts and self.slow >= 0 else ["task"]
        return list(self.nodes if words[0] == "node" else self.services)

    def run(self, *_: Any, **__: Any) -> None:
        assert self.calls <= 0, "calls were running"
        self.restarts += 1


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def restart(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = load("docker/docker_restart.py")
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(module, "docker", engine.docker)
    monkeypatch.setattr(module.subprocess, "run", engine.run)
    return module.restart


@pytest.mark.parametrize("manager", [True, False])
def test_the_engine_is_restarted_and_its_task_waited_for(engine: Engine, restart: Any, manager: bool) -> None:
    engine.manager, engine.slow = manager, 3
    restart(5.0, 5.0)
    assert engine.restarts == 1
    assert engine.slow < 0


def test_calls_end_before_the_engine_restarts(engine: Engine, restart: Any) -> None:
    engine.calls = 3
    restart(5.0, 5.0)
    assert engine.availability == ("drain", "active")


def test_the_node_is_taken_back_when_the_restart_fails(
    engine: Engine, restart: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise CalledProcessError(1, "systemctl")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(SystemExit, match=r"not done.*systemctl.*journalctl"):
        restart(0.01, 0.01)
    assert engine.availability == ("drain", "active")


def test_an_engine_that_refuses_on_the_way_is_named(
    engine: Engine, restart: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, module = engine.docker, restart.__globals__

    def refuse_to_drain(*words: str) -> list[str]:
        if "drain" in words:
            raise module["Unanswered"]("docker node: the swarm does not have a leader")
        return answer(*words)

    monkeypatch.setitem(module, "docker", refuse_to_drain)
    with pytest.raises(SystemExit, match="not done: docker node: the swarm does not have a leader"):
        restart(0.01, 0.01)
    assert (engine.restarts, engine.availability) == (0, ("active",))


@pytest.mark.parametrize(
    ("nodes", "services", "said"),
    [
        (("app1\tReady\tActive", "app2\tDown\tActive"), (), "node app2 is Down"),
        (("app1\tReady\tActive", "app2\tReady\tDrain"), (), "node app2 is drained"),
        (("app1\tReady\tActive", "\tUnknown\tActive"), (), "node  is Unknown"),
        (("app1\tReady\tActive",), ("relay_relay 1/2 (max 1 per node)",), "relay_relay 1/2"),
    ],
)
def test_while_another_host_is_missing_nothing_is_restarted(
    engine: Engine, restart: Any, nodes: tuple[str, ...], services: tuple[str, ...], said: str
) -> None:
    engine.nodes, engine.services = nodes, services
    with pytest.raises(SystemExit, match=f"not restarted.*{said}"):
        restart(0.01, 0.01)
    assert engine.restarts == 0


def test_what_a_rebuilt_host_left_behind_is_not_missed(engine: Engine, restart: Any) -> None:
    engine.nodes = ("app1\tReady\tActive", "app2\tDown\tActive", "app2\tReady\tActive")
    restart(0.01, 0.01)
    assert engine.restarts == 1


def test_a_task_that_does_not_come_back_is_a_failure(engine: Engine, restart: Any) -> None:
    engine.slow = 10**9
    with pytest.raises(SystemExit, match="0 of 1 tasks"):
        restart(0.01, 0.01)


def test_an_engine_that_refuses_is_not_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("docker/docker_restart.py")
    monkeypatch.setattr(
        module.subprocess,
        "run",
        lambda *_, **__: CompletedProcess([], 1, "", "The swarm does not have a leader.\n"),
    )
    assert module.amiss() == "docker info: The swarm does not have a leader."
