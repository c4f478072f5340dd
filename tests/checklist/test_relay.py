"""The relay as a stack on the Swarm."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from deploys.lib import fleet
from deploys.roles import relay
from tests.checklist.targets import address, engine, hosts, names, on

testinfra_hosts = hosts("app")

SERVICE = relay.service()
REPLICA = f"docker ps -q --filter label=com.docker.swarm.service.name={SERVICE}"


def test_one_healthy_replica_a_node(host: Any) -> None:
    """Each relay host runs one healthy replica, at least three in all."""
    running = host.run(f"{REPLICA} --filter health=healthy").stdout.split()
    assert len(running) == 1
    assert len(names("app")) >= 3


def test_replicas_are_pinned() -> None:
    """All replicas run one image, pinned by its digest."""
    service = inspect()
    image = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
    assert "@sha256:" in image
    shape = "'{{.Image}}'"
    tasks = on(names("app")[0]).run(
        f"docker service ps {SERVICE} -f desired-state=running --no-trunc --format {shape}"
    )
    assert set(tasks.stdout.split()) == {image}


def test_roll_is_careful() -> None:
    """A roll replaces one replica at a time and undoes itself when a new one is not healthy."""
    update = inspect()["Spec"]["UpdateConfig"]
    assert (update["Parallelism"], update["FailureAction"]) == (1, "rollback")
    assert inspect().get("UpdateStatus", {}).get("State", "completed") == "completed"


def test_least_privilege(host: Any) -> None:
    """The replica runs without root, with bounded memory and no secret in its environment."""
    container = json.loads(host.run(f"docker inspect $({REPLICA})").stdout)[0]
    assert container["Config"]["User"] == "10001:10001"
    assert container["HostConfig"]["Memory"] > 0
    assert not container["HostConfig"]["Privileged"]
    environment = "\n".join(container["Config"]["Env"])
    values = fleet.store().read()
    assert not [name for name, value in values.items() if value in environment]


def test_edges_get_answers() -> None:
    """Each edge gets a good answer from each replica's health page."""
    for edge in names("edge"):
        for name in names("app"):
            answer = on(edge).run(f"curl -fsS --max-time 5 http://{address(name)}:8000/healthz")
            assert answer.rc == 0, f"{edge} to {name}: {answer.stderr}"


def test_schema_is_current(host: Any) -> None:
    """The administrators' command works on every relay host, so the database has its schema."""
    answer = host.run("relayctl channel list --json")
    assert answer.rc == 0, answer.stderr
    assert isinstance(json.loads(answer.stdout), list)


@cache
def inspect() -> dict[str, Any]:
    """The service as Swarm has it."""
    return dict(engine(on(names("app")[0]), f"services/{SERVICE}"))
