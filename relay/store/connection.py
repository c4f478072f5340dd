"""Connections that leave a primary which has stopped answering, and connections beside the pool."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import Row, TupleRow

# A statement may wait so long before its connection looks for another primary, and between two looks.
STALL_SECONDS = 3.0
# A primary that cannot be reached is looked for so often.
PAUSE_SECONDS = 0.5
# The first eight digits of a WAL file's name are its timeline, which each promotion makes greater. A standby
# has none of its own.
TIMELINE = "select case when not pg_is_in_recovery() then pg_walfile_name(pg_current_wal_insert_lsn()) end"
TIMELINE_DIGITS = 8

log = logging.getLogger(__name__)


class WatchedConnection(AsyncConnection[Row]):
    """A connection to the primary that ends once there is a newer primary and its own says nothing.

    The kernel of a host whose processes are frozen, or whose disk hangs, goes on acknowledging packets:
    neither keepalives nor tcp_user_timeout end a connection to it, and what waits there would wait for ever.
    A statement that waits for STALL_SECONDS asks, on a connection of its own, which timeline the primary
    writes. If that is a later one, this connection is shut, and the statement raises
    psycopg.OperationalError, its outcome unknown. A primary that is merely slow is left alone.
    """

    _conninfo = ""
    # 0: a standby, which is not watched.
    _timeline = 0
    # The newest timeline that this process has seen, by connection string.
    newest: ClassVar[dict[str, int]] = {}

    @classmethod
    async def connect(cls, conninfo: str = "", *, autocommit: bool = False, **options: Any) -> Any:
        """See psycopg. Where two servers claim to be the primary, that of the newer timeline is taken."""
        connection = await cls._connect(conninfo, autocommit=autocommit, **options)
        if connection._timeline and connection._timeline < cls.newest.get(conninfo, 0):
            timeline, newer = await _newest_host(conninfo)
            # Else the database was restored, and began anew.
            if timeline > connection._timeline:
                await connection.close()
                connection = await cls._connect(newer, autocommit=autocommit, **options)
        connection._conninfo = conninfo
        cls.newest[conninfo] = connection._timeline
        return connection

    @classmethod
    async def _connect(cls, conninfo: str, *, autocommit: bool, **options: Any) -> WatchedConnection[Any]:
        connection = await super().connect(conninfo, autocommit=True, **options)
        try:
            connection._timeline = await _timeline(connection)
            await connection.set_autocommit(autocommit)
        except TimeoutError as error:
            await connection.close()
            raise psycopg.OperationalError("the server accepts connections, but does not answer") from error
        except BaseException:
            await connection.close()
            raise
        return connection

    async def wait(self, gen: PQGen[Any], *arguments: Any, **options: Any) -> Any:
        """See psycopg."""
        if not self._timeline:
            return await super().wait(gen, *arguments, **options)
        watch: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        timer = loop.call_later(STALL_SECONDS, lambda: watch.append(loop.create_task(self._look_elsewhere())))
        try:
            return await super().wait(gen, *arguments, **options)
        finally:
            timer.cancel()
            for task in watch:
                task.cancel()

    async def _look_elsewhere(self) -> None:
        while True:
            found, _ = await _newest_host(self._conninfo)
            if found > self._timeline:
                log.warning(
                    "the server does not answer, and a newer primary does: leaving timeline %d for %d",
                    self._timeline,
                    found,
                )
                self.newest[self._conninfo] = found
                _shut(self.pgconn.socket)
                return
            await asyncio.sleep(STALL_SECONDS)


async def _newest_host(conninfo: str) -> tuple[int, str]:
    """The newest timeline that a primary among the hosts writes, and the string for that host alone."""
    return max(await asyncio.gather(*map(_timeline_of, _each_host(conninfo))))


async def _timeline_of(conninfo: str) -> tuple[int, str]:
    try:
        async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
            return await _timeline(connection), conninfo
    except (psycopg.Error, OSError) as error:
        log.debug("no primary: %s", error)
        return 0, conninfo


def _each_host(conninfo: str) -> Iterator[str]:
    settings = {name: value for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    lists = {
        name: str(settings[name]).split(",") for name in ("host", "hostaddr", "port") if name in settings
    }
    for number in range(max(map(len, lists.values()), default=1)):
        one = {name: values[number if len(values) > 1 else 0] for name, values in lists.items()}
        yield make_conninfo("", **(settings | one))


async def _timeline(connection: AsyncConnection[Any]) -> int:
    async with asyncio.timeout(STALL_SECONDS):
        row = await (await connection.execute(TIMELINE)).fetchone()
    return int(row[0][:TIMELINE_DIGITS], 16) if row and row[0] else 0


def _shut(descriptor: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as same:
        same.shutdown(socket.SHUT_RDWR)


async def _patiently(dsn: str, autocommit: bool, patience: float) -> AsyncConnection[TupleRow]:
    end = asyncio.get_running_loop().time() + patience
    while True:
        try:
            return await WatchedConnection.connect(dsn, autocommit=autocommit)  # type: ignore[no-any-return]
        except psycopg.OperationalError as error:
            late = asyncio.get_running_loop().time() >= end
            if late or len(list(_each_host(dsn))) == 1 or "authentication failed" in str(error):
                raise
        await asyncio.sleep(PAUSE_SECONDS)


@asynccontextmanager
async def connected(
    dsn: str, *, autocommit: bool = False, patience: float = 0.0
) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """A connection that commits at the end, or rolls back, and is closed whatever happens.

    Where `dsn` names several hosts, of which another may become the primary just now, a connection is tried
    again for `patience` seconds. psycopg's own context leaves it open when the task is cancelled while it
    commits. Raises psycopg.Error.
    """
    connection = await _patiently(dsn, autocommit, patience)
    try:
        async with connection:
            yield connection
    finally:
        await connection.close()
