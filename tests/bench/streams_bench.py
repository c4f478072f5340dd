"""A thousand streams at once through a relay on one core: their memory, and how much later their events come.

    .venv/bin/python -m tests.bench.streams_bench    # or `make bench-streams`; a minute, on a quiet machine

The provider sends an event a second on each stream, with the moment at which it was sent. The relay has
a core to itself; provider, callers and PostgreSQL share the others. Each stream is held and charged as any
call: at the end the balance must be what they cost. What must not be exceeded is printed beside the figure;
the bench ends with 1 when something is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

from tests.bench.bounds import Bounds
from tests.bench.gateway_bench import request
from tests.bench.ledger_bench import database
from tests.contract.conftest import Database, free_port
from tests.contract.relay_rig import MODEL, PROVIDER_KEY, Customer, Relay, eventually, price

PATH = "/v1/chat/completions"
STREAMS = 1_000
EVENTS, EVENT_EVERY_SECONDS = 20, 1.0
# Streams begin one after the other, not all in one moment.
OPENING_SECONDS = 5.0
STREAM_KB_MOST, EVENT_MS_MOST = 60.0, 5.0
PROMPT_TOKENS = 10
BODY: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": EVENTS,
    "stream": True,
    "messages": [{"role": "user", "content": "How late is it?"}],
}
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    b"connection: close\r\n\r\n"
)


def event(**fields: Any) -> bytes:
    """An event of a stream, as a chunk of HTTP."""
    about = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    data = b"data: " + json.dumps(about | fields, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def delta(content: str, finish: str | None = None) -> dict[str, Any]:
    """An event's choices."""
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]}


class Provider(asyncio.Protocol):
    """Answers the one call of a connection by a stream."""

    def connection_made(self, transport: Any) -> None:
        """A caller."""
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """A part of the call."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """The call is there."""
        self._task = asyncio.get_running_loop().create_task(self._answer())

    async def _answer(self) -> None:
        self._transport.write(HEAD)
        for _ in range(EVENTS):
            await asyncio.sleep(EVENT_EVERY_SECONDS)
            self._transport.write(event(**delta(f"{time.monotonic():.6f} ")))
        total = PROMPT_TOKENS + EVENTS
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": EVENTS, "total_tokens": total}
        self._transport.write(event(**delta("", "stop")) + event(choices=[], usage=usage))
        self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        self._transport.close()


def provide(port: int) -> None:
    """The provider, in a process of its own."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", port, backlog=STREAMS)
        await server.serve_forever()

    uvloop.run(serve())


class Caller(asyncio.Protocol):
    """Reads one stream; ``late``: seconds from each event's sending to its arrival."""

    def __init__(self, raw: bytes, done: asyncio.Future[None]) -> None:
        self._raw, self._done = raw, done
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self.late: list[float] = []
        self.ended = False

    def connection_made(self, transport: Any) -> None:
        """Call."""
        self._transport = transport
        self._transport.write(self._raw)

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Of the stream."""
        *events, self._rest = (self._rest + body).split(b"\n\n")
        now = time.monotonic()
        for data in events:
            self.ended = self.ended or data == b"data: [DONE]"
            sent = data.partition(b'"content":"')[2].partition(b" ")[0]
            if sent[:1].isdigit():
                self.late.append(now - float(sent))

    def on_message_complete(self) -> None:
        """The end."""
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Whole or not."""
        if self.ended and len(self.late) == EVENTS:
            self._done.set_result(None)
        else:
            short = ConnectionError(f"a stream ended after {len(self.late)} events")
            self._done.set_exception(error or short)


def read_streams(url: str, raw: bytes, streams: int) -> list[float]:
    """Seconds by which each event of so many streams came late; in a process of its own."""

    async def run() -> list[float]:
        loop, parts = asyncio.get_running_loop(), urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80

        async def one() -> list[float]:
            await asyncio.sleep(random.uniform(0, OPENING_SECONDS))  # noqa: S311
            done = loop.create_future()
            caller = Caller(raw, done)
            await loop.create_connection(partial(lambda it: it, caller), host, port)
            await done
            return caller.late

        found = await asyncio.gather(*[one() for _ in range(streams)])
        return [late for stream in found for late in stream]

    return uvloop.run(run())


