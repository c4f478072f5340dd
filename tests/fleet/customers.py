"""Customers of the fleet's tests: an account, calls at a steady rate, and books that must agree with them."""

from __future__ import annotations

import asyncio
import math
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
from tests import stall
from tests.fleet.load import Call, Load

RATE = 20.0
# An edge that stood still for ten seconds meets all their calls at once: 20 of a token are let through.
CALLS_A_SECOND_OF_A_TOKEN = 2
TOKENS = math.ceil(RATE / CALLS_A_SECOND_OF_A_TOKEN)
# So many are made at a time.
MAKERS = 3
# Against hanging: beyond what calls take at their rate.
AT_MOST_SECONDS = 180


def tokens_of(account: int, name: str, number: int) -> list[str]:
    """Makes so many tokens of an account."""

    def make(which: int) -> str:
        words = ("token", "create", "--account", str(account), "--name", f"{name}-{which}")
        return str(relayctl(*words)["token"])

    with ThreadPoolExecutor(MAKERS) as pool:
        return list(pool.map(make, range(number)))


class Customers:
    """One account whose tokens make the calls; knows what it was granted."""

    def __init__(self) -> None:
        firstcall.open_channel()
        self.name = f"customers-{time.strftime('%H%M%S')}"
        first = firstcall.register(self.name, Decimal(100))
        self.account = first.account
        self.tokens = [first.token, *tokens_of(first.account, self.name, TOKENS - 1)]
        self.acknowledged: list[Call] = []

    def load(self, edges: dict[str, str]) -> Load:
        """Calls of this customer through `edges`."""
        ca_file = str(remote.edge_ca())
        return Load(edges, remote.DOMAIN, ca_file, self.tokens, firstcall.MODEL, RATE)

    @contextmanager
    def calling(self, edges: dict[str, str]) -> Iterator[list[Call]]:
        """Call for as long as the block runs. The list has the calls that have ended, and afterwards all of
        them, in the order in which they began."""
        stop, load = threading.Event(), self.load(edges)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(lambda: asyncio.run(load.run(stop=stop)))
            try:
                yield load.calls
            finally:
                stop.set()
                load.calls[:] = running.result()
                self.acknowledged += [call for call in load.calls if call.ok]


@pytest.fixture(scope="session")
def customers() -> Customers:
    """Their calls run beside the faults; the last test of test_3_faults compares all with the books."""
    return Customers()


def call_while(
    customers: Customers,
    edges: dict[str, str],
    seconds: float,
    strike: Callable[[], object],
    at: float = 5,
    forgiven: float = 0,
) -> tuple[list[Call], float]:
    """Call for `at` seconds, run `strike` beside it, and go on until as many calls as `seconds` have were
    answered that began `forgiven` seconds after it or later.

    Returns all calls, and since when those last ones began. What the machine stood still is forgiven as well.
    """
    with customers.calling(edges) as calls, stall.measured() as stalls:
        time.sleep(at)
        strike()
        struck = time.monotonic()
        since = struck + forgiven
        end = struck + forgiven + seconds + AT_MOST_SECONDS
        while sum(call.began >= since for call in calls) < seconds * RATE:
            assert time.monotonic() < end, f"only {len(calls)} calls have ended"
            time.sleep(1)
            since = struck + forgiven + (stalls.seconds if forgiven else 0)
    return calls, since


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
