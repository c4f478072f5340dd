"""A fleet is built in stages, one a role, in the order of deploys.roles."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api.command import StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host

from deploys import roles
from deploys.lib import fleet
from deploys.lib.role import Role


def run(role: Role) -> None:
    """Calls the role on the current host when the host is one of those that get it."""
    if fleet.node_of(host) in roles.members(role):
        roles.run(role)


@operation()
def barrier() -> Generator[StringCommand, None, None]:
    """Does nothing on every host. Operations that all hosts share are the only order between groups that
    pyinfra keeps: without one, the edge would be set up while the database is still being installed."""
    yield from ()


def run_all() -> None:
    """Every stage, in order, on the current host."""
    for role in host.loop(roles.table()):
        barrier(name=f"Stage: {role.name}")
        run(role)
