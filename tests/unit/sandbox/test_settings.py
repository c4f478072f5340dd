from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from deploys.sandbox import settings
from deploys.sandbox.settings import Host, Sandbox, SandboxError


def test_hosts_come_from_the_inventory_in_its_order() -> None:
    hosts = settings.load({}).hosts
    assert [host.name for host in hosts][:3] == ["edge1", "edge2", "app1"]
    assert len({host.address for host in hosts}) == len(hosts) == 11
    assert {"app", "dokploy"} <= set(next(h for h in hosts if h.name == "app1").groups)


def test_a_group_of_bare_names_adds_to_the_groups_of_known_hosts() -> None:
    inventory = {"app": [("a1", {"address": "10.0.0.1"})], "boss": ["a1"], "_hidden": ["x"], "text": "y"}
    assert settings.read_hosts(inventory) == [Host("a1", "10.0.0.1", ("app", "boss"))]


def test_a_host_without_address_is_named() -> None:
    with pytest.raises(SandboxError, match=r"'lost'.*`address`"):
        settings.read_hosts({"app": [("lost", {})]})


def test_a_second_sandbox_has_its_own_name_subnet_and_directory() -> None:
    environment = {
        "RELAY_SANDBOX_NAME": "other",
        "RELAY_SANDBOX_SUBNET": "172.31.5.0/24",
        "RELAY_SANDBOX_DIR": ".sandbox/other",
    }
    other = settings.load(environment)
    assert other.subnet == IPv4Network("172.31.5.0/24")
    assert other.host("db1").address == "172.31.5.31"
    assert other.directory == settings.ROOT / ".sandbox" / "other"
    assert other.runtime != settings.load({}).runtime
    assert other.engine_data != settings.load({}).engine_data


@pytest.mark.parametrize("name", ["Upper", "x", "a-name-that-is-too-long", "semi;colon", "9lives"])
def test_a_name_that_cannot_be_a_bridge_is_refused(name: str) -> None:
    with pytest.raises(SandboxError, match="RELAY_SANDBOX_NAME"):
        settings.load({"RELAY_SANDBOX_NAME": name})


def test_an_unknown_host_is_answered_with_the_known_ones(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match="app1, db1"):
        sandbox.host("ap1")
