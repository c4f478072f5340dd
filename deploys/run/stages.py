"""The order in which a fleet is built: one stage a role."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from importlib import import_module

from pyinfra.api.command import StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host


@dataclass(frozen=True)
class Stage:
    """A role and the group of hosts that get it. The role is the function ROLE of deploys/roles/ROLE.py."""

    role: str
    group: str


STAGES = (
    Stage("base", "all"),
    Stage("docker", "app"),
    Stage("registry", "ops"),
    Stage("swarm", "app"),
    Stage("objectstore", "vault"),
    Stage("provider", "provider"),
    Stage("etcd", "db"),
    Stage("postgres", "db"),
    Stage("cache", "ops"),
    Stage("relay", "app"),
    Stage("edge", "edge"),
    Stage("monitoring", "all"),
    Stage("firewall", "all"),
)


def run(stage: Stage) -> None:
    """Calls the role on the current host when the host belongs to the stage's group."""
    if stage.group != "all" and stage.group not in host.groups:
        return
    getattr(import_module(f"deploys.roles.{stage.role}"), stage.role)()


@operation()
def barrier() -> Generator[StringCommand, None, None]:
    """Does nothing on every host. Operations that all hosts share are the only order between groups that
    pyinfra keeps: without one, the edge would be set up while the database is still being installed."""
    yield from ()


def run_all() -> None:
    """Every stage, in order, on the current host."""
    for stage in host.loop(STAGES):
        barrier(name=f"Stage: {stage.role}")
        run(stage)
