"""A primary that is frozen, or replaced without knowing it: what waits there goes to the next one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.ledger.ledger import Ledger
from relay.ledger.orders import Hold
from relay.store.changes import Changes
from relay.store.connection import STALL_SECONDS, connected
from tests.contract.chaos.cluster import DATABASE, Cluster, frozen
from tests.contract.money.books import CALL, Books, capture, order
from tests.contract.postgres import Database, PostgresServer, prepare

CALLS = 20
PROMOTED_AFTER = 1.0
# Looks that find no new primary yet, and connections that try the frozen host first (connect_timeout 2 s).
MOVED_WITHIN = 90
UNANSWERED_SECONDS = 1.5


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = Cluster()
    try:
        found.start()
        prepare(found.primary, DATABASE)
        found.attach_standby()
        yield found
    finally:
        found.close()


def _books(cluster: Cluster) -> Books:
    """Of what is the primary now."""
    return Books(*(cluster.primary.dsn(DATABASE, user) for user in ("relay_owner", "relay_app", "postgres")))


async def _listening(dsn: str) -> tuple[Changes, asyncio.Event]:
    """Changes that run, and what they set when an account has changed."""
    changes, heard = Changes(dsn), asyncio.Event()

    async def on_change(_: int | None) -> None:
        heard.set()

    changes.on("accounts", on_change)
    await changes.start()
    return changes, heard


async def _fail_over(cluster: Cluster) -> None:
    await asyncio.sleep(PROMOTED_AFTER)
    await asyncio.to_thread(cluster.promote_standby)


async def _call(ledger: Ledger, account: int, after: float) -> int:
    await asyncio.sleep(after)
    hold = await ledger.hold(order(account), deadline_seconds=30)
    return await ledger.capture(capture(hold))


def test_all_that_waits_moves_to_the_new_primary_and_is_charged_once(cluster: Cluster) -> None:
    books = Books(cluster.dsn("relay_owner"), cluster.dsn("relay_app"), cluster.dsn("postgres"))
    account = books.account(credit=(CALLS + 1) * CALL)

    async def story() -> list[int]:
        ledger = Ledger(books.app_dsn)
        await ledger.start()
        changes, heard = await _listening(books.app_dsn)
        held = await ledger.hold(order(account))
        async with connected(books.app_dsn, autocommit=True) as reader:
            with frozen(old := cluster.primary):
                began = time.monotonic()
                promoted = asyncio.create_task(_fail_over(cluster))
                read = asyncio.create_task(_backend(reader))
                charges = await asyncio.gather(
                    ledger.capture(capture(held)),
                    *(_call(ledger, account, after=number * 0.02) for number in range(CALLS)),
                )
                print(f"charged {time.monotonic() - began:.1f} s after the primary froze", flush=True)
                with pytest.raises(psycopg.OperationalError):
                    await read
                await promoted
                heard.clear()
                books.account(credit=CALL)
                await heard.wait()
                print(f"changes heard {time.monotonic() - began:.1f} s after it froze", flush=True)
                await ledger.close()
                await changes.close()
                cluster.kill(old)
        return charges

    assert asyncio.run(asyncio.wait_for(story(), MOVED_WITHIN)) == [CALL] * (CALLS + 1)
    assert books.balance(account) == (0, 0, 0)
    books.agree()


def _answers(account: int, unknown: Hold) -> dict[str, Callable[[Ledger], Awaitable[object]]]:
    """What the ledger says without changing anything, and what it says when asked again."""
    return {
        "an account without credit": lambda ledger: ledger.hold(order(account)),
        "an account that is unknown": lambda ledger: ledger.hold(order(account + 1)),
        "a capture of an unknown hold": lambda ledger: ledger.capture(capture(unknown)),
        "a release of an unknown hold": lambda ledger: ledger.release(uuid4(), "test"),
    }


def test_a_primary_that_was_replaced_without_knowing_it_is_not_believed(cluster: Cluster) -> None:
    books = Books(cluster.dsn("relay_owner"), cluster.dsn("relay_app"), cluster.dsn("postgres"))
    account, empty = books.account(credit=2 * CALL), books.account(credit=0)
    old = cluster.primary

    async def story() -> int:
        everywhere, stuck = Ledger(books.app_dsn), Ledger(old.dsn(DATABASE, "relay_app"))
        changes, heard = await _listening(books.app_dsn)
        await everywhere.start()
        await stuck.start()
        early = await everywhere.hold(order(account))
        cluster.promote_standby()
        # The old primary accepts connections and commands; none of its commits is confirmed any more.
        late = await everywhere.hold(order(account), deadline_seconds=MOVED_WITHIN)
        for what, ask in _answers(empty, late).items():
            asked = asyncio.ensure_future(ask(stuck))
            done, _ = await asyncio.wait({asked}, timeout=UNANSWERED_SECONDS)
            assert not done, f"{what}: answered {asked}"
            asked.cancel()
        charges = [await everywhere.capture(capture(hold)) for hold in (early, late)]
        heard.clear()
        _books(cluster).account(credit=CALL)
        await heard.wait()
        await changes.close()
        cluster.kill(old)
        await everywhere.close()
        return sum(charges)

    assert asyncio.run(asyncio.wait_for(story(), 2 * MOVED_WITHIN)) == 2 * CALL
    assert books.balance(account) == (0, 0, 0)
    books.agree()


def test_a_primary_that_is_merely_slow_is_left_alone(database: Database, postgres: PostgresServer) -> None:
    async def story() -> tuple[int, int]:
        async with connected(database.app_dsn, autocommit=True) as connection:
            before = await _backend(connection)
            with frozen(postgres):
                answer = asyncio.create_task(_backend(connection))
                await asyncio.sleep(STALL_SECONDS + 1)
            return before, await answer

    before, after = asyncio.run(story())
    assert after == before


def test_a_connection_that_does_not_commit_by_itself_has_no_transaction_open(database: Database) -> None:
    async def story() -> str:
        async with connected(database.app_dsn) as connection:
            return connection.info.transaction_status.name

    assert asyncio.run(story()) == "IDLE"


async def _backend(connection: AsyncConnection[TupleRow]) -> int:
    row = await (await connection.execute("select pg_backend_pid()")).fetchone()
    assert row
    return int(row[0])
