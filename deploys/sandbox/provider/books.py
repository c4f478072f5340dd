"""The provider's own books: one row for each call it served, committed before the call's last byte."""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
import time
from concurrent.futures import Future
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

SCHEMA = """
create table if not exists calls (
    id integer primary key autoincrement,
    request_id text not null,
    model text not null,
    stream integer not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    complete integer not null,
    usage_sent integer not null,
    served_at real not null,
    format text not null default '',
    usage text not null default '{}',
    bill text not null default '{}'
);
create index if not exists calls_request_id on calls (request_id);
create index if not exists calls_served_at on calls (served_at);
"""
COLUMNS = (
    "id",
    "request_id",
    "model",
    "stream",
    "prompt_tokens",
    "completion_tokens",
    "complete",
    "usage_sent",
    "served_at",
    "format",
    "usage",
    "bill",
)
JSON_COLUMNS = ("usage", "bill")
ADDED = {"format": "''", "usage": "'{}'", "bill": "'{}'"}  # to books of an earlier version; name and default
INSERT = f"insert into calls ({', '.join(COLUMNS[1:])}) values ({', '.join('?' * len(COLUMNS[1:]))})"  # noqa: S608
MAX_BATCH = 500
PAGE = 10_000


@dataclass(frozen=True, slots=True)
class Served:
    """One served call: ``completion_tokens`` counts what was produced until the end or the cancel.

    ``prompt_tokens`` includes what came from or went into the cache. ``usage`` (JSON) is what the provider
    bills, in the shape of the call's ``format``; ``bill`` (JSON) the same as disjoint figures: input,
    cache_read, cache_write_5m, cache_write_1h, output.
    """

    request_id: str
    model: str
    stream: bool
    prompt_tokens: int
    completion_tokens: int
    complete: bool
    usage_sent: bool
    served_at: float
    format: str = ""
    usage: str = "{}"
    bill: str = "{}"


class Books:
    """Append-only SQLite books. One thread writes; what waits while it commits forms the next batch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: queue.SimpleQueue[tuple[Served, Future[None]] | None] = queue.SimpleQueue()
        with self._connect() as connection:
            connection.execute("pragma journal_mode=wal")
            connection.executescript(SCHEMA)
            known = {row[1] for row in connection.execute("pragma table_info(calls)")}
            for name, default in ADDED.items():
                if name not in known:
                    connection.execute(f"alter table calls add {name} text not null default {default}")
        connection.close()
        self._writer = threading.Thread(target=self._write, name="books", daemon=True)
        self._writer.start()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=10)
        connection.execute("pragma synchronous=normal")
        return connection

    async def book(self, call: Served) -> None:
        """Return once ``call`` is committed."""
        done: Future[None] = Future()
        self._waiting.put((call, done))
        await asyncio.wrap_future(done)

    def close(self) -> None:
        """Commit what waits and stop the writer."""
        self._waiting.put(None)
        self._writer.join()

    def _write(self) -> None:
        connection = self._connect()
        open_ = True
        while open_:
            batch = [self._waiting.get()]
            while len(batch) < MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            open_ = None not in batch
            self._commit(connection, [member for member in batch if member is not None])
        connection.close()

    @staticmethod
    def _commit(connection: sqlite3.Connection, batch: list[tuple[Served, Future[None]]]) -> None:
        try:
            with connection:
                connection.executemany(INSERT, [astuple(call) for call, _ in batch])
        except sqlite3.Error as error:
            for _, done in batch:
                done.set_exception(error)
        else:
            for _, done in batch:
                done.set_result(None)

    def calls(
        self, *, since: float = 0.0, request_id: str | None = None, after: int = 0
    ) -> list[dict[str, Any]]:
        """At most 10,000 calls in order of id, after id ``after`` and Unix time ``since``."""
        sql = f"select {', '.join(COLUMNS)} from calls where id > ? and served_at >= ?"  # noqa: S608
        values: list[Any] = [after, since]
        if request_id is not None:
            sql += " and request_id = ?"
            values.append(request_id)
        rows = self._read(f"{sql} order by id limit {PAGE}", values)
        return [shown(dict(zip(COLUMNS, row, strict=True))) for row in rows]

    def totals(self, *, since: float = 0.0) -> dict[str, int]:
        """Sums over the calls since the Unix time ``since``."""
        sql = (
            "select count(*), coalesce(sum(complete), 0), coalesce(sum(prompt_tokens), 0),"
            " coalesce(sum(completion_tokens), 0) from calls where served_at >= ?"
        )
        (row,) = self._read(sql, [since])
        names = ("calls", "complete", "prompt_tokens", "completion_tokens")
        return dict(zip(names, row, strict=True))

    def _read(self, sql: str, values: list[Any]) -> list[tuple[Any, ...]]:
        connection = self._connect()
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()


def shown(call: dict[str, Any]) -> dict[str, Any]:
    """A line of the books as it is answered."""
    return call | {name: json.loads(call[name]) for name in JSON_COLUMNS}


def now() -> float:
    """Unix time in seconds."""
    return time.time()
