"""How long a connection is waited for, with uvicorn itself on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import uvicorn
from uvicorn.server import ServerState

from relay import asgi
from relay.asgi import ClientGone, Receive, Scope, Send
from relay.errors import ApiError
from relay.http_protocol import HttpProtocol

KEEPALIVE = 0.3
SLOW_SECONDS = 3 * KEEPALIVE
Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the length of the body; /early answers before it is read, /slow after a while."""
    try:
        if scope["path"] == "/slow":
            await asyncio.sleep(SLOW_SECONDS)
        body = b"" if scope["path"] == "/early" else await asgi.read_body(scope, receive, 1 << 20)
        await asgi.send_json(send, 200, {"bytes": len(body)})
    except ApiError as error:
        await asgi.send_error(send, error)
    except ClientGone:
        pass


def serve(client: Client, keepalive: float = KEEPALIVE, app: App = echo) -> float:
    """Have ``client`` talk to a server of ``app``; seconds until it is done."""

    async def run() -> float:
        config = uvicorn.Config(app, ws="none", log_config=None)
        config.timeout_keep_alive = keepalive  # type: ignore[assignment]
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: HttpProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        began = time.monotonic()
        try:
            async with asyncio.timeout(60):
                await client(reader, writer)
            return time.monotonic() - began
        finally:
            writer.close()
            server.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    return asyncio.run(run())


@pytest.mark.parametrize(
    "data",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost:", b"GET / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upg"],
)
def test_half_a_head_is_not_waited_for_without_end(data: bytes) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        assert await reader.read() == b""

    assert KEEPALIVE * 0.9 <= serve(client) < KEEPALIVE + 4


def test_a_head_that_comes_slowly_is_read() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in (b"GET / HT", b"TP/1.1\r\nHost", b": x\r\n", b"\r\n"):
            await asyncio.sleep(keepalive * 0.35)
            writer.write(piece)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")

    keepalive = 3.0  # most of it is for a busy machine
    assert serve(client, keepalive) > keepalive


def test_the_rest_of_an_answered_request_is_not_waited_for_without_end() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")

    assert serve(client) < KEEPALIVE + 4


def test_a_body_that_stops_coming_gets_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 1.0)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        for _ in range(4):  # slowly is allowed
            await asyncio.sleep(0.3)
            writer.write(b"half")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in answer

    assert serve(client) >= 2.2


def test_half_a_head_does_not_cut_the_answer_before_it() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")

    assert serve(client) >= SLOW_SECONDS + KEEPALIVE * 0.9


POST = b"POST /%s HTTP/%s\r\nHost: x\r\n%sContent-Length: 2000000\r\n\r\n"
REFUSED = {
    "early, kept": (POST % (b"early", b"1.1", b""), b"200"),
    "early, closed": (POST % (b"early", b"1.1", b"Connection: close\r\n"), b"200"),
    "early, 1.0": (POST % (b"early", b"1.0", b""), b"200"),
    "too large, kept": (POST % (b"", b"1.1", b""), b"413"),
    "too large, closed": (POST % (b"", b"1.1", b"Connection: close\r\n"), b"413"),
    "no HTTP": (b"hello\r\n\r\n", b"400"),
    "no HTTP after a request": (b"GET /early HTTP/1.1\r\nHost: x\r\n\r\nhello\r\n\r\n", b"200"),
    "head without end": (b"GET / HTTP/1.1\r\nX: ", b"431"),
    "a chunk that is none": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n",
        b"400",
    ),
    "CONNECT": (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
}


@pytest.mark.parametrize("begin", REFUSED)
def test_an_answer_is_not_lost_to_what_the_client_still_sends(begin: str) -> None:
    head, status = REFUSED[begin]

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        for _ in range(20):  # a client that sends all before it reads
            writer.write(b"y" * 100_000)
            await writer.drain()
            await asyncio.sleep(0.005)
        assert (await reader.readline()).startswith(b"HTTP/1.%s %s" % (b"1", status))

    # So long is read on after the answer: a client on a busy machine needs more than KEEPALIVE for its body.
    serve(client, keepalive=60)


async def send_without_end(writer: asyncio.StreamWriter) -> None:
    """Until the other side closes."""
    while True:
        writer.write(b"y" * 1000)
        await writer.drain()
        await asyncio.sleep(0.02)


def test_a_client_that_does_not_end_after_a_refusal_is_left() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        with pytest.raises(ConnectionError):
            await send_without_end(writer)

    assert serve(client) >= KEEPALIVE * 0.9


class Watching:
    """An application that answers when it is allowed to, and notes which of its requests' clients went."""

    def __init__(self) -> None:
        self.began, self.may_answer = asyncio.Semaphore(0), asyncio.Semaphore(0)
        self.gone: asyncio.Queue[int] = asyncio.Queue()
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number = self.requests = self.requests + 1
        await asgi.read_body(scope, receive, 1 << 20)
        scope["extensions"][asgi.GONE](lambda: self.gone.put_nowait(number))
        self.began.release()
        await self.may_answer.acquire()
        await asgi.send_json(send, 200, number)


def post(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"y" * size


@pytest.mark.parametrize("size", [0, 10, 80_000], ids=["none", "small", "more than is read ahead"])
def test_an_application_hears_at_once_that_its_client_has_gone(size: int) -> None:
    app = Watching()

    async def client(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = post(size)
        writer.write(request[:100])
        await asyncio.sleep(0.05)  # then uvicorn takes the rest as one piece, and reads no further
        writer.write(request[100:])
        await app.began.acquire()
        writer.close()
        assert await app.gone.get() == 1
        app.may_answer.release()
        await asyncio.sleep(0)
        assert app.gone.empty()

    assert serve(client, keepalive=60, app=app) < 30


def test_of_several_requests_only_the_one_under_way_hears_it() -> None:
    app = Watching()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in (b"1", b"2"):
            writer.write(post(10))
            app.may_answer.release()
            assert (await reader.readuntil(b"\r\n\r\n" + number)).startswith(b"HTTP/1.1 200")
            await app.began.acquire()
        writer.write(post(10) + post(10))  # the second waits for its turn
        await app.began.acquire()
        writer.close()
        assert await app.gone.get() == 3
        app.may_answer.release()
        await asyncio.sleep(0.1)
        assert app.requests == 3
        assert app.gone.empty()

    serve(client, keepalive=60, app=app)


def test_nobody_hears_that_a_client_has_gone_with_its_answer() -> None:
    app = Watching()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(10))
        app.may_answer.release()
        await reader.readuntil(b"\r\n\r\n1")
        writer.close()
        await asyncio.sleep(0.2)
        assert app.gone.empty()

    serve(client, keepalive=60, app=app)


def test_who_asks_too_late_hears_it_nevertheless() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    read = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asgi.read_body(scope, receive, 1 << 20)
        read.set()
        assert (await receive())["type"] == "http.disconnect"
        scope["extensions"][asgi.GONE](lambda: told.put_nowait("gone"))

    async def client(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(10))
        await read.wait()
        writer.close()
        assert await told.get() == "gone"

    serve(client, keepalive=60, app=app)
