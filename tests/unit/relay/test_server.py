"""How the server stops, with connections that its event loop has not come to yet."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvicorn
import uvloop

from relay import asgi, server
from relay.asgi import Receive, Scope, Send
from relay.http_protocol import HttpProtocol
from relay.listener import waiting
from relay.server import Server

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer anything."""
    await asgi.send_json(send, 200, {})


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_who_has_connected_is_answered_however_busy_the_loop_is(
    loop: type[asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a host that has more to do than it can: the time for handshakes is over before it accepts."""
    monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 0)
    answers: list[bytes] = []

    async def scenario() -> None:
        config = uvicorn.Config(app, http=HttpProtocol, port=0, lifespan="off", ws="none", log_config=None)
        config.timeout_keep_alive = 0.2  # type: ignore[assignment]
        stopping = Server(config, 0.1, lambda: None)
        serving = asyncio.create_task(stopping.serve())
        while not stopping.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        (listener,) = stopping.servers[0].sockets
        address = listener.getsockname()
        clients = [socket.create_connection(address) for _ in range(20)]
        assert waiting(listener.fileno()) == 20
        for client in clients:
            client.sendall(REQUEST)
        stopping.should_exit = True
        await stopping.shutdown()
        for client in clients:
            client.settimeout(5)
            answers.append(await asyncio.to_thread(client.recv, 100))
            client.close()
        await serving

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * 20
