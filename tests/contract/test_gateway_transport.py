"""The transport to providers against servers that misbehave, and over TLS."""

from __future__ import annotations

import asyncio
import gc
import gzip
import signal
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import urllib3

from deploys.lib import pki
from relay.providers.transport import (
    MAX_HEADER_BYTES,
    AiohttpTransport,
    Broken,
    NotSent,
    TimedOut,
    Timeouts,
    TransportError,
)
from tests.contract.conftest import Database, free_port
from tests.contract.relay_rig import MODEL, Customer, Provider, Relay, asks, eventually, running_provider

LIMITS = Timeouts(connect=0.5, first_byte=0.5, idle=0.5, total=3)
SMALL = 1000
# The default of Node.js (http.Server.keepAliveTimeout) and of uvicorn (timeout_keep_alive).
SERVERS_IDLE_SECONDS = 5

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A raw TCP server that runs ``script`` for each connection after one request was read."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = self.requests = self.closed_early = 0
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        port = free_port()
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}/v1"
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
                await self._script(reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed_early += 1
        finally:
            writer.close()


def says(answer: bytes, *, close: bool = False) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        if close:
            writer.close()

    return script


async def ask(server: Server, transport: AiohttpTransport, limit: int = SMALL) -> bytes:
    async with await transport.post(server.url, {"authorization": "Bearer k"}, b"{}") as reply:
        return await reply.read(limit)


def run(script: Script, scenario: Callable[[Server, AiohttpTransport], Awaitable[None]]) -> None:
    async def whole() -> None:
        transport = AiohttpTransport(LIMITS, None)
        try:
            async with Server(script).running() as server:
                await scenario(server, transport)
        finally:
            await transport.close()

    asyncio.run(whole())
    gc.collect()


OK = b"HTTP/1.1 200 OK\r\n"


def encoded(name: str, body: bytes) -> bytes:
    return OK + b"content-encoding: %s\r\ncontent-length: %d\r\n\r\n%s" % (name.encode(), len(body), body)


@pytest.mark.parametrize(
    ("answer", "close"),
    [
        (OK + b"content-length: 5\r\n\r\nhello", False),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", False),
        (OK + b"connection: close\r\n\r\nhello", True),
        (b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + OK + b"content-length: 5\r\n\r\nhello", False),
        (encoded("gzip", gzip.compress(b"hello")), False),
        (encoded("deflate", zlib.compress(b"hello")), False),
    ],
    ids=["length", "chunked", "close-delimited", "interim", "gzip", "deflate"],
)
def test_bodies_of_every_framing(answer: bytes, close: bool) -> None:
    async def scenario(server: Server, transport: AiohttpTransport) -> None:
        assert await ask(server, transport) == b"hello"
        assert await ask(server, transport) == b"hello"
        assert server.connections == (2 if close else 1), "kept connections are used again"

    run(says(answer, close=close), scenario)


@pytest.mark.parametrize(
    ("answer", "close"),
    [
        (b"nonsense\r\n\r\n", True),
        (OK + b"content-length: 50\r\n\r\nhello", True),
        (OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", True),
        (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n", False),
        (OK + b"x-big: " + b"a" * (MAX_HEADER_BYTES + 1) + b"\r\ncontent-length: 0\r\n\r\n", False),
        (encoded("gzip", b"hello"), False),
        (encoded("gzip", gzip.compress(b"hello")[:-4]), False),
        (encoded("br", b"hello"), False),
        (OK + b"content-length: 2000\r\n\r\n" + b"x" * 2000, False),
        (b"", True),
    ],
    ids=[
        "garbage",
        "short",
        "cut-chunks",
        "bad-chunk",
        "huge-header",
        "not-gzip",
        "cut-gzip",
        "unknown-encoding",
        "too-large",
        "silent-close",
    ],
)
def test_what_breaks_after_sending_is_broken_and_never_sent_again(answer: bytes, close: bool) -> None:
    async def scenario(server: Server, transport: AiohttpTransport) -> None:
        with pytest.raises(Broken):
            await ask(server, transport)
        assert server.requests == 1

    run(says(answer, close=close), scenario)


def test_a_connection_is_not_used_again_after_an_error() -> None:
    async def scenario(server: Server, transport: AiohttpTransport) -> None:
        for _ in range(2):
            with pytest.raises(Broken):
                await ask(server, transport)
        assert server.connections == 2

    run(says(OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n"), scenario)


def test_a_kept_connection_that_the_provider_closed_meanwhile_is_replaced() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async def scenario(server: Server, transport: AiohttpTransport) -> None:
        assert await ask(server, transport) == b"ok"
        await asyncio.sleep(0.1)
        assert await ask(server, transport) == b"ok"
        assert server.connections == 2

    run(script, scenario)


def test_an_idle_connection_is_left_before_common_servers_close_it() -> None:
    async def scenario(server: Server, transport: AiohttpTransport) -> None:
        assert await ask(server, transport) == b"ok"
        await asyncio.sleep(SERVERS_IDLE_SECONDS - 0.5)
        assert await ask(server, transport) == b"ok"
        assert server.connections == 2

    run(says(OK + b"content-length: 2\r\n\r\nok"), scenario)


@pytest.mark.parametrize("part", [b"", OK + b"content-length: 50\r\n\r\nhello"], ids=["head", "body"])
def test_silence_is_timed_out_by_phase(part: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(part)
        await asyncio.sleep(5)

    async def scenario(server: Server, transport: AiohttpTransport) -> None:
        began = time.monotonic()
        with pytest.raises(TimedOut):
            await ask(server, transport)
        assert 0.3 < time.monotonic() - began < 4.5

    run(script, scenario)


def test_an_endless_trickle_ends_at_the_total() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.2)

    async def scenario(server: Server, transport: AiohttpTransport) -> None:
        with pytest.raises(TimedOut):
            await ask(server, transport)

    run(script, scenario)


def test_nobody_there_means_nothing_was_sent() -> None:
    async def scenario() -> None:
        transport = AiohttpTransport(LIMITS, None)
        for url in (f"http://127.0.0.1:{free_port()}", "http://no-such-host.invalid"):
            with pytest.raises(NotSent):
                await transport.post(url, {}, b"{}")
        await transport.close()

    asyncio.run(scenario())


def test_cancelling_closes_the_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)

    async def scenario(server: Server, transport: AiohttpTransport) -> None:
        task = asyncio.create_task(ask(server, transport))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert server.closed_early == 1

    run(script, scenario)


def test_a_reply_that_is_left_closes_the_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 50\r\n\r\nhello")
        await reader.readexactly(1)

    async def scenario(server: Server, transport: AiohttpTransport) -> None:
        async with await transport.post(server.url, {}, b"{}"):
            pass
        await asyncio.sleep(0.1)
        assert server.closed_early == 1

    run(script, scenario)


# ---------------------------------------------------------------------- TLS


@pytest.fixture
def authority(tmp_path: Path) -> tuple[str, str, Path]:
    certificate, key = pki.new_authority("test")
    path = tmp_path / "ca.crt"
    path.write_text(certificate)
    return certificate, key, path


@pytest.fixture
def tls_provider(authority: tuple[str, str, Path], tmp_path: Path) -> Iterator[Provider]:
    leaf, leaf_key = pki.issue(pki.Subject("provider", ("localhost",)), *authority[:2])
    (tmp_path / "leaf.crt").write_text(leaf)
    (tmp_path / "leaf.key").write_text(leaf_key)
    tls = (tmp_path / "leaf.crt", tmp_path / "leaf.key", authority[2])
    with running_provider(tmp_path, tls=tls) as running:
        yield running


def post_over_tls(url: str, ca_file: Path | None) -> int:
    async def scenario() -> int:
        transport = AiohttpTransport(LIMITS, ca_file)
        try:
            async with await transport.post(f"{url}/v1/chat/completions", {}, b"{}") as reply:
                return reply.status
        finally:
            await transport.close()

    return asyncio.run(scenario())


def test_providers_are_verified(tls_provider: Provider, authority: tuple[str, str, Path]) -> None:
    assert post_over_tls(tls_provider.url, authority[2]) == 401
    with pytest.raises(NotSent):
        post_over_tls(tls_provider.url, None)
    with pytest.raises(TransportError):
        post_over_tls(tls_provider.url.replace("localhost", "127.0.0.1"), authority[2])


def test_a_renewed_certificate_is_shown_to_who_connects_later_and_cuts_nobody(
    tls_provider: Provider, authority: tuple[str, str, Path], tmp_path: Path
) -> None:
    address = ("localhost", int(tls_provider.url.rpartition(":")[2]))

    def shown() -> str:
        return ssl.get_server_certificate(address)

    def shows(certificate: str) -> Callable[[], bool]:
        return lambda: shown() == certificate

    client = urllib3.HTTPSConnectionPool(*address, ca_certs=str(authority[2]))
    assert client.request("GET", "/healthz").status == 200
    before = shown()
    assert before == (tmp_path / "leaf.crt").read_text()
    for content, expected in (("nonsense", before), (None, None)):
        leaf, leaf_key = pki.issue(pki.Subject("provider", ("localhost",)), *authority[:2])
        (tmp_path / "leaf.crt").write_text(content or leaf)
        (tmp_path / "leaf.key").write_text(leaf_key)
        tls_provider.process.signal(signal.SIGHUP)
        eventually(shows(expected or leaf), 5)
        assert client.request("GET", "/healthz").status == 200
    assert client.num_connections == 1, "the connection is kept"


def test_a_paid_call_over_tls(
    database: Database, tls_provider: Provider, authority: tuple[str, str, Path], tmp_path: Path
) -> None:
    relay = Relay(database, tmp_path, {"RELAY_CA_FILE": str(authority[2])})
    relay.channel(tls_provider.url, MODEL)
    relay.price(MODEL)
    try:
        customer = Customer(relay, relay.replica(), "tls", "1.00")
        answer = customer.sdk.chat.completions.create(model=MODEL, messages=asks())
        assert answer.usage is not None
        assert customer.spent() > 0
    finally:
        relay.stop()
