"""Relations between settings: each broken one is told with both names and the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from pyinfra.api.inventory import Inventory

from deploys.lib import timing
from deploys.lib.errors import DeployError
from deploys.roles import relay
from deploys.run import validate


def problems(inventory: Inventory, settings: dict[str, Any]) -> list[str]:
    inventory.override_data = inventory.override_data | settings
    return list(validate.settings())


@pytest.mark.parametrize("name", ["sandbox", "production"])
def test_the_environments_of_the_repository_are_in_order(name: str) -> None:
    from deploys.run import environment

    with environment.use(name):
        assert list(validate.settings()) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"edge_read_timeout": "600s", "relay_provider_timeout_seconds": 600},
            ["`edge_read_timeout` is 600 s", "`relay_provider_timeout_seconds`", "raise `edge_read_timeout`"],
        ),
        (
            {"edge_read_timeout": "11m30s", "relay_provider_timeout_seconds": 600},
            ["`edge_read_timeout` is 690 s", "`relay_settle_seconds` + 5 s = 695 s"],
        ),
        (
            {"relay_provider_timeout_seconds": 7200, "edge_read_timeout": "3h"},
            ["`edge_drain_timeout` is 3600 s", "cut long calls", "`relay_provider_timeout_seconds`"],
        ),
        (
            {"edge_connect_timeout": "2s"},
            ["`edge_retry_timeout` is 5 s", "3 * `edge_connect_timeout` = 6 s"],
        ),
        ({"relay_drain_seconds": 3}, ["`relay_drain_seconds` is 3 s", "4 s", "the edge still uses"]),
        (
            {"relay_stop_grace": "130s"},
            ["`relay_stop_grace` is 130 s", "`relay_drain_seconds` + `relay_grace_seconds`", "= 185 s"],
        ),
        ({"relay_grace_seconds": 600}, ["`relay_stop_grace` is 190 s", "or lower `relay_drain_seconds`"]),
        ({"relay_hold_margin_seconds": 9}, ["`relay_hold_margin_seconds` is 9 s", "10 s"]),
        ({"relay_settle_seconds": 20}, ["`relay_settle_seconds` is 20 s", "`patroni_ttl`"]),
        ({"relay_hold_wait_seconds": 20}, ["`relay_hold_wait_seconds` is 20 s", "`patroni_ttl`"]),
        (
            {"relay_memory": "512M"},
            ["`relay_bodies_bytes` is 268435456", "up to 134217728", "raise `relay_memory`"],
        ),
        ({"relay_bodies_bytes": 2**28 + 1}, ["`relay_bodies_bytes` is 268435457", "`relay_memory` / 4"]),
        ({"relay_bodies_bytes": "256M"}, ["`relay_bodies_bytes` is '256M'", "a number of bytes"]),
        ({"relay_answers_bytes": 2**27 + 1}, ["`relay_answers_bytes` is 134217729", "`relay_memory` / 8"]),
        ({"relay_provider_proxy": "proxy:3128"}, ["`relay_provider_proxy` is no proxy's address", "http://"]),
        ({"relay_provider_proxy": "http://me:secret@proxy:3128"}, ["`relay_provider_proxy` holds", "admit"]),
        ({"relay_memory": "plenty"}, ["`relay_memory` is not a size: 'plenty'", "512M"]),
        ({"etcd_election_ms": 1999}, ["`etcd_election_ms` is 1.999 s", "10 * `etcd_heartbeat_ms` = 2 s"]),
        ({"etcd_heartbeat_ms": 500}, ["`etcd_election_ms`", "`etcd_heartbeat_ms`"]),
        ({"patroni_retry_timeout": 10}, ["`patroni_ttl` is 20 s", "2 * `patroni_retry_timeout` = 22 s"]),
        ({"patroni_loop_wait": 3}, ["`patroni_ttl` is 20 s", "`patroni_loop_wait`"]),
        ({"patroni_ttl": 19, "patroni_retry_timeout": 3}, ["`patroni_ttl` is 19 s", "no shorter lease"]),
        ({"patroni_loop_wait": 0}, ["`patroni_loop_wait` is 0 s"]),
        ({"patroni_retry_timeout": 2}, ["`patroni_retry_timeout` is 2 s"]),
        (
            {"etcd_heartbeat_ms": 500, "etcd_election_ms": 5000},
            ["`patroni_retry_timeout` is 9 s", "2 * `etcd_election_ms` = 10 s"],
        ),
        ({"swarm_managers": 2}, ["`swarm_managers` is 2", "odd and at most 3", "set it to 3"]),
        ({"swarm_managers": 5}, ["`swarm_managers` is 5", "add hosts"]),
        ({"swarm_managers": 0}, ["`swarm_managers` is 0"]),
        (
            {"edge_read_timeout": "ten minutes"},
            ["`edge_read_timeout` is not a duration: 'ten minutes'", "90s"],
        ),
        ({"relay_stop_grace": -1}, ["`relay_stop_grace` is not a duration: -1"]),
        ({"relay_stop_grace": ""}, ["`relay_stop_grace` is not a duration: ''"]),
    ],
)
def test_a_broken_relation_is_told(
    sandbox_inventory: Inventory, settings: dict[str, Any], told: list[str]
) -> None:
    found = problems(sandbox_inventory, settings)
    assert any(all(words in problem for words in told) for problem in found), found


@pytest.mark.parametrize(
    "settings",
    [
        {"edge_read_timeout": "695s", "relay_provider_timeout_seconds": 600},
        {"relay_stop_grace": "3m5s"},
        {"relay_hold_margin_seconds": 10},
        {"relay_memory": "2g", "relay_bodies_bytes": 2**29, "relay_answers_bytes": 2**28},
        {"etcd_election_ms": 2000, "etcd_heartbeat_ms": 200},
        {
            "patroni_ttl": 22,
            "patroni_loop_wait": 4,
            "patroni_retry_timeout": 9,
            "relay_hold_wait_seconds": 30,
        },
    ],
)
def test_the_bound_itself_is_in_order(sandbox_inventory: Inventory, settings: dict[str, Any]) -> None:
    assert problems(sandbox_inventory, settings) == []


def test_a_roll_waits_for_the_grace_of_every_replica(sandbox_inventory: Inventory) -> None:
    sandbox_inventory.override_data["relay_stop_grace"] = "10m"
    assert relay.roll_seconds() >= 3 * 600


@pytest.mark.parametrize(
    ("value", "expected"),
    [(90, 90), (1.5, 1.5), ("90s", 90), ("1h30m", 5400), ("250ms", 0.25), ("1d", 86400), ("2m10s", 130)],
)
def test_durations(sandbox_inventory: Inventory, value: Any, expected: float) -> None:
    sandbox_inventory.override_data["edge_read_timeout"] = value
    assert timing.seconds("edge_read_timeout") == expected


@pytest.mark.parametrize("value", ["90", "s", "1x", "1h 30m", "-5s", True, None, [], "1s1"])
def test_what_is_no_duration(sandbox_inventory: Inventory, value: Any) -> None:
    sandbox_inventory.override_data["edge_read_timeout"] = value
    with pytest.raises(DeployError, match="`edge_read_timeout` is not a duration"):
        timing.seconds("edge_read_timeout")
