"""Environments and the choice of hosts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pyinfra.api.inventory import Inventory

from deploys.lib import fleet
from deploys.lib.errors import DeployError
from deploys.run import environment


def test_an_unknown_environment_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(DeployError, match="no environment 'sandbx'; there are: production, sandbox"):
        environment.load("sandbx")


def test_an_empty_fleet_is_an_error(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_groups", lambda _: {"app": []})
    with pytest.raises(DeployError, match="'sandbox' has no hosts"):
        environment.load("sandbox")


def test_the_loader_agrees_with_pyinfra() -> None:
    """pyinfra's own loader, in a process of its own since it replaces sockets and threads."""
    program = """
import json, pyinfra_cli
from pyinfra.api import State
from pyinfra.context import ctx_state
from pyinfra_cli.inventory import make_inventory
ctx_state.set(State())
inventory = make_inventory("inventories/sandbox.py", cwd=".")
print(json.dumps({host.name: [sorted(host.groups), host.data.dict()] for host in inventory}))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=fleet.REPOSITORY, capture_output=True, text=True, check=True)
    own = {host.name: [sorted(host.groups), host.data.dict()] for host in environment.load("sandbox")}
    assert json.loads(done.stdout) == own


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        ([], 11),
        (["edge"], ["edge1", "edge2"]),
        (["db2"], ["db2"]),
        (["db2", "edge"], ["edge1", "edge2", "db2"]),
        (["dokploy", "app1"], ["app1"]),
    ],
)
def test_limits(limits: list[str], chosen: list[str] | int) -> None:
    names = [host.name for host in environment.select(environment.load("sandbox"), limits)]
    assert names == chosen or len(names) == chosen


@pytest.mark.parametrize("limit", ["egde", "edge3", "", "edge*"])
def test_a_limit_that_means_nobody_is_an_error_with_the_valid_names(limit: str) -> None:
    with pytest.raises(DeployError, match=r"groups: .*edge.*; hosts: edge1, edge2"):
        environment.select(environment.load("sandbox"), ["db1", limit])


def test_environments_override_defaults(sandbox_inventory: Inventory) -> None:
    assert fleet.domain() == "sandbox.test"
    assert fleet.setting("ssh_user") == "deploy"


def test_unknown_names_are_errors(sandbox_inventory: Inventory) -> None:
    with pytest.raises(DeployError, match="no group 'bd'"):
        fleet.hosts("bd")
    with pytest.raises(DeployError, match=r"group_data/all\.py"):
        fleet.setting("no_such_setting")


def test_nodes_know_their_names(sandbox_inventory: Inventory) -> None:
    assert [(node.name, node.fqdn) for node in fleet.hosts("ops")] == [("ops1", "ops1.sandbox.test")]
    assert len(fleet.all_hosts()) == 11


def test_a_group_without_hosts_is_an_empty_list() -> None:
    with environment.use("production"):
        assert fleet.hosts("vault") == []
