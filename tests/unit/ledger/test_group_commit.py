"""Group commit without a database: who shares a statement, who hears what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import psycopg
import pytest
from psycopg import AsyncConnection

from relay.ledger import group_commit as batch
from relay.ledger.errors import LedgerUnavailable
from relay.ledger.group_commit import GroupCommit


class Connection:
    """Counts how often it was closed."""

    closed = 0

    async def close(self) -> None:
        self.closed += 1


class Database:
    """Takes batches of texts; `answer` decides about each batch."""

    def __init__(self, answer: Callable[[list[str]], Any] | None = None, seconds: float = 0.01) -> None:
        self.batches: list[list[str]] = []
        self.orphans: list[str] = []
        self.answer = answer
        self.seconds = seconds
        self.connections = 0
        self.group: GroupCommit[str, str] = GroupCommit(
            "test", self.connect, self.execute, self.orphans.append, 4
        )

    async def connect(self) -> AsyncConnection[Any]:
        self.connections += 1
        return cast(AsyncConnection[Any], Connection())

    async def execute(self, _: AsyncConnection[Any], items: Sequence[str]) -> list[str]:
        self.batches.append(list(items))
        await asyncio.sleep(self.seconds)
        if self.answer:
            self.answer(list(items))
        return [item.upper() for item in items]

    def ask(self, item: str, key: str | None = None, seconds: float = 5) -> asyncio.Future[str]:
        return self.group.submit(key or item, item, seconds).future


def play(database: Database, story: Coroutine[Any, Any, Any]) -> Any:
    async def run() -> Any:
        database.group.start()
        try:
            return await story
        finally:
            await database.group.close()

    return asyncio.run(run())


def test_a_batch_is_what_waited_while_the_previous_was_in_flight() -> None:
    database = Database()

    async def story() -> list[str]:
        first = database.ask("a")
        await asyncio.sleep(0.005)
        rest = [database.ask(item) for item in "bcdefg"]
        return list(await asyncio.gather(first, *rest))

    assert play(database, story()) == list("ABCDEFG")
    assert database.batches == [["a"], list("bcde"), list("fg")]
    assert database.connections == 1


def test_a_lone_call_waits_for_nobody() -> None:
    database = Database(seconds=0)
    database.group = GroupCommit("test", database.connect, database.execute, gather_seconds=1)

    async def story() -> float:
        await database.ask("warm")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await database.ask("lone")
        return loop.time() - began

    assert play(database, story()) < 0.9


def test_those_who_come_together_wait_for_more() -> None:
    database = Database(seconds=0)
    database.group = GroupCommit("test", database.connect, database.execute, gather_seconds=0.6)

    async def story() -> None:
        together = [database.ask("a"), database.ask("b")]
        await asyncio.sleep(0.02)
        await asyncio.gather(*together, database.ask("c"))
        after = database.ask("d")
        await asyncio.sleep(0.02)
        await asyncio.gather(after, database.ask("e"))

    play(database, story())
    assert database.batches == [list("abc"), list("de")]


def test_who_is_alone_again_waits_once_at_most() -> None:
    database = Database(seconds=0)
    database.group = GroupCommit("test", database.connect, database.execute, gather_seconds=1)

    async def story() -> float:
        await asyncio.gather(database.ask("a"), database.ask("b"))
        await database.ask("c")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await database.ask("d")
        return loop.time() - began

    assert play(database, story()) < 0.9
    assert database.batches == [["a", "b"], ["c"], ["d"]]


def test_a_batch_that_gathers_is_written_when_it_closes() -> None:
    database = Database(seconds=0)
    database.group = GroupCommit("test", database.connect, database.execute, gather_seconds=0.05)

    async def story() -> list[asyncio.Future[str]]:
        together = [database.ask("a"), database.ask("b")]
        for _ in range(3):  # the batch begins to gather
            await asyncio.sleep(0)
        return together

    assert [future.result() for future in play(database, story())] == ["A", "B"]
    assert database.batches == [["a", "b"]]


def test_who_is_late_or_leaves_while_a_batch_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "WATCH_SECONDS", 0.01)
    database = Database(seconds=0)
    database.group = GroupCommit(
        "test", database.connect, database.execute, database.orphans.append, gather_seconds=0.3
    )

    async def story() -> list[Any]:
        late, leaves, stays = database.ask("late", seconds=0.1), database.ask("leaves"), database.ask("stays")
        for _ in range(3):  # the batch begins to gather
            await asyncio.sleep(0)
        leaves.cancel()
        return list(await asyncio.gather(late, leaves, stays, return_exceptions=True))

    late, leaves, stays = play(database, story())
    assert isinstance(late, LedgerUnavailable)
    assert isinstance(leaves, asyncio.CancelledError)
    assert stays == "STAYS"
    assert database.batches == [["leaves", "stays"]]  # nothing says that it left before it was written
    assert database.orphans == ["leaves"]


def test_nothing_is_sent_where_all_are_late_once_it_is_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "WATCH_SECONDS", 0.01)
    database = Database(seconds=0)

    async def slowly() -> AsyncConnection[Any]:
        await asyncio.sleep(0.2)
        return await database.connect()

    database.group = GroupCommit("test", slowly, database.execute, database.orphans.append)

    async def story() -> str:
        with pytest.raises(LedgerUnavailable):
            await database.ask("late", seconds=0.05)
        await asyncio.sleep(0.3)
        return await database.ask("next")

    assert play(database, story()) == "NEXT"
    assert database.batches == [["next"]]
    assert database.orphans == []


def test_a_repeated_key_waits_for_its_predecessors_commit() -> None:
    database = Database()

    async def story() -> None:
        await asyncio.gather(database.ask("a", "k"), database.ask("b", "k"), database.ask("c"))

    play(database, story())
    assert database.batches == [["a", "c"], ["b"]]


def test_a_refused_statement_fails_one_member() -> None:
    def refuse(items: list[str]) -> None:
        if "bad" in items:
            raise psycopg.DataError("bad")

    database = Database(refuse)

    async def story() -> list[Any]:
        return await asyncio.gather(
            *(database.ask(item) for item in ("a", "bad", "b")), return_exceptions=True
        )

    a, bad, b = play(database, story())
    assert (a, b) == ("A", "B")
    assert isinstance(bad, LedgerUnavailable)


@pytest.mark.parametrize("error", [psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction])
def test_an_unknown_outcome_is_asked_again_on_a_new_connection(error: type[Exception]) -> None:
    failures = [error("gone"), error("gone")]

    def fail(_: list[str]) -> None:
        if failures:
            raise failures.pop()

    database = Database(fail)

    async def story() -> list[str]:
        return list(await asyncio.gather(database.ask("a"), database.ask("b")))

    assert play(database, story()) == ["A", "B"]
    assert database.batches == [["a", "b"]] * 3
    assert database.connections == 3


def test_no_more_wait_than_may() -> None:
    database = Database()
    database.group = GroupCommit("test", database.connect, database.execute, database.orphans.append, 4, 3)

    async def story() -> list[str]:
        waiting = [database.ask(item) for item in "abc"]
        with pytest.raises(LedgerUnavailable, match="3 calls wait"):
            database.ask("d")
        answers = list(await asyncio.gather(*waiting))
        return [*answers, await database.ask("e")]

    assert play(database, story()) == list("ABCE")


def test_callers_hear_in_time_while_a_statement_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "WATCH_SECONDS", 0.01)
    database = Database(seconds=0.3)

    async def story() -> None:
        sent = database.ask("sent", seconds=0.05)
        await asyncio.sleep(0.01)
        waiting = database.ask("waiting", seconds=0.05)
        for late in (sent, waiting):
            with pytest.raises(LedgerUnavailable):
                await late

    play(database, story())
    assert database.batches == [["sent"]]
    assert database.orphans == ["sent"]  # written after all; the one that only waited never was


def test_a_cancelled_callers_item_is_written_and_told() -> None:
    database = Database()

    async def story() -> None:
        future = database.ask("a")
        await asyncio.sleep(0.005)
        future.cancel()

    play(database, story())
    assert database.batches == [["a"]]
    assert database.orphans == ["a"]


def test_close_writes_what_waits() -> None:
    database = Database()

    async def story() -> list[asyncio.Future[str]]:
        return [database.ask(item) for item in "abcdef"]

    futures = play(database, story())
    assert [future.result() for future in futures] == list("ABCDEF")
