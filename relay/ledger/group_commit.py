"""Group commit: a batch is what waited while the previous one was in flight, and what comes right after.

A transaction costs about a millisecond of CPU, here and in PostgreSQL, and a member of it a tenth of that. So
where members come close together a batch waits GATHER_SECONDS for more of them; a lone one waits for nobody.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from time import monotonic
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.ledger.errors import LedgerUnavailable, StatementRefused

MAX_BATCH = 512
GATHER_SECONDS = 0.001
WATCH_SECONDS = 0.25
RETRY_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.5)

# Lost connections, deadlocks, a primary that was demoted under us: ask again elsewhere.
UNKNOWN_OUTCOME = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Connect = Callable[[], Awaitable[AsyncConnection[TupleRow]]]
Execute = Callable[[AsyncConnection[TupleRow], Sequence[T]], Awaitable[Sequence[R]]]


class Member(Generic[T, R]):
    """One caller's part of a batch. ``sent``: a statement with it was begun, its outcome may be unknown.

    A caller that is cancelled cancels its future; the item is written all the same.
    """

    __slots__ = ("deadline", "future", "item", "key", "sent")

    def __init__(self, key: Hashable, item: T, deadline: float, future: "asyncio.Future[R]") -> None:
        self.key = key
        self.item = item
        self.deadline = deadline
        self.future = future
        self.sent = False


class GroupCommit(Generic[T, R]):
    """One connection, one statement in flight; concurrent callers share it.

    ``execute`` writes a batch and returns a result for each member. It must be idempotent by key: when the
    connection is lost the outcome is unknown, and the same members are sent again until their deadlines.
    A statement in flight is never cancelled. ``orphaned`` is told of each item that may have been written
    although its caller has gone or was told otherwise. ``max_waiting`` bounds the members that wait for a
    connection, their turn or their commit; None: as many as come. While batches have several members, each
    waits ``gather_seconds`` before it is sent.
    """

    def __init__(
        self,
        name: str,
        connect: Connect,
        execute: Execute[T, R],
        orphaned: Callable[[T], None] = lambda _: None,
        max_batch: int = MAX_BATCH,
        max_waiting: int | None = None,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self._name = name
        self._connect = connect
        self._execute = execute
        self._orphaned = orphaned
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._gather_seconds = gather_seconds
        self._in_company = False
        self._waiting: list[Member[T, R]] = []
        self._in_flight: list[Member[T, R]] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._connection: AsyncConnection[TupleRow] | None = None
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._clock: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect in the background and begin to serve."""
        self._task = asyncio.create_task(self._run(), name=f"group commit {self._name}")
        self._clock = asyncio.create_task(self._watch_deadlines(), name=f"deadlines {self._name}")

    async def close(self) -> None:
        """Write what waits (each member until its deadline), then disconnect."""
        self._closing = True
        self._wake.set()
        if self._task is not None and self._clock is not None:
            await self._task
            self._clock.cancel()
            await asyncio.gather(self._clock, return_exceptions=True)

    def submit(self, key: Hashable, item: T, seconds: float) -> Member[T, R]:
        """Queue an item; its future gets the result, or LedgerUnavailable after ``seconds``.

        Raises LedgerUnavailable at once when ``max_waiting`` members wait already.
        """
        waiting = len(self._waiting) + len(self._in_flight)
        if self._max_waiting is not None and waiting >= self._max_waiting:
            raise LedgerUnavailable(f"{waiting} calls wait for the database already")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        member = Member(key, item, monotonic() + seconds, future)
        self._waiting.append(member)
        self._wake.set()
        return member

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            if self._in_company or len(self._waiting) > 1:
                await asyncio.sleep(self._gather_seconds)
            self._drop_late()
            if self._waiting and self._connection is None:
                await self._reconnect()
            if self._connection is None or not self._waiting:  # while it connected, all may have become late
                continue
            self._in_flight = self._next_batch()
            self._in_company = len(self._in_flight) > 1
            await self._write(self._in_flight)
            self._in_flight = []
        if self._connection is not None:
            await self._connection.close()

    def _next_batch(self) -> list[Member[T, R]]:
        """The oldest waiting members, no key twice: a repeated key waits for its predecessor's commit."""
        batch: dict[Hashable, Member[T, R]] = {}
        later = []
        for member in self._waiting:
            if len(batch) >= self._max_batch or batch.setdefault(member.key, member) is not member:
                later.append(member)
        self._waiting = later
        return list(batch.values())

    async def _write(self, batch: list[Member[T, R]]) -> None:
        assert self._connection is not None  # noqa: S101 - _run connects first
        for member in batch:
            member.sent = True
        try:
            results = await self._execute(self._connection, [member.item for member in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} members")
        except UNKNOWN_OUTCOME as error:
            log.warning("%s: outcome of %d unknown, asking again: %s", self._name, len(batch), error)
            self._waiting = batch + self._waiting
            await self._disconnect()
            await self._back_off()
        except Exception as error:  # a statement that the server refuses must fail one member, not its batch
            await self._isolate(batch, error)
        else:
            self._failures = 0
            for member, result in zip(batch, results, strict=True):
                if member.future.done():
                    self._orphaned(member.item)
                else:
                    member.future.set_result(result)

    async def _isolate(self, batch: list[Member[T, R]], error: Exception) -> None:
        if len(batch) == 1:
            log.error("%s: refused: %s", self._name, error, exc_info=error)
            _fail(batch[0], StatementRefused(f"the ledger refused the statement: {error}"))
            return
        log.error("%s: a batch of %d was refused, writing them one by one: %s", self._name, len(batch), error)
        for member in batch:
            if self._connection is None:
                self._waiting.append(member)
            else:
                await self._write([member])

    async def _reconnect(self) -> None:
        try:
            self._connection = await self._connect()
        except (psycopg.Error, OSError) as error:
            log.warning("%s: cannot connect, trying again: %s", self._name, error)
            await self._back_off()

    async def _back_off(self) -> None:
        """At once after a first failure, then slower until a batch succeeds."""
        await asyncio.sleep(RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)])
        self._failures += 1

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _drop_late(self) -> None:
        now = monotonic()
        late = [member for member in self._waiting if member.deadline <= now]
        if late:
            self._waiting = [member for member in self._waiting if member.deadline > now]
        for member in late:
            _fail(member, LedgerUnavailable("the database did not confirm in time"))
            if member.sent:
                self._orphaned(member.item)

    async def _watch_deadlines(self) -> None:
        """Callers get their answer in time even while a statement or a connection attempt hangs."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._drop_late()
            now = monotonic()
            for member in self._in_flight:
                if member.deadline <= now:
                    _fail(member, LedgerUnavailable("the database did not confirm in time"))


def _fail(member: Member[Any, Any], error: LedgerUnavailable) -> None:
    if not member.future.done():
        member.future.set_exception(error)
