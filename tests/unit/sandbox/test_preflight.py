from __future__ import annotations

from dataclasses import replace

import pytest

from deploys.sandbox import preflight
from deploys.sandbox.machine import CAPABILITIES
from deploys.sandbox.preflight import Facts
from deploys.sandbox.settings import Sandbox

GOOD = Facts(
    os_release='ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n',
    root=True,
    hosts_running=False,
    engine_found=False,
    memory_available=20.0,
    disk_free=50.0,
    disk_path="/var/lib",
    capabilities=frozenset(CAPABILITIES) - {"SYS_RESOURCE"},
    missing_tools=(),
    iptables_works=True,
    overlay_works=True,
    routes=("default via 192.0.2.1 dev eth0", "192.0.2.0/24 dev eth0 scope link"),
    bridge_exists=False,
)


def failures(sandbox: Sandbox, facts: Facts) -> dict[str, str]:
    return {f.subject: f"{f.found} {f.remedy}" for f in preflight.assess(sandbox, facts) if f.remedy}


def test_a_good_machine_passes(sandbox: Sandbox) -> None:
    assert failures(sandbox, GOOD) == {}


@pytest.mark.parametrize(
    ("change", "subject", "words"),
    [
        ({"os_release": "ID=fedora\nPRETTY_NAME=Fedora\n"}, "distribution", "Debian and Ubuntu"),
        ({"memory_available": 9.9}, "memory", "9.9 GiB"),
        ({"disk_free": 3.0}, "disk", "3.0 GiB"),
        ({"overlay_works": False}, "disk", "ext4"),
        ({"capabilities": GOOD.capabilities - {"SYS_ADMIN"}}, "capabilities", "SYS_ADMIN"),
        ({"iptables_works": False}, "iptables", "iptables-legacy"),
        ({"root": False}, "rights", "docker group"),
        ({"root": False, "engine_found": True, "missing_tools": ("mmdebstrap",)}, "tools", "apt-get install"),
        ({"routes": ("172.30.0.0/16 dev eth1",)}, "network", "RELAY_SANDBOX_SUBNET"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(
    sandbox: Sandbox, change: dict[str, object], subject: str, words: str
) -> None:
    found = failures(sandbox, replace(GOOD, **change))  # type: ignore[arg-type]
    assert list(found) == [subject]
    assert words in found[subject]


def test_a_running_fleet_already_has_its_memory_and_disk(sandbox: Sandbox) -> None:
    busy = replace(GOOD, hosts_running=True, memory_available=1.0, disk_free=1.0)
    assert failures(sandbox, busy) == {}


def test_root_may_lack_tools_because_up_installs_them(sandbox: Sandbox) -> None:
    bare = replace(GOOD, missing_tools=("dockerd", "iptables"), iptables_works=False)
    assert failures(sandbox, bare) == {}


@pytest.mark.parametrize(
    ("route", "conflict"),
    [
        ("172.30.77.0/24 dev relay-sandbox proto kernel", False),
        ("172.30.77.0/24 dev relay-sandbox2 proto kernel", True),
        ("172.30.77.5 dev tun0", True),
        ("172.30.78.0/24 dev tun0", False),
        ("unreachable 10.0.0.0/8", False),
    ],
)
def test_only_foreign_overlapping_routes_conflict(sandbox: Sandbox, route: str, conflict: bool) -> None:
    assert bool(preflight.conflicting_route(sandbox, [route])) is conflict
