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


def serve(client: Client, keepalive: float = KEEPALIVE) -> float:
    """Have ``client`` talk to a server; seconds until it is done."""

    async def run() -> float:
        config = uvicorn.Config(echo, ws="none", log_config=None)
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
