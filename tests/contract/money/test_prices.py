"""Prices in the database: immutable, without overlap, on every replica within two seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, errors

from relay.app import new_request_id
from relay.ledger.ledger import Ledger
from relay.ledger.orders import CaptureOrder, HoldOrder
from relay.price_book import publish
from relay.price_book.cache import PriceBook
from relay.price_book.load import load_catalog
from relay.pricing.bound import MaxUsage
from relay.pricing.errors import Conflict, FieldError, Unpriced
from relay.store import prices as store
from relay.store.connection import connected
from tests.contract.money.books import Books, play

Document = dict[str, Any]
CHEAP: Document = {"model": "m", "rates": {"in_text": "1/1M", "out_text": "1/1M"}}
DEAR: Document = {"model": "m", "rates": {"in_text": "3/1M", "out_text": "3/1M"}}
REPLICAS = 3


async def in_database(books: Books, action: Callable[[AsyncConnection[Any]], Awaitable[Any]]) -> Any:
    async with await AsyncConnection.connect(books.app_dsn) as connection:
        return await action(connection)


def published(books: Books, document: Document, **options: Any) -> dict[str, Any]:
    version: dict[str, Any] = play(
        in_database(books, lambda connection: publish.publish_document(connection, document, **options))
    )
    return version


async def until(check: Callable[[], bool], seconds: float) -> float:
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < seconds, "not in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def price_of(book: PriceBook) -> int:
    try:
        return book.admit("m", group="default", at=datetime.now(UTC)).charge({"in_text": 1000}).amount
    except Unpriced:
        return -1


def test_a_change_reaches_three_replicas_and_admitted_calls_keep_their_price(books: Books) -> None:
    account = books.account(credit=10**9)

    async def story() -> tuple[int, int]:
        replicas = [PriceBook(books.app_dsn) for _ in range(REPLICAS)]
        ledger = Ledger(books.app_dsn)
        await asyncio.gather(ledger.start(), *(book.start() for book in replicas))
        await in_database(books, lambda connection: publish.publish_document(connection, CHEAP))
        await until(lambda: all(price_of(book) == 1_000_000 for book in replicas), 2)
        admission = replicas[0].admit("m", group="default", at=datetime.now(UTC))
        expires = datetime.now(UTC) + timedelta(minutes=5)
        bound = admission.bound(MaxUsage(input_units=1000))
        hold = await ledger.hold(HoldOrder(new_request_id(), account, None, admission, bound, expires))
        await in_database(books, lambda connection: publish.publish_document(connection, DEAR))
        await until(lambda: all(price_of(book) == 3_000_000 for book in replicas), 2)
        charged = await ledger.capture(CaptureOrder(hold, {"in_text": 1000}, None))
        await asyncio.gather(ledger.close(), *(book.close() for book in replicas))
        return charged, admission.tariff.version.id

    assert play(story()) == (1_000_000, 1)
    books.agree()


def test_a_change_is_seen_after_the_listening_connection_was_lost(books: Books) -> None:
    async def story() -> None:
        book = PriceBook(books.app_dsn)
        await book.start()
        books.query("select pg_terminate_backend(pid) from pg_stat_activity where query ilike 'listen%%'")
        await in_database(books, lambda connection: publish.publish_document(connection, CHEAP))
        await until(lambda: price_of(book) == 1_000_000, 4)
        await book.close()

    play(story())


def test_a_connection_is_closed_when_its_commit_is_cancelled(books: Books) -> None:
    async def story() -> bool:
        opened: list[AsyncConnection[Any]] = []
        read = asyncio.Event()

        async def work() -> None:
            async with connected(books.app_dsn) as connection:
                opened.append(connection)
                await connection.execute("select 1")
                read.set()

        task = asyncio.create_task(work())
        await read.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        return opened[0].closed

    assert play(story())


def test_a_successor_ends_its_predecessor_and_the_same_price_changes_nothing(books: Books) -> None:
    first = published(books, CHEAP)
    assert published(books, CHEAP)["unchanged"]
    second = published(books, DEAR)
    ends = books.value("select valid_to from price_versions where id = %s", first["id"])
    assert ends == second["valid_from"]
    assert books.value("select count(*) from price_versions") == 2


def test_overlapping_dates_are_refused(books: Books) -> None:
    start = datetime.now(UTC) + timedelta(days=1)
    window = {"valid_from": start.isoformat(), "valid_to": (start + timedelta(days=7)).isoformat()}
    published(books, {**CHEAP, **window})
    with pytest.raises(Conflict) as refusal:
        published(books, {**DEAR, **window})
    assert refusal.value.field == "valid_from"
    assert "overlaps" in refusal.value.problem
    assert books.value("select count(*) from price_versions where status = 'published'") == 1
    with pytest.raises(Conflict):
        published(books, CHEAP)  # without an end it would reach into the window
    published(books, {**DEAR, **window, "group": "vip"})  # another price, no overlap
    published(books, {**CHEAP, "valid_to": start.isoformat()})


def test_a_successor_is_refused_where_the_predecessor_shall_stay(books: Books) -> None:
    published(books, CHEAP)
    with pytest.raises(Conflict):
        published(books, DEAR, supersede=False)


@pytest.mark.parametrize(
    "change",
    [
        "update price_versions set quantum = 5",
        "update price_versions set valid_to = now() - interval '1 minute'",
        "update price_versions set status = 'draft'",
        "delete from price_versions",
        "update price_rows set unit_price = 1",
        "delete from price_rows",
        "insert into price_rows (version_id, meter, unit_price) select id, 'image', 1 from price_versions",
    ],
)
def test_a_published_price_is_immutable(books: Books, change: str) -> None:
    published(books, CHEAP)
    with psycopg.connect(books.owner_dsn) as connection, pytest.raises(errors.RestrictViolation):
        connection.execute(change)


def test_a_draft_may_change_until_it_is_published(books: Books) -> None:
    async def story(connection: AsyncConnection[Any]) -> None:
        draft = await publish.write_draft(connection, CHEAP)
        assert (await load_catalog(connection, datetime.now(UTC))).versions == ()
        assert await store.delete_draft(connection, draft["id"])
        draft = await publish.write_draft(connection, CHEAP)
        assert (await publish.publish_draft(connection, draft["id"]))["status"] == "published"
        assert not await store.delete_draft(connection, draft["id"])
        with pytest.raises(FieldError, match="no draft"):
            await publish.publish_draft(connection, draft["id"])

    play(in_database(books, story))


def test_an_ended_price_leaves_the_model_unpriced(books: Books) -> None:
    version = published(books, CHEAP)

    async def story(connection: AsyncConnection[Any]) -> None:
        assert await store.end_version(connection, version["id"], None)
        catalog = await load_catalog(connection, datetime.now(UTC) - timedelta(days=1))
        with pytest.raises(Unpriced):
            catalog.admit("m", group="default", at=datetime.now(UTC) + timedelta(seconds=1))
        before = catalog.admit("m", group="default", at=version["valid_from"])
        assert before.charge({"in_text": 1000}).amount == 1_000_000

    play(in_database(books, story))


def test_groups_and_currencies_are_dated(books: Books) -> None:
    async def story(connection: AsyncConnection[Any]) -> int:
        with pytest.raises(FieldError, match="CNY has no exchange rate"):
            await publish.publish_document(connection, {**CHEAP, "currency": "CNY"})
        for rate in ("1/2", "10/73"):
            await publish.set_fx(connection, "CNY", rate, "test")
            await connection.commit()
        for multiplier in ("0.5", "0.9"):
            await publish.set_group(connection, "vip", "", multiplier, "test")
            await connection.commit()
        await publish.publish_document(connection, {**CHEAP, "currency": "CNY"})
        await connection.commit()
        catalog = await load_catalog(connection, datetime.now(UTC) - timedelta(days=1))
        assert len(catalog.fx) == len(catalog.groups) == 2
        at = datetime.now(UTC) + timedelta(seconds=1)
        return catalog.admit("m", group="vip", at=at).charge({"in_text": 73_000_000}).amount

    assert play(in_database(books, story)) == 9_000_000_000


def test_a_free_model_is_free_because_somebody_said_so(books: Books) -> None:
    published(books, {"model": "gratis", "free": True})
    account = books.account()

    async def story() -> int:
        book, ledger = PriceBook(books.app_dsn), Ledger(books.app_dsn)
        await book.start()
        await ledger.start()
        admission = book.admit("gratis", group="default", at=datetime.now(UTC))
        bound = admission.bound(MaxUsage(input_units=1000, max_output=1000))
        expires = datetime.now(UTC) + timedelta(minutes=5)
        hold = await ledger.hold(HoldOrder(new_request_id(), account, None, admission, bound, expires))
        charged = await ledger.capture(CaptureOrder(hold, {"in_text": 1000, "out_text": 5}, None))
        await ledger.close()
        await book.close()
        return charged

    assert play(story()) == 0
    assert books.query("select charge, unpriced from usage") == [(0, None)]
    books.agree()
