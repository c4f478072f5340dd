"""A provider that sends exactly the bytes it is told, in the TCP writes it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal

from tests.contract.postgres import free_port

Then = Literal["keep", "close", "hang"]
HANG_SECONDS = 60.0
MAX_HEAD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Received:
    """A request: its head as it came, its header ``x-request-id``, its body."""

    head: bytes
    request_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """``writes``: (seconds of pause before it, bytes) each. ``then``: of the connection, after the last one:
    kept for the next request, closed, or left open without a word.
    """

    writes: Sequence[tuple[float, bytes]]
    then: Then = "keep"


Choose = Callable[[Received], Answer]


@asynccontextmanager
async def serving(choose: Choose, port: int) -> AsyncIterator[None]:
    """Serve ``port`` of the loopback in this event loop."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            connections.add(task)
            task.add_done_callback(connections.discard)
        try:
            await _serve(reader, writer, choose)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=MAX_HEAD_BYTES, backlog=512)
    try:
        yield
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, choose: Choose) -> None:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(_header(head, b"content-length") or 0))
        answer = choose(Received(head, _header(head, b"x-request-id"), body))
        for pause, part in answer.writes:
            await asyncio.sleep(pause)
            writer.write(part)
            await writer.drain()
        if answer.then == "hang":
            async with asyncio.timeout(HANG_SECONDS):
                await reader.read(1)
        if answer.then != "keep":
            return


def _header(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().decode("latin-1")
    return ""


@contextmanager
def running_raw_provider(choose: Choose) -> Iterator[str]:
    """Serve in a thread of its own; gives the base URL, ending with /v1."""
    ready, port = threading.Event(), free_port()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def whole() -> None:
        async with serving(choose, port):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(whole(),), daemon=True)
    thread.start()
    try:
        if not ready.wait(60):
            raise RuntimeError("the raw provider did not start within 60 s")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()


def head_of(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """The head of an HTTP/1.1 answer."""
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def json_answer(body: bytes, status: int = 200, content_type: str = "application/json") -> Answer:
    """A whole answer."""
    head = head_of(status, [("content-type", content_type), ("content-length", str(len(body)))])
    return Answer([(0, head + body)])


def stream_answer(
    *parts: bytes | float, then: Then = "close", status: int = 200, whole: bool = True
) -> Answer:
    """An event stream in chunks, one a part; a number is a pause. ``whole``: the last chunk is sent."""
    head = head_of(status, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
    writes, pause = [(0.0, head)], 0.0
    for part in parts:
        if isinstance(part, bytes):
            writes.append((pause, chunk_of(part)))
            pause = 0.0
        else:
            pause += part
    if whole and then != "hang":
        writes.append((pause, b"0\r\n\r\n"))
    return Answer(writes, then)


def chunk_of(part: bytes) -> bytes:
    """One chunk of HTTP's chunked transfer coding."""
    return b"%x\r\n%s\r\n" % (len(part), part) if part else b""
