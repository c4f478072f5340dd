"""How long a connection is waited for, with uvicorn itself on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from uvicorn.server import ServerState

from relay import asgi
from relay.asgi import ClientGone, Receive, Scope, Send
from relay.errors import ApiError
from relay.http_protocol import HttpProtocol

KEEPALIVE = 0.3
Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the length of the body; /early answers before it is read."""
    try:
        body = b"" if scope["path"] == "/early" else await asgi.read_body(scope, receive, 1 << 20)
        await asgi.send_json(send, 200, {"bytes": len(body)})
    except ApiError as error:
        await asgi.send_error(send, error)
    except ClientGone:
        pass


def serve(client: Client) -> float:
    """Have ``client`` talk to a server; seconds until it is done."""

    async def run() -> float:
        config = uvicorn.Config(echo, ws="none", log_config=None)
        config.timeout_keep_alive = KEEPALIVE  # type: ignore[assignment]
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: HttpProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        began = time.monotonic()
        try:
            async with asyncio.timeout(5):
                await client(reader, writer)
            return time.monotonic() - began
        finally:
            writer.close()
            await writer.wait_closed()
            server.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    "data",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost:", b"GET / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upg"],
)
def test_half_a_head_is_not_waited_for_without_end(data: bytes) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        assert await reader.read() == b""

    assert KEEPALIVE * 0.9 <= serve(client) < KEEPALIVE + 2


def test_a_head_that_comes_slowly_is_read() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in (b"GET / HT", b"TP/1.1\r\nHost", b": x\r\n", b"\r\n"):
            writer.write(piece)
            await asyncio.sleep(KEEPALIVE * 0.6)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")

    serve(client)


def test_the_rest_of_an_answered_request_is_not_waited_for_without_end() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")

    assert serve(client) < KEEPALIVE + 2


def test_a_body_that_stops_coming_gets_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.4)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        for _ in range(3):  # slowly is allowed
            await asyncio.sleep(0.2)
            writer.write(b"half")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in answer

    assert 1.0 <= serve(client) < 3
