"""The database goes away in the middle: what was acknowledged is there, what was served is charged."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import psycopg
import pytest

from relay.ledger.errors import LedgerUnavailable
from relay.ledger.ledger import Ledger
from tests.contract.money.books import CALL, Books, capture, order, play

CALLS = 60


def test_a_crash_of_the_database_loses_no_call(books: Books, postgres: Any) -> None:
    account = books.account(credit=CALLS * CALL)

    def crash() -> None:
        time.sleep(0.3)
        for _ in range(2):
            postgres.control("stop", "-m", "immediate")
            time.sleep(0.5)
            postgres.control("start")
            time.sleep(0.5)

    async def call(ledger: Ledger, number: int) -> int:
        await asyncio.sleep(number * 0.04)
        hold = await ledger.hold(order(account), deadline_seconds=30)
        await asyncio.sleep(0.05)
        return await ledger.capture(capture(hold))

    async def story() -> list[int]:
        ledger = Ledger(books.app_dsn)
        await ledger.start()
        charges = await asyncio.gather(*(call(ledger, number) for number in range(CALLS)))
        await ledger.close()
        return charges

    crasher = threading.Thread(target=crash)
    crasher.start()
    try:
        charges = play(story())
    finally:
        crasher.join()
    assert charges == [CALL] * CALLS
    assert books.balance(account) == (0, 0, 0)
    assert books.value("select count(*) from holds where state = 'captured'") == CALLS
    books.agree()


def test_the_caller_hears_in_time_and_the_late_hold_is_given_back(books: Books) -> None:
    account = books.account(credit=CALL)

    async def story() -> float:
        ledger = Ledger(books.app_dsn)
        await ledger.start()
        async with await _locked(books, account) as lock:
            began = time.monotonic()
            with pytest.raises(LedgerUnavailable):
                await ledger.hold(order(account), deadline_seconds=0.5)
            waited = time.monotonic() - began
            await lock.rollback()
        await ledger.close()
        return waited

    assert 0.4 < play(story()) < 2
    assert books.balance(account) == (CALL, 0, 0)
    assert books.query("select state from holds") == [("released",)]
    books.agree()


async def _locked(books: Books, account: int) -> Any:
    connection = await psycopg.AsyncConnection.connect(books.superuser_dsn)
    await connection.execute("select from balances where account_id = %s for update", (account,))
    return connection


def test_a_cancelled_caller_is_charged_all_the_same(books: Books) -> None:
    account = books.account(credit=CALL)

    async def story() -> None:
        ledger = Ledger(books.app_dsn)
        await ledger.start()
        hold = await ledger.hold(order(account))
        task = asyncio.create_task(ledger.capture(capture(hold)))
        await asyncio.sleep(0)
        task.cancel()
        await ledger.close()

    play(story())
    assert books.balance(account) == (0, 0, 0)
    books.agree()


def test_a_caller_that_leaves_during_its_hold_gets_it_back(books: Books) -> None:
    account = books.account(credit=CALL)

    async def story() -> None:
        ledger = Ledger(books.app_dsn)
        await ledger.start()
        task = asyncio.create_task(ledger.hold(order(account)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await ledger.close()

    play(story())
    assert books.balance(account) == (CALL, 0, 0)
    assert books.query("select outcome from usage") == [("abandoned",)]
    books.agree()
