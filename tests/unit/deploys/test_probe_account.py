"""The probe's account: who makes it, and when it is left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploys.lib import fleet
from deploys.lib.config_files import ConfigFile
from deploys.roles import probe_account
from tests.unit.deploys.facts import LINUX, in_place

APPLY = "relay-probe-account apply"
SERVING = LINUX | {"docker ps --quiet": ["0123456789ab"]}
ROLE = probe_account.probe_account


@pytest.mark.parametrize("differences", [["its token is missing"], []])
def test_it_is_made_where_something_is_missing(fake_role: Any, differences: list[str]) -> None:
    modes = {probe_account.TOOL: "755", probe_account.SETTINGS: "600"}
    files = fake_role(ROLE, "app1", responses=SERVING).files
    states = {path: ConfigFile(path, text, modes[path]).state for path, text in files.items()}
    there = SERVING | in_place(states) | {"relay-probe-account check": differences}
    assert (APPLY in fake_role(ROLE, "app1", responses=there).commands) is bool(differences)


def test_a_host_with_a_replica_makes_it(fake_role: Any) -> None:
    """Not one that was drained, though it be the first."""
    assert APPLY in fake_role(ROLE, "app2", responses=SERVING, others={"app1": LINUX}).commands
    assert APPLY not in fake_role(ROLE, "app1", responses=LINUX, others={"app2": SERVING}).commands


def test_on_a_new_fleet_the_first_host_makes_it(fake_role: Any) -> None:
    assert APPLY in fake_role(ROLE, "app1", responses=LINUX).commands
    assert APPLY not in fake_role(ROLE, "app3", responses=LINUX).commands


def test_the_token_is_in_a_private_file_and_in_no_command(fake_role: Any) -> None:
    run = fake_role(ROLE, "app3", responses=LINUX)
    token = fleet.secret("probe_token")
    assert json.loads(run.files[probe_account.SETTINGS])["token"] == token
    assert f"install -D -o root -g root -m 600 /dev/null {probe_account.SETTINGS}.new" in run.commands
    assert [path for path, text in run.files.items() if token in text] == [probe_account.SETTINGS]
    assert not [line for line in run.commands if token in line]
