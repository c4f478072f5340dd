"""The swarm role on fake hosts."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import OperationError
from pyinfra.api.inventory import Inventory

from deploys.lib import acting
from deploys.roles import swarm

APP = ("app1", "app2", "app3")
INACTIVE = json.dumps({"LocalNodeState": "inactive", "ControlAvailable": False})
MANAGER = json.dumps({"LocalNodeState": "active", "ControlAvailable": True})


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For hosts and leaders that a test's swarm does not have."""
    monkeypatch.setattr(swarm, "LEADER_SECONDS", 0)


def node(
    name: str,
    state: str = "ready",
    member: bool = True,
    age: int = 3600,
    role: str = "manager",
    address: str = "",
    **labels: str,
) -> str:
    """An entry of a manager; `member` of the quorum or not; without a name when no host has used it yet."""
    created = (datetime.now(UTC) - timedelta(seconds=age)).isoformat().replace("+00:00", "123Z")
    return json.dumps(
        {
            "ID": f"id-{name}-{state}",
            "CreatedAt": created,
            "Description": {"Hostname": name} if name else {},
            "Spec": {"Labels": labels, "Role": role},
            "Status": {"State": state, "Addr": address},
            **({"ManagerStatus": {"Reachability": "reachable"}} if member else {}),
        }
    )


def commands(outcome: Any, word: str) -> list[str]:
    return [line for line in outcome.commands if line.startswith(f"docker {word}")]


@deploy("Create")
def _create() -> None:
    swarm.create(name="create")


@pytest.mark.parametrize(
    ("outside", "starts"), [([], "app1"), (["app1"], "app2"), (["app1", "app2"], "app3"), (["app2"], "app1")]
)
def test_only_one_host_starts_a_swarm(fake_role: Any, outside: list[str], starts: str) -> None:
    for host in {"app1", "app2", "app3"} - {*outside}:
        outcome = fake_role(_create, host, responses={"docker info": INACTIVE}, outside=outside)
        assert len(commands(outcome, "swarm init")) == (host == starts)
        address = f"172.30.77.2{host[-1]}"
        assert all(f"--advertise-addr {address}" in line for line in commands(outcome, "swarm init"))


@pytest.mark.parametrize("state", [INACTIVE.replace("inactive", "active"), MANAGER, "pending"])
def test_no_second_swarm_is_started_beside_one_outside_of_the_run(fake_role: Any, state: str) -> None:
    state = json.dumps({"LocalNodeState": state}) if state == "pending" else state
    answers = {"app1": {"docker info": state}}
    responses = {"docker info": INACTIVE}
    outcome = fake_role(_create, "app2", responses=responses, others=answers, outside=["app1"])
    assert commands(outcome, "swarm init") == []


def test_no_swarm_is_started_while_a_host_cannot_be_asked(fake_role: Any) -> None:
    """app1 may run one."""
    with pytest.raises(OperationError, match=r"app1 cannot be asked .* bring app1 back"):
        fake_role(_create, "app2", responses={"docker info": INACTIVE}, dead=["app1"])


def test_a_host_joins_without_the_dead_one(fake_role: Any) -> None:
    answers = {"app3": {"docker info": MANAGER, "join-token": "SWMTKN-1-abc"}}
    outcome = fake_role(
        swarm.swarm, "app2", responses={"docker info": INACTIVE}, others=answers, dead=["app1"]
    )
    (join,) = commands(outcome, "swarm join --")
    assert join.endswith("172.30.77.23:2377")


def test_a_dead_host_keeps_its_place_and_nobody_waits_for_it(
    fake_role: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarm, "LEADER_SECONDS", 60)
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waited"))
    nodes = [node("app1", state="down"), node("app2", relay="true"), node("app3", role="worker")]
    responses = {"docker info": MANAGER, "docker node ls -q": nodes}
    outcome = fake_role(swarm.swarm, "app2", responses=responses, dead=["app1"])
    assert removed(outcome) == []
    assert commands(outcome, "node promote") == ["docker node promote id-app3-ready"]


