"""Customers of the fleet's tests: an account, calls at a steady rate, and books that must agree with them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest

from deploys.sandbox import firstcall, remote
from deploys.sandbox.remote import relayctl
from tests.fleet.load import Call, Load

TOKENS = 4  # each stays below the edge's 10 calls a second
RATE = 20.0


class Customers:
    """One account whose tokens make the calls; knows what it was granted."""

    def __init__(self) -> None:
        firstcall.open_channel()
        self.name = f"customers-{time.strftime('%H%M%S')}"
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
        ca_file = str(remote.edge_ca())
        return Load(edges, remote.DOMAIN, ca_file, self.tokens, firstcall.MODEL, RATE)

    @contextmanager
    def calling(self, edges: dict[str, str]) -> Iterator[list[Call]]:
        """Call for as long as the block runs; the list has all calls afterwards."""
        stop, calls = threading.Event(), list[Call]()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(lambda: asyncio.run(self.load(edges).run(stop=stop)))
            try:
                yield calls
            finally:
                stop.set()
                calls += running.result()
                self.acknowledged += [call for call in calls if call.ok]


@pytest.fixture(scope="session")
def customers() -> Customers:
    """Their calls run beside the faults; the last test of test_3_faults compares all with the books."""
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


def failures(calls: list[Call]) -> list[Call]:
    return [call for call in calls if not call.ok]


def settled(account: int, seconds: float = 300) -> dict[str, int]:
    """The account, once no hold is open: the sweeper ends those of calls that died with their host."""
    deadline = time.monotonic() + seconds
    while (shown := relayctl("account", "show", str(account)))["held_nanodollars"]:
        assert time.monotonic() < deadline, f"holds stay open: {shown}"
        time.sleep(5)
    return dict(shown)


def books() -> dict[str, dict[str, Any]]:
    """What the provider has served, by request id; it tells so many calls at a time."""
    found: dict[str, dict[str, Any]] = {}
    after = 0
    while page := remote.provider(f"/books?after={after}")["calls"]:
        found |= {call["request_id"]: call for call in page}
        after = page[-1]["id"]
    return found


def assert_books_agree(customers: Customers) -> None:
    """Provider's books, usage, ledger and balance, call by call, once the sweeper has ended what crashed."""
    account = settled(customers.account)
    served = books()
    records = relayctl("usage", "list", "--account", str(customers.account), "--limit", "100000")
    usage = {str(row["request_id"]): row for row in records}
    for call in customers.acknowledged:
        entry = served[call.request_id]
        charge = firstcall.expected_charge(entry["prompt_tokens"], entry["completion_tokens"])
        assert usage[call.request_id]["charge"] == charge, f"acknowledged call {call.request_id}"
    charged = sum(row["charge"] for row in usage.values())
    entries = relayctl("ledger", "list", "--account", str(customers.account), "--limit", "100000")
    assert account["balance_nanodollars"] == sum(entry["amount"] for entry in entries)
    assert account["balance_nanodollars"] == 100 * firstcall.NANO - charged
    assert relayctl("audit", "conserve")["ok"]
    assert relayctl("audit", "recompute")["ok"]
