"""A listener in front of a PostgreSQL server, which writes down what passes: statements and answers.

It reads the frontend/backend protocol, version 3 (PostgreSQL's documentation, "Message Formats"), as libpq
speaks it: whatever a program sends is recorded, whichever process, library or layer of it sends it.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

CANCEL, SSL, GSS = 80877102, 80877103, 80877104
TEXT = 0
Value = bytes | None
Tell = Callable[[str, bytes], None]


@dataclass
class Call:
    """One statement as it was sent, and what came back.

    ``types``: OIDs that the client named (0: left to the server); ``formats``: 0 text, 1 binary, for each
    parameter. ``columns``: name and type OID; ``error``: SQLSTATE, or none. ``simple``: the text alone was
    sent, which may be several statements.
    """

    sql: str
    types: tuple[int, ...] = ()
    values: tuple[Value, ...] = ()
    formats: tuple[int, ...] = ()
    simple: bool = False
    columns: list[tuple[str, int]] | None = None
    rows: list[tuple[Value, ...]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    error: str = ""


@dataclass
class Session:
    """One connection: its role, its options, the test that ran when it came, and the first that it asked."""

    server: int
    number: int
    database: str
    role: str
    options: str
    test: str
    first: str = ""


@dataclass(frozen=True)
class Step:
    """What ended at a moment on a session: a call, or (None) the session itself."""

    session: Session
    call: Call | None
    at: datetime


class _Reader:
    """Fields of a message's body."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    def text(self) -> str:
        end = self._body.index(0, self._at)
        found = self._body[self._at : end]
        self._at = end + 1
        return found.decode()

    def number(self, form: str = "!h") -> int:
        (found,) = struct.unpack_from(form, self._body, self._at)
        self._at += struct.calcsize(form)
        return int(found)

    def value(self) -> Value:
        length = self.number("!i")
        if length < 0:
            return None
        self._at += length
        return self._body[self._at - length : self._at]


class _Conversation:
    """Puts a session's answers to its questions."""

    def __init__(self, session: Session, steps: list[Step]) -> None:
        self._session, self._steps = session, steps
        self._statements: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._portals: dict[str, Call] = {}
        # What the server has yet to answer, by the message's kind.
        self._waiting: deque[tuple[str, Call | None]] = deque()

    def asked(self, kind: str, body: bytes) -> None:
        """A message of the client."""
        fields = _Reader(body)
        call = None
        if kind == "P":
            name, sql = fields.text(), fields.text()
            self._statements[name] = sql, tuple(fields.number("!I") for _ in range(fields.number()))
        elif kind == "B":
            call = self._bound(fields)
        elif kind == "E":
            call = self._portals.get(fields.text())
        elif kind == "D" and chr(fields.number("!B")) == "P":
            # A cursor's portal has not been bound: its columns are those of what is fetched.
            call = self._portals.get(fields.text())
        elif kind == "Q":
            call = Call(fields.text(), simple=True)
        if kind in "PBDECSQ":
            self._waiting.append((kind, call))
        if call is not None and not self._session.first:
            self._session.first = call.sql

    def _bound(self, fields: _Reader) -> Call:
        portal, statement = fields.text(), fields.text()
        sql, types = self._statements[statement]
        formats = [fields.number() for _ in range(fields.number())]
        values = tuple(fields.value() for _ in range(fields.number()))
        if len(formats) < len(values):
            formats = (formats or [TEXT]) * len(values)
        self._portals[portal] = Call(sql, types, values, tuple(formats))
        return self._portals[portal]

    def answered(self, kind: str, body: bytes) -> None:
        """A message of the server."""
        if not self._waiting or kind in "ANSRK":
            return
        awaited, call = self._waiting[0]
        if kind == "E":
            self._failed(body)
        elif kind == "Z":
            self._waiting.popleft()
            if awaited == "Q":
                self._ended(call)
        elif kind == "T":
            self._described(call, body)
        elif kind == "D" and call is not None:
            fields = _Reader(body)
            call.rows.append(tuple(fields.value() for _ in range(fields.number())))
        elif kind == "C" and call is not None:
            call.tags.append(_Reader(body).text())
        if kind in "12n3" or (kind == "T" and awaited == "D"):
            self._waiting.popleft()
        elif kind in "CIs" and awaited == "E":
            self._waiting.popleft()
            self._ended(call)

    def _described(self, call: Call | None, body: bytes) -> None:
        fields = _Reader(body)
        columns = []
        for _ in range(fields.number()):
            name = fields.text()
            fields.number("!I"), fields.number()
            columns.append((name, fields.number("!I")))
            fields.number(), fields.number("!i"), fields.number()
        if call is not None:
            call.columns = columns

    def _failed(self, body: bytes) -> None:
        """What was sent before the next Sync is not done."""
        codes = {part[:1]: part[1:] for part in body.split(b"\0")}
        if self._waiting[0][0] == "Q":
            call = self._waiting[0][1]
            assert call is not None
            call.error = codes[b"C"].decode()
            return
        while self._waiting and self._waiting[0][0] != "S":
            kind, call = self._waiting.popleft()
            if kind == "E" and call is not None and codes:
                call.error = codes[b"C"].decode()
                self._ended(call)
                codes = {}

    def _ended(self, call: Call | None) -> None:
        self._steps.append(Step(self._session, call, datetime.now(UTC)))


class Recorder:
    """Listens on ``port`` for the server at ``server_port`` of the loopback; ``steps`` in order of their end.

    In that order one client can repeat what several did: whoever waited for a lock ended after whoever held
    it.
    """

    def __init__(self, server_port: int) -> None:
        self.steps: list[Step] = []
        self.port = 0
        self._server_port = server_port
        self._sessions = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Listen until ``stop``."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._converse(reader, writer)
        writer.close()
        self._tasks.discard(task)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        code, start = await _start(reader, writer)
        upstream, downstream = await asyncio.open_connection("127.0.0.1", self._server_port)
        try:
            downstream.write(start)
            if code == CANCEL:
                await upstream.read()
                return
            session = self._session(start)
            conversation = _Conversation(session, self.steps)
            directions = (
                asyncio.create_task(_pass_on(reader, downstream, conversation.asked)),
                asyncio.create_task(_pass_on(upstream, writer, conversation.answered)),
            )
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in directions:
                    task.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
                self.steps.append(Step(session, None, datetime.now(UTC)))
        finally:
            downstream.close()

    def _session(self, start: bytes) -> Session:
        words = start[8:].decode().split("\0")
        given = dict(zip(words[::2], words[1::2], strict=False))
        self._sessions += 1
        return Session(
            self._server_port,
            self._sessions,
            given.get("database", given["user"]),
            given["user"],
            given.get("options", ""),
            os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0],
        )


async def _start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, bytes]:
    """The first message that asks for a session or its end; encryption is declined."""
    while True:
        head = await reader.readexactly(8)
        length, code = struct.unpack("!II", head)
        if code not in (SSL, GSS):
            return code, head + await reader.readexactly(length - 8)
        writer.write(b"N")


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tell: Tell) -> None:
    while True:
        head = await reader.readexactly(5)
        body = await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
        tell(chr(head[0]), body)
        writer.write(head + body)
        await writer.drain()


@contextmanager
def recording(server_port: int) -> Iterator[Recorder]:
    """A recorder in a thread of its own while the block runs."""
    recorder = Recorder(server_port)
    ready, loops = threading.Event(), []
    stop = asyncio.Event()

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await recorder.serve(ready, stop)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="recorder")
    thread.start()
    try:
        if not ready.wait(30):
            raise RuntimeError("the recorder does not listen")
        yield recorder
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(30)
