"""What `node` lets pass, the programs on the hosts do not refuse halfway: their quorum rules are the same."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.context import ctx_inventory

from deploys.run import environment
from deploys.run.doctor import Told
from deploys.run.node import checks
from deploys.run.node.facts import Seen
from deploys.run.preview import Check
from tests.unit.deploys.scripts import load

CHANGES = ("add", "replace", "remove")


@pytest.fixture(autouse=True, scope="module")
def inventory() -> Iterator[None]:
    before = ctx_inventory.get()
    ctx_inventory.set(environment.load("sandbox"))
    yield
    ctx_inventory.set(before)


@pytest.fixture(scope="module")
def etcd_member() -> ModuleType:
    return load("etcd/relay_etcd_member.py")


@pytest.fixture(scope="module")
def swarm_node() -> ModuleType:
    return load("swarm/relay_swarm_node.py")


@st.composite
def clusters(draw: st.DrawFn) -> tuple[str, dict[str, bool], list[str]]:
    """A change, members with whether each is well, and the nodes that it is about."""
    change = draw(st.sampled_from(CHANGES))
    members = {f"db{n}": draw(st.booleans()) for n in range(3, 3 + draw(st.integers(1, 7)))}
    if change == "add":
        # The inventory has them.
        return change, members, ["db1", "db2"][: draw(st.integers(1, 2))]
    names = draw(st.lists(st.sampled_from(sorted(members)), min_size=1, unique=True))
    if change == "replace":
        # Whoever is replaced has lost its data.
        members |= dict.fromkeys(names, False)
    return change, members, names


def passes(found: Iterator[Check]) -> bool:
    return not [check for check in found if check.problem]


def refuses(program: ModuleType, *words: Any) -> bool:
    try:
        program.require_quorum(*words)
    except program.Refusal:
        return True
    return False


@given(case=clusters())
def test_no_member_of_etcd_is_refused_halfway(
    etcd_member: ModuleType, case: tuple[str, dict[str, bool], list[str]]
) -> None:
    change, members, names = case
    told = {name: Told(etcd=well) for name, well in members.items()}
    seen = Seen(etcd={name: name for name in members}, told=told)
    let = passes(checks.etcd(seen, names, change))
    now = dict(members)

    def refused(others: dict[str, bool], size: int) -> bool:
        listed = [etcd_member.Member(name, name, name, name) for name in others]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(etcd_member, "healthy", lambda member: others[member.name])
            return refuses(etcd_member, listed, size, "the change")

    halfway = False
    for name in names:
        others = {one: well for one, well in now.items() if one != name}
        # A change of members is itself a write that the quorum of before confirms.
        halfway = halfway or sum(now.values()) < len(now) // 2 + 1
        if change == "remove":
            halfway = halfway or refused(others, len(others))
            now = others
        else:
            halfway = halfway or refused(others, len(others) + 1)
            now = others | {name: True}
    # Some that would pass, one after the other, are refused: a member that is taken in helps the next.
    assert not (let and halfway)
    if len(names) == 1 and len(members) > 1:
        assert let == (not halfway)


@given(
    managers=st.dictionaries(st.sampled_from([f"app{n}" for n in range(1, 8)]), st.booleans(), min_size=1),
    names=st.lists(st.sampled_from([f"app{n}" for n in range(1, 8)]), min_size=1, max_size=2, unique=True),
)
def test_no_manager_of_the_swarm_is_refused_halfway(
    swarm_node: ModuleType, managers: dict[str, bool], names: list[str]
) -> None:
    nodes = [
        (name, "Ready" if well else "Down", "Active", "Reachable" if well else "Unreachable")
        for name, well in managers.items()
    ]
    let = passes(checks.swarm(Seen(told={"app1": Told(nodes=nodes)}), names, "remove"))
    present = [
        {
            "ID": name,
            "Description": {"Hostname": name},
            "ManagerStatus": {"Reachability": "reachable" if well else "unreachable"},
        }
        for name, well in managers.items()
    ]
    halfway = False
    for name in [one for one in names if one in managers]:
        leaving = next(node for node in present if node["ID"] == name)
        halfway = halfway or refuses(swarm_node, present, leaving)
        present.remove(leaving)
    assert not (let and halfway)
