"""Many callers, several processes, one account: never a call too many, never one lost."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import psycopg
import pytest

from relay.jobs.sweeper import sweep
from relay.ledger.errors import DuplicateRequest, InsufficientCredit
from relay.ledger.ledger import Ledger
from relay.store import ledger as store
from tests.contract.money.books import CALL, REPOSITORY, Books, capture, order, play

PROCESSES = 3
CALLERS = 200
N = 83


def start(books: Books, plan: dict[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.contract.money.caller", books.app_dsn, json.dumps(plan)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_everywhere(books: Books, plan: dict[str, Any]) -> Counter[str]:
    """CALLERS callers in PROCESSES processes at once; the sum of what they got."""
    shares = [CALLERS // PROCESSES + (n < CALLERS % PROCESSES) for n in range(PROCESSES)]
    running = [start(books, {**plan, "callers": share, "calls": 1}) for share in shares]
    total: Counter[str] = Counter()
    for process in running:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        total.update(json.loads(output.splitlines()[-1]))
    return total


def test_credit_for_n_calls_serves_n(books: Books) -> None:
    account = books.account(credit=N * CALL)
    got = run_everywhere(books, {"account": account})
    assert got == {"held": N, "captured": N, "charged": N * CALL, "InsufficientCredit": CALLERS - N}
    assert books.balance(account) == (0, 0, 0)
    books.agree()


def test_quota_for_n_calls_serves_n(books: Books) -> None:
    account = books.account()
    books.grant(account, N * 1000, unit="text_tokens", source="plan_period")
    got = run_everywhere(books, {"account": account, "quotas": {"text_tokens": 1000}})
    assert got == {"held": N, "captured": N, "charged": 0, "InsufficientCredit": CALLERS - N}
    assert books.balance(account, "text_tokens") == (0, 0, 0)
    assert books.balance(account) == (0, 0, 0)
    books.agree()


def test_a_token_budget_for_n_calls_serves_n(books: Books) -> None:
    account = books.account(credit=CALLERS * CALL)
    books.query("insert into budgets (scope, scope_id, maximum) values ('token', 7, %s)", N * CALL)
    got = run_everywhere(books, {"account": account, "token": 7})
    assert got == {"held": N, "captured": N, "charged": N * CALL, "BudgetExceeded": CALLERS - N}
    assert books.query("select spent, held from budgets") == [(N * CALL, 0)]
    assert books.balance(account) == ((CALLERS - N) * CALL, 0, 0)
    books.agree()


def test_a_lost_connection_loses_and_repeats_nothing(books: Books) -> None:
    account = books.account(credit=300 * CALL)
    done = threading.Event()

    # A statement of a busy machine gets through in the longest of the pauses.
    pauses = itertools.cycle((0.05, 0.05, 0.5))

    def cut() -> None:
        with psycopg.connect(books.superuser_dsn, autocommit=True) as connection:
            while not done.wait(next(pauses)):
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where application_name in ('relay holds', 'relay captures')"
                )

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        process = start(books, {"account": account, "callers": 50, "calls": 6, "call_seconds": 0.02})
        output, _ = process.communicate(timeout=60)
    finally:
        done.set()
        cutter.join()
    got = json.loads(output.splitlines()[-1])
    assert got == {"held": 300, "captured": 300, "charged": 300 * CALL}
    assert books.balance(account) == (0, 0, 0)
    books.agree()


@pytest.mark.parametrize("how", [signal.SIGKILL])
def test_a_killed_process_leaves_what_the_sweeper_ends(books: Books, how: signal.Signals) -> None:
    account = books.account(credit=10_000 * CALL)
    plan = {"account": account, "callers": 100, "calls": 100, "call_seconds": 0.005}
    process = start(books, plan)
    assert process.stdout is not None
    for _ in range(500):
        assert process.stdout.readline()
    process.send_signal(how)
    process.wait()
    process.stdout.close()
    time.sleep(0.2)  # what the server still had in hand commits
    open_holds = books.value("select count(*) from holds where state = 'held'")
    captured = books.value("select count(*) from holds where state = 'captured'")
    assert open_holds > 0
    assert captured > 0
    books.query("update holds set expires_at = now() - interval '1 second' where state = 'held'")

    async def sweep_twice() -> list[tuple[int, int]]:
        async with await store.connect(books.app_dsn, "test") as connection:
            return [await sweep(connection), await sweep(connection)]

    assert play(sweep_twice()) == [(open_holds, open_holds * CALL), (0, 0)]
    assert books.balance(account) == ((10_000 - captured) * CALL, 0, 0)
    assert books.value("select count(*) from usage where outcome = 'swept' and charge = 0") == open_holds
    books.agree()


def test_every_capture_and_grant_replayed_twice_changes_nothing(books: Books) -> None:
    account = books.account()
    for _ in range(3):
        outcome = books.grant(account, 50 * CALL, source="purchase", source_id="invoice-1")[1]
    assert outcome == "known"

    async def story() -> None:
        ledger = Ledger(books.app_dsn)
        await ledger.start()
        holds = [await ledger.hold(order(account)) for _ in range(20)]
        for _ in range(3):
            for hold in holds:
                assert await ledger.capture(capture(hold)) == CALL
                await ledger.release(hold.order.request_id, "too late")
        with pytest.raises(DuplicateRequest):
            await ledger.hold(order(account, request_id=holds[0].order.request_id))
        await ledger.close()

    play(story())
    assert books.balance(account) == (30 * CALL, 0, 0)
    assert books.value("select count(*) from entries") == 21
    assert books.value("select count(*) from usage") == 20
    books.agree()


def test_a_refused_member_never_fails_its_neighbours(books: Books) -> None:
    rich, poor, closed = (
        books.account(credit=10 * CALL),
        books.account(credit=CALL),
        books.account(credit=CALL),
    )
    books.query("update accounts set status = 'closed' where id = %s", closed)

    async def story() -> list[str]:
        ledger = Ledger(books.app_dsn)
        known = order(rich)
        await ledger.start()
        await ledger.hold(known)
        orders = [
            order(poor, amount=5 * CALL),  # too dear; the next one of the same account is not
            order(poor),
            order(closed),
            order(10**12),
            order(rich, request_id=known.request_id),
            *[order(rich) for _ in range(9)],
            order(rich),
        ]
        results = await outcomes(ledger, orders)
        await ledger.close()
        return results

    results = play(story())
    assert results == [
        "InsufficientCredit",
        "Hold",
        "AccountSuspended",
        "AccountSuspended",
        "DuplicateRequest",
        *["Hold"] * 9,
        "InsufficientCredit",
    ]
    assert books.balance(rich) == (10 * CALL, 10 * CALL, 0)
    assert books.balance(poor) == (CALL, CALL, 0)
    assert books.audit("conserve")["ok"]


async def outcomes(ledger: Ledger, orders: list[Any]) -> list[str]:
    results = await asyncio.gather(*(ledger.hold(each) for each in orders), return_exceptions=True)
    return [type(result).__name__ for result in results]


def test_what_is_missing_is_told(books: Books) -> None:
    account = books.account(credit=CALL // 4)

    async def story() -> int:
        ledger = Ledger(books.app_dsn)
        await ledger.start()
        with pytest.raises(InsufficientCredit) as refusal:
            await ledger.hold(order(account))
        await ledger.close()
        return refusal.value.missing_nanodollars

    assert play(story()) == CALL - CALL // 4