@pytest.mark.parametrize(
    ("manage", "acts"),
    [(("app1", "app2"), "app1"), (("app2", "app3"), "app2"), (("app3",), "app3"), ((), "app1")],
    ids=["the first", "the first is new", "those that shall manage are workers", "no swarm yet"],
)
def test_a_host_that_manages_acts(fake_role: Any, manage: tuple[str, ...], acts: str) -> None:
    """Two shall manage: app1 and app2."""
    answers = {name: {"docker info": MANAGER if name in manage else INACTIVE} for name in APP}
    seen: dict[str, bool] = {}

    def note() -> None:
        seen[name] = acting.acts("app", swarm.stays_manager, swarm.manages, swarm.shall_manage)

    for name in APP:
        fake_role(note, name, responses=answers[name], others=answers, data={"swarm_managers": 2})
    assert [name for name, does in seen.items() if does] == [acts]


def test_a_rebuilt_first_host_starts_no_second_swarm(fake_role: Any) -> None:
    assert commands(fake_role(_create, "app1", responses={"docker info": MANAGER}), "swarm init") == []


def test_nobody_joins_a_swarm_that_does_not_exist(fake_role: Any) -> None:
    with pytest.raises(OperationError, match="no relay host is a swarm manager yet"):
        fake_role(swarm.swarm, "app2", responses={"docker info": INACTIVE})


WAITING = json.dumps({"LocalNodeState": "pending", "ControlAvailable": True})


def test_a_member_without_a_leader_neither_joins_nor_hinders_what_mends_it(fake_role: Any) -> None:
    outcome = fake_role(swarm.swarm, "app2", responses={"docker info": WAITING})
    assert commands(outcome, "swarm") == []


