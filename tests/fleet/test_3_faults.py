"""Hosts die while paid calls run: what customers see, and what the books say afterwards."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from deploys.sandbox import remote
from tests.fleet.conftest import deploys
from tests.fleet.customers import RATE, Customers, assert_books_agree, call_while, failures
from tests.fleet.patroni import confirmed_leader, leader, members, switch_over

FORGIVEN_SECONDS = 5
WHOLE_SECONDS = 400


def kill(host: str) -> None:
    """Take the power from a host."""
    deploys("sandbox", "kill", host).ended_well()


@pytest.fixture
def revived() -> Iterator[list[str]]:
    """Hosts that a test kills; they are started again and the fleet is whole before the next test."""
    killed: list[str] = []
    yield killed
    for host in killed:
        deploys("sandbox", "start", host).ended_well()
    wait_until_whole(killed)


def wait_until_whole(hosts: list[str], seconds: float = WHOLE_SECONDS) -> None:
    """Until the checklist is green for them: what on-call staff would look at, too."""
    deadline = time.monotonic() + seconds
    while (run := deploys("verify", "sandbox", "--wait", "60", "--limit", *hosts)).status:
        assert time.monotonic() < deadline, run.output
        time.sleep(5)


def test_a_dead_app_host_costs_no_later_call(customers: Customers, revived: list[str]) -> None:
    revived.append("app2")
    edges = remote.addresses("edge")
    calls, since = call_while(customers, edges, 12, lambda: kill("app2"), forgiven=FORGIVEN_SECONDS)
    late = [call for call in calls if call.began >= since]
    assert len(late) > 10 * RATE
    assert failures(late) == []


def test_a_dead_edge_leaves_the_other_serving(customers: Customers, revived: list[str]) -> None:
    revived.append("edge2")
    edge1 = {"edge1": remote.addresses("edge")["edge1"]}
    calls, _ = call_while(customers, edge1, 8, lambda: kill("edge2"))
    assert failures(calls) == []


def test_a_planned_switchover_costs_no_call(customers: Customers) -> None:
    """Holds and captures wait until the new primary takes writes."""
    primary = confirmed_leader()

    def switch() -> None:
        switch_over(primary)

    calls, _ = call_while(customers, remote.addresses("edge"), 8, switch, at=3)
    assert leader() != primary
    assert failures(calls) == []


def test_a_setting_that_needs_a_restart_costs_no_call(customers: Customers) -> None:
    """Replicas first, then another primary; the apply that takes the change back goes the same way."""
    primary = confirmed_leader()
    edit = "patronictl edit-config relay --quiet --force --pg shared_buffers=144MB"
    with customers.calling(remote.addresses("edge")) as calls:
        remote.run(primary, "sh", "-c", f"{edit} && relay-patroni restart-pending", seconds=600)
    ended = sorted(call.ended for call in calls if call.ok)
    outage = max(later - earlier for earlier, later in itertools.pairwise(ended))
    print(f"longest time without an answer: {outage:.1f} s", flush=True)
    assert leader() != primary
    assert failures(calls) == []
    deploys("apply", "sandbox", "--limit", "db").ended_well()
    deploys("plan", "sandbox", "--limit", "db").ended_well()
    confirmed_leader()
    found = members()
    assert found
    assert not [member["Member"] for member in found if member.get("Pending restart")]


def test_the_books_agree_afterwards(customers: Customers) -> None:
    assert_books_agree(customers)
