"""Breakers of keys that spend too much in an hour: on several replicas, over hours and restarts, lifted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.ledger.errors import SpendBreakerOpen
from relay.ledger.ledger import Ledger
from relay.store import breakers
from relay.store.breakers import DbRow
from tests.contract.money.books import CALL, Books, capture, order, play

HOUR = 3600


@pytest.fixture(autouse=True)
def early_in_an_hour() -> None:
    """Let no test see a new hour begin."""
    if time.time() % HOUR > HOUR - 45:
        time.sleep(HOUR - time.time() % HOUR)


@pytest.fixture(scope="module")
def shared_books(module_database: Any) -> Books:
    """For tests that have accounts of their own."""
    return Books(module_database.owner_dsn, module_database.app_dsn, module_database.superuser_dsn)


@asynccontextmanager
async def replicas(books: Books, count: int = 2) -> AsyncIterator[list[Ledger]]:
    made = [Ledger(books.app_dsn) for _ in range(count)]
    for ledger in made:
        await ledger.start()
    yield made
    for ledger in made:
        await ledger.close()


async def call(ledger: Ledger, account: int, token: int | None, units: int = 1000) -> None:
    """A call that is charged a thousandth of CALL a unit."""
    hold = await ledger.hold(order(account, token=token))
    await ledger.capture(capture(hold, {"in_text": units}))


async def refused(ledger: Ledger, account: int, token: int) -> SpendBreakerOpen | None:
    """What a call of the token hears, which otherwise costs nothing; None where it passes."""
    try:
        hold = await ledger.hold(order(account, token=token))
    except SpendBreakerOpen as error:
        return error
    await ledger.release(hold.order.request_id, "only asked")
    return None


async def change(books: Books, kind: Any, token: int, maximum: int | None = None) -> str:
    """As the relay's commands do it."""
    async with await psycopg.AsyncConnection.connect(books.app_dsn, autocommit=True) as connection:
        return await breakers.change(connection, kind, token, maximum=maximum, reason="test", actor="ann")


async def shown(books: Books, token: int) -> DbRow | None:
    async with await psycopg.AsyncConnection.connect(books.app_dsn) as connection:
        return await breakers.find(connection, token)


def an_hour_passes(books: Books, token: int) -> None:
    books.query("update spend_breakers set hour = hour - interval '1 hour' where token_id = %s", token)


def test_every_replica_refuses_a_key_that_has_spent_its_hour(books: Books) -> None:
    account = books.account(credit=100 * CALL)
    token, other = books.token(account), books.token(account)
    now = datetime.now(UTC)
    next_hour = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)

    async def story() -> None:
        async with replicas(books) as (first, second):
            assert await change(books, "set", token, 3 * CALL) == "made"
            for ledger in (first, second, first):
                await call(ledger, account, token)
            for ledger in (first, second):
                error = await refused(ledger, account, token)
                assert error is not None
                assert (error.until, error.spent, error.maximum) == (next_hour, 3 * CALL, 3 * CALL)
                await call(ledger, account, other)
                await call(ledger, account, None)
        async with replicas(books, 1) as (restarted,):
            assert await refused(restarted, account, token) is not None
            assert await change(books, "lift", other) == "none"
            assert await change(books, "lift", token) == "made"
            assert await change(books, "lift", token) == "closed"
            for _ in range(3):
                await call(restarted, account, token)
            assert await refused(restarted, account, token) is not None, "lifted, not taken away"
            an_hour_passes(books, token)
            assert await refused(restarted, account, token) is None
            row = await shown(books, token)
            assert row is not None
            assert (row["spent"], row["open"], row["until"]) == (0, False, next_hour)

    play(story())
    history = books.query("select kind, maximum, spent, reason, actor from spend_breaker_changes order by id")
    assert history == [
        ("set", 3 * CALL, 0, "test", "ann"),
        ("lift", 3 * CALL, 3 * CALL, "test", "ann"),
    ]
    assert books.balance(account) == ((100 - 10) * CALL, 0, 0)
    an_hour_passes(books, token)
    books.query("delete from spend_breakers where token_id = %s", token)
    books.agree()


def test_the_hours_earlier_charges_count_when_a_breaker_is_set(shared_books: Books) -> None:
    books = shared_books
    account = books.account(credit=100 * CALL)
    token = books.token(account)

    async def story() -> None:
        async with replicas(books, 1) as (ledger,):
            for _ in range(2):
                await call(ledger, account, token)
            assert await change(books, "set", token, 2 * CALL) == "made"
            error = await refused(ledger, account, token)
            assert error is not None
            assert error.spent == 2 * CALL
            assert await change(books, "set", token, 2 * CALL + 1) == "made"
            assert await refused(ledger, account, token) is None, "a greater maximum lets it pass at once"
            assert await change(books, "clear", token) == "made"
            assert await change(books, "clear", token) == "none"
            assert await change(books, "set", 10**9, CALL) == "no_token"

    play(story())