@pytest.mark.parametrize("token", ["", "SWMTKN-1-abc"])
def test_who_joins_waits_for_a_leader(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    answers = iter(["", token])
    manager: Any = SimpleNamespace(get_fact=lambda _, role: next(answers, ""))
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(swarm, "LEADER_SECONDS", 0 if not token else 5)
    monkeypatch.setattr(swarm, "is_executing", lambda: True)
    if token:
        assert swarm._token(manager, "manager") == token
    else:
        with pytest.raises(OperationError, match=r"no leader.*SwarmNoLeader"):
            swarm._token(manager, "manager")


def test_a_member_changes_nothing(fake_role: Any) -> None:
    nodes = [node("app1", relay="true", dokploy="true"), node("app2", relay="true")]
    responses = {"docker info": MANAGER, "docker node ls -q": nodes}
    outcome = fake_role(swarm.swarm, "app1", responses=responses)
    assert [name for name in outcome.changes if swarm.NODE_TOOL not in name] == []


def test_labels_follow_the_inventory(fake_role: Any) -> None:
    nodes = [node("app1", relay="true"), node("app2", relay="true", dokploy="true", other="kept")]
    responses = {"docker info": MANAGER, "docker node ls -q": nodes}
    outcome = fake_role(swarm.swarm, "app1", responses=responses)
    assert commands(outcome, "node update") == [
        "docker node update --label-add dokploy=true id-app1-ready",
        "docker node update --label-rm dokploy id-app2-ready",
    ]


def removed(outcome: Any) -> list[str]:
    return [line.split()[-1] for line in outcome.commands if line.startswith(swarm.NODE_TOOL)]


def test_a_dead_entry_of_a_rebuilt_node_is_forgotten(fake_role: Any) -> None:
    nodes = [
        node("app1", relay="true", dokploy="true"),
        node("app2", relay="true"),
        node("app2", state="down"),
        node("app3", state="down"),
    ]
    responses = {"docker info": MANAGER, "docker node ls -q": nodes}
    # app3 is only away: it is not forgotten.
    assert removed(fake_role(swarm.swarm, "app1", responses=responses)) == ["id-app2-down"]


@pytest.mark.parametrize("state", ["down", "ready"])
def test_a_node_that_left_the_inventory_is_removed(fake_role: Any, state: str) -> None:
    nodes = [node("app1"), node("app2"), node("app3"), node("app4", state=state)]
    outcome = fake_role(swarm.swarm, "app1", responses={"docker info": MANAGER, "docker node ls -q": nodes})
    assert removed(outcome) == [f"id-app4-{state}"]
    assert "Remove nodes that no relay host is (docker node)" in "".join(outcome.changes)


def test_a_host_with_another_name_for_itself_is_known_by_its_address(fake_role: Any) -> None:
    nodes = [node("app1"), node("app2"), node("ip-172-30-77-23", address="172.30.77.23")]
    outcome = fake_role(swarm.swarm, "app1", responses={"docker info": MANAGER, "docker node ls -q": nodes})
    assert removed(outcome) == []


def test_managers_follow_the_inventory(fake_role: Any) -> None:
    nodes = [node("app1"), node("app2"), node("app3", role="worker")]
    outcome = fake_role(swarm.swarm, "app1", responses={"docker info": MANAGER, "docker node ls -q": nodes})
    assert commands(outcome, "node promote") == ["docker node promote id-app3-ready"]
    outcome = fake_role(
        swarm.swarm,
        "app1",
        responses={"docker info": MANAGER, "docker node ls -q": nodes},
        data={"swarm_managers": 1},
    )
    assert commands(outcome, "node demote") == ["docker node demote id-app2-ready"]


@pytest.mark.parametrize(
    ("present", "age", "forgotten"),
    [(("app1", "app2"), 5, 0), (("app1", "app2"), 90, 1), (("app1", "app2", "app3"), 5, 1)],
    ids=["app3 may be joining", "too old for a join", "nobody is joining"],
)
def test_an_entry_that_no_host_uses_is_forgotten(
    fake_role: Any, present: tuple[str, ...], age: int, forgotten: int
) -> None:
    nodes = [*map(node, present), node("", state="unknown", member=False, age=age)]
    responses = {"docker info": MANAGER, "docker node ls -q": nodes}
    assert removed(fake_role(swarm.swarm, "app1", responses=responses)) == ["id--unknown"] * forgotten


@pytest.mark.parametrize(("executing", "looks"), [(True, 2), (False, 1)], ids=["apply", "plan"])
def test_a_node_that_has_joined_is_given_time_to_say_its_name(
    monkeypatch: pytest.MonkeyPatch, executing: bool, looks: int
) -> None:
    first, second = [node("app1"), node("", state="unknown")], [node("app1"), node("app2")]
    answers = [list(map(json.loads, first)), list(map(json.loads, second))]
    seen: list[Any] = []

    def get_fact(_: Any) -> Any:
        seen.append(answers[len(seen)])
        return seen[-1]

    monkeypatch.setattr(swarm, "LEADER_SECONDS", 5)
    monkeypatch.setattr(swarm, "host", SimpleNamespace(get_fact=get_fact))
    monkeypatch.setattr(swarm, "is_executing", lambda: executing)
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert swarm._settled(["app1", "app2"]) == seen[-1]
    assert len(seen) == looks


def test_the_first_hosts_manage(sandbox_inventory: Inventory) -> None:
    assert [manager.name for manager in swarm.managers()] == ["app1", "app2", "app3"]
    sandbox_inventory.override_data["swarm_managers"] = 1
    assert [manager.name for manager in swarm.managers()] == ["app1"]


def test_the_label_of_dokploy(sandbox_inventory: Inventory) -> None:
    assert swarm.labels() == {
        "app1": {"relay": "true", "dokploy": "true"},
        "app2": {"relay": "true"},
        "app3": {"relay": "true"},
    }


def test_facts_of_a_host_without_docker() -> None:
    assert swarm.SwarmState().process([""]) == {}
    assert swarm.JoinToken().process([]) == ""
    assert swarm.Nodes().process([""]) == []
