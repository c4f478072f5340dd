"""Hosts die while paid calls run: what customers see, and what the books say afterwards."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from deploys.sandbox import firstcall, remote
from deploys.sandbox.remote import relayctl
from tests.fleet.conftest import deploys
from tests.fleet.load import Call, Load
from tests.fleet.patroni import leader, members, switch_over

TOKENS = 4  # each stays below the edge's 10 calls a second
RATE = 20.0
FORGIVEN_SECONDS = 5
OUTAGE_SECONDS = 40


class Customers:
    """One account whose tokens make the calls; knows what it was granted."""

    def __init__(self) -> None:
        firstcall.open_channel()
        self.name = f"faults-{time.strftime('%H%M%S')}"
        first = firstcall.register(self.name, Decimal(100))
        self.account = first.account
        self.tokens = [first.token]
        self.acknowledged: list[Call] = []
        for number in range(1, TOKENS):
            created = relayctl(
                *("token", "create", "--account", str(self.account), "--name", f"{self.name}-{number}")
            )
            self.tokens.append(created["token"])

    def load(self, edges: dict[str, str]) -> Load:
        """Calls of this customer through `edges`."""
        ca_file = str(remote.CA_FILE)
        return Load(edges, remote.DOMAIN, ca_file, self.tokens, firstcall.MODEL, RATE)


@pytest.fixture(scope="module")
def customers() -> Customers:
    return Customers()


def call_while(
    customers: Customers, edges: dict[str, str], seconds: float, strike: Callable[[], object], at: float = 5
) -> tuple[list[Call], float]:
    """Call for `seconds`, run `strike` beside it after `at` of them; return calls and the strike's moment."""
    load = customers.load(edges)
    struck: list[float] = []

    def strike_later() -> None:
        time.sleep(at)
        strike()
        struck.append(time.monotonic())

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(strike_later)
        calls = asyncio.run(load.run(seconds))
        waiting.result()
    customers.acknowledged += [call for call in calls if call.ok]
    return calls, struck[0]


def kill(host: str) -> None:
    """Take the power from a host."""
    deploys("sandbox", "kill", host).ended_well()


def failures(calls: list[Call]) -> list[Call]:
    return [call for call in calls if not call.ok]


@pytest.fixture
def revived() -> Iterator[list[str]]:
    """Hosts that a test kills; they are started again and the fleet is whole before the next test."""
    killed: list[str] = []
    yield killed
    for host in killed:
        deploys("sandbox", "start", host).ended_well()
    wait_until_whole()


def wait_until_whole(seconds: float = 180) -> None:
    """Until the checklist is green again: what on-call staff would look at, too."""
    deadline = time.monotonic() + seconds
    while (run := deploys("verify", "sandbox", "--wait", "60")).status:
        assert time.monotonic() < deadline, run.output
        time.sleep(5)


def test_a_dead_app_host_costs_no_later_call(customers: Customers, revived: list[str]) -> None:
    revived.append("app2")
    calls, struck = call_while(customers, remote.addresses("edge"), 25, lambda: kill("app2"))
    late = [call for call in calls if call.began >= struck + FORGIVEN_SECONDS]
    assert len(late) > 10 * RATE
    assert failures(late) == []


def test_a_dead_edge_leaves_the_other_serving(customers: Customers, revived: list[str]) -> None:
    revived.append("edge2")
    edge1 = {"edge1": remote.addresses("edge")["edge1"]}
    calls, struck = call_while(customers, edge1, 15, lambda: kill("edge2"))
    assert [call for call in calls if call.began > struck], "no call was made after the edge died"
    assert failures(calls) == []


def test_a_dead_primary_loses_no_acknowledged_charge(customers: Customers, revived: list[str]) -> None:
    primary = leader()
    revived.append(primary)
    calls, struck = call_while(customers, remote.addresses("edge"), 60, lambda: kill(primary))
    late = [call for call in calls if call.began >= struck + OUTAGE_SECONDS]
    assert late
    assert failures(late) == []
    assert leader() != primary


def test_a_planned_switchover_costs_no_call(customers: Customers) -> None:
    """Holds and captures wait until the new primary takes writes."""
    primary = leader()

    def switch() -> None:
        switch_over(primary)

    calls, struck = call_while(customers, remote.addresses("edge"), 20, switch, at=3)
    assert leader() != primary
    assert [call for call in calls if call.began > struck]
    assert failures(calls) == []


def test_a_setting_that_needs_a_restart_costs_no_call(customers: Customers) -> None:
    """Replicas first, then another primary; the apply that takes the change back goes the same way."""
    primary = leader()
    edit = "patronictl edit-config relay --quiet --force --pg shared_buffers=144MB"

    def change() -> None:
        remote.run(primary, "sh", "-c", f"{edit} && relay-patroni restart-pending", seconds=600)

    calls, _ = call_while(customers, remote.addresses("edge"), 120, change, at=3)
    ended = sorted(call.ended for call in calls if call.ok)
    outage = max(later - earlier for earlier, later in itertools.pairwise(ended))
    print(f"longest time without an answer: {outage:.1f} s", flush=True)
    assert leader() != primary
    assert failures(calls) == []
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()
    found = members()
    assert found
    assert not [member["Member"] for member in found if member.get("Pending restart")]


def settled(account: int, seconds: float = 300) -> dict[str, int]:
    """The account, once no hold is open: the sweeper ends those of calls that died with their host."""
    deadline = time.monotonic() + seconds
    while (shown := relayctl("account", "show", str(account)))["held_nanodollars"]:
        assert time.monotonic() < deadline, f"holds stay open: {shown}"
        time.sleep(5)
    return dict(shown)


def test_the_books_agree_afterwards(customers: Customers) -> None:
    """Provider's books, usage, ledger and balance, call by call, once the sweeper has ended what crashed."""
    account = settled(customers.account)
    served = {call["request_id"]: call for call in remote.provider("/books")["calls"]}
    records = relayctl("usage", "list", "--account", str(customers.account), "--limit", "100000")
    usage = {str(row["request_id"]): row for row in records}
    for call in customers.acknowledged:
        books = served[call.request_id]
        charge = firstcall.expected_charge(books["prompt_tokens"], books["completion_tokens"])
        assert usage[call.request_id]["charge"] == charge, f"acknowledged call {call.request_id}"
    charged = sum(row["charge"] for row in usage.values())
    entries = relayctl("ledger", "list", "--account", str(customers.account), "--limit", "100000")
    assert account["balance_nanodollars"] == sum(entry["amount"] for entry in entries)
    assert account["balance_nanodollars"] == 100 * firstcall.NANO - charged
    assert relayctl("audit", "conserve")["ok"]
    assert relayctl("audit", "recompute")["ok"]