def kilobytes(pid: int) -> float:
    """What a process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


class Stage:
    """Provider, PostgreSQL and a relay, which has a core to itself."""

    def __init__(self, stack: ExitStack, streams: int) -> None:
        self._streams = streams
        *others, self._core = sorted(os.sched_getaffinity(0))
        if not others:
            raise SystemExit("this machine has one core: the relay would share it with its callers")
        os.sched_setaffinity(0, others)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streams-bench-")))
        context = multiprocessing.get_context("spawn")
        self._port = free_port()
        provider = context.Process(target=provide, args=(self._port,), daemon=True)
        provider.start()
        stack.callback(provider.kill)
        self._pool = stack.enter_context(context.Pool(1))
        app_dsn, owner_dsn = stack.enter_context(database(None, None))
        made = Database(name="", owner_dsn=owner_dsn, app_dsn=app_dsn, superuser_dsn=owner_dsn)
        relay = Relay(made, directory, {"RELAY_REPLICAS": "1"})
        stack.callback(relay.stop)
        relay.channel(f"http://127.0.0.1:{self._port}", MODEL)
        relay.price(MODEL)
        self._replica = relay.replica()
        self._customer = Customer(relay, self._replica, "streams", "1000000")

    def direct(self) -> list[float]:
        """Events without the relay."""
        found: list[float] = self._read(f"http://127.0.0.1:{self._port}", PROVIDER_KEY, self._streams).get()
        return found

    def through(self) -> tuple[list[float], float]:
        """Events through the relay, and the most that its memory grew by, in kilobytes a stream."""
        running = self._replica.process.running
        if running is None:
            raise SystemExit("the relay does not run")
        os.sched_setaffinity(running.pid, {self._core})
        # What the first call loads belongs to no stream.
        self._read(self._replica.url, self._customer.key, 1).get()
        before = kilobytes(running.pid)
        reading = self._read(self._replica.url, self._customer.key, self._streams)
        most = before
        while not reading.ready():
            most = max(most, kilobytes(running.pid))
            time.sleep(0.2)
        late = reading.get()
        cost = (self._streams + 1) * price(PROMPT_TOKENS, EVENTS)
        if not eventually(lambda: self._customer.spent() == cost):
            raise SystemExit(f"the streams cost {self._customer.spent()} n$, not {cost}")
        return late, (most - before) / self._streams

    def _read(self, url: str, key: str, streams: int) -> Any:
        return self._pool.apply_async(read_streams, (url + PATH, request(url + PATH, key, BODY), streams))


def told(late: list[float]) -> str:
    """Median and 99th percentile in milliseconds."""
    most = statistics.quantiles(late, n=100)[98]
    return f"{1000 * statistics.median(late):.1f} ms (median), {1000 * most:.1f} ms (p99)"


def main() -> int:
    """Prints the figures; 1 when one exceeds its bound."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--streams", type=int, default=STREAMS, help="at once (default: %(default)s)")
    streams, bounds = parser.parse_args().streams, Bounds()
    with ExitStack() as stack:
        stage = Stage(stack, streams)
        direct = stage.direct()
        through, memory = stage.through()
    added = 1000 * (statistics.median(through) - statistics.median(direct))
    print(f"{streams} streams of {EVENTS} events every {EVENT_EVERY_SECONDS:g} s, a relay on one core")
    print(f"events come late without it: {told(direct)}; through it: {told(through)}")
    bound = bounds.told("added to an event, ms", added, EVENT_MS_MOST)
    print(f"added to an event: {added:.1f} ms (median) {bound}")
    bound = bounds.told("memory of a stream, KB", memory, STREAM_KB_MOST)
    print(f"memory of a stream: {memory:.1f} KB {bound}")
    return bounds.verdict()


if __name__ == "__main__":
    sys.exit(main())