def test_a_charge_counts_once_and_in_the_hour_of_its_settlement(shared_books: Books) -> None:
    books = shared_books
    account = books.account(credit=100 * CALL)
    token = books.token(account)

    async def story() -> None:
        async with replicas(books, 1) as (ledger,):
            await change(books, "set", token, 10 * CALL)
            hold = await ledger.hold(order(account, token=token))
            for _ in range(3):  # as after a lost connection
                assert await ledger.capture(capture(hold)) == CALL
            late = await ledger.hold(order(account, token=token))
            an_hour_passes(books, token)
            await ledger.capture(capture(late, {"in_text": 500}))
            row = await shown(books, token)
            assert row is not None
            assert row["spent"] == CALL // 2
            # A settlement that waited for its locks beyond the end of its hour.
            early = await ledger.hold(order(account, token=token))
            books.query("update spend_breakers set hour = hour + interval '1 hour', spent = 7")
            await ledger.capture(capture(early))
            assert books.value("select spent from spend_breakers where token_id = %s", token) == 7

    play(story())


def test_calls_at_once_on_two_replicas_are_counted_exactly(shared_books: Books) -> None:
    """Each caller goes on until it is refused: what was running when the limit was reached is charged and
    counted, and nothing passes after it."""
    books = shared_books
    account = books.account(credit=1000 * CALL)
    token = books.token(account)
    passed = 0

    async def story() -> None:
        async with replicas(books) as both:
            await change(books, "set", token, 100 * CALL)

            async def calls(number: int) -> None:
                nonlocal passed
                while True:
                    try:
                        await call(both[number % 2], account, token)
                    except SpendBreakerOpen:
                        return
                    passed += 1

            await asyncio.gather(*(calls(number) for number in range(20)))

    play(story())
    assert 100 <= passed <= 100 + 20
    assert books.value("select spent from spend_breakers where token_id = %s", token) == passed * CALL


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 1000)),
        st.tuples(st.just("lift"), st.none()),
        st.tuples(st.just("hour"), st.none()),
        st.tuples(st.just("set"), st.integers(1, 2000)),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=8)
@given(maximum=st.integers(1, 2000), steps=STEPS)
def test_a_breaker_follows_its_definition(
    shared_books: Books, maximum: int, steps: list[tuple[str, Any]]
) -> None:
    """Open from what was charged since the hour began, or since it was lifted, being the maximum or more."""
    books, unit = shared_books, CALL // 1000
    account = books.account(credit=100 * CALL)
    token = books.token(account)

    async def story() -> None:
        spent, lifted, most = 0, 0, maximum
        async with replicas(books, 1) as (ledger,):
            await change(books, "set", token, most * unit)
            for step, value in steps:
                is_open = spent - lifted >= most
                assert (await refused(ledger, account, token) is not None) == is_open
                if step == "call" and not is_open:
                    await call(ledger, account, token, value)
                    spent += value
                elif step == "lift":
                    assert await change(books, "lift", token) == ("made" if is_open else "closed")
                    lifted = spent if is_open else lifted
                elif step == "hour":
                    an_hour_passes(books, token)
                    spent = lifted = 0
                elif step == "set":
                    # Set anew it counts what the hour has charged so far.
                    most = value
                    await change(books, "set", token, most * unit)
            row = await shown(books, token)
            assert row is not None
            assert (row["spent"], row["open"]) == (spent * unit, spent - lifted >= most)

    play(story())


def test_nobody_writes_a_breakers_figures_but_the_ledger(books: Books) -> None:
    token = books.token(books.account())
    play(change(books, "set", token, CALL))
    for statement in (
        "update spend_breakers set spent = 0",
        "insert into spend_breakers (token_id, maximum, hour) values (9, 1, now())",
        "delete from spend_breakers",
        "insert into spend_breaker_changes (token_id, kind, maximum, spent, reason, actor)"
        " values (9, 'lift', 1, 1, 'x', 'x')",
    ):
        with (
            psycopg.connect(books.app_dsn) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement)
    for statement in ("update spend_breaker_changes set actor = 'eve'", "delete from spend_breaker_changes"):
        with pytest.raises(psycopg.errors.RestrictViolation):
            books.query(statement)
