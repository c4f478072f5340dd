"""The transport to providers against servers that misbehave, and over TLS."""

from __future__ import annotations

import asyncio
import base64
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
from relay.providers.http_connection import MAX_HEAD_BYTES
from relay.providers.http_transport import HttpTransport, proxy_of
from relay.providers.transport import (
    Broken,
    NotSent,
    TimedOut,
    Timeouts,
    TransportError,
)
from tests.contract.conftest import Database, free_port
from tests.contract.relay_rig import MODEL, Customer, Provider, Relay, asks, eventually, running_provider

# For a busy machine, and for who is silent.
LIMITS = Timeouts(connect=20, first_byte=20, idle=20, total=60)
SHORT = Timeouts(connect=20, first_byte=0.5, idle=0.5, total=3)
SMALL = 1000
# More than sockets hold.
LARGE, BLOCK = 32 << 20, bytes(1 << 16)
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


async def ask(server: Server, transport: HttpTransport, limit: int = SMALL) -> bytes:
    async with await transport.post(server.url, {"authorization": "Bearer k"}, b"{}") as reply:
        return await reply.read(limit)


def run(
    script: Script, scenario: Callable[[Server, HttpTransport], Awaitable[None]], timeouts: Timeouts = LIMITS
) -> None:
    async def whole() -> None:
        transport = HttpTransport(timeouts, None)
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
    async def scenario(server: Server, transport: HttpTransport) -> None:
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
        (OK + b"x-big: " + b"a" * (MAX_HEAD_BYTES + 1) + b"\r\ncontent-length: 0\r\n\r\n", False),
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
    async def scenario(server: Server, transport: HttpTransport) -> None:
        with pytest.raises(Broken):
            await ask(server, transport)
        assert server.requests == 1

    run(says(answer, close=close), scenario)


def test_a_connection_is_not_used_again_after_an_error() -> None:
    async def scenario(server: Server, transport: HttpTransport) -> None:
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

    async def scenario(server: Server, transport: HttpTransport) -> None:
        assert await ask(server, transport) == b"ok"
        await asyncio.sleep(0.1)
        assert await ask(server, transport) == b"ok"
        assert server.connections == 2

    run(script, scenario)


def test_an_idle_connection_is_left_before_common_servers_close_it() -> None:
    async def scenario(server: Server, transport: HttpTransport) -> None:
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

    async def scenario(server: Server, transport: HttpTransport) -> None:
        began = time.monotonic()
        with pytest.raises(TimedOut):
            await ask(server, transport)
        assert 0.3 < time.monotonic() - began < 40

    run(script, scenario, SHORT)


def test_an_endless_trickle_ends_at_the_total() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.2)

    async def scenario(server: Server, transport: HttpTransport) -> None:
        with pytest.raises(TimedOut):
            await ask(server, transport)

    run(script, scenario, SHORT)


def test_nobody_there_means_nothing_was_sent() -> None:
    async def scenario() -> None:
        transport = HttpTransport(LIMITS, None)
        for url in (f"http://127.0.0.1:{free_port()}", "http://no-such-host.invalid"):
            with pytest.raises(NotSent):
                await transport.post(url, {}, b"{}")
        await transport.close()

    asyncio.run(scenario())


def test_cancelling_closes_the_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)

    async def scenario(server: Server, transport: HttpTransport) -> None:
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

    async def scenario(server: Server, transport: HttpTransport) -> None:
        async with await transport.post(server.url, {}, b"{}"):
            pass
        await asyncio.sleep(0.1)
        assert server.closed_early == 1

    run(script, scenario)


def test_a_provider_that_nobody_reads_is_not_taken_from() -> None:
    """Memory is bounded by what sockets hold, whatever the provider has to send."""
    written = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(OK + b"content-length: %d\r\n\r\n" % LARGE)
        for _ in range(LARGE // len(BLOCK)):
            writer.write(BLOCK)
            await writer.drain()
            written += len(BLOCK)

    async def scenario(server: Server, transport: HttpTransport) -> None:
        async with await transport.post(server.url, {}, b"{}") as reply:
            await asyncio.sleep(0.5)
            assert written < LARGE / 2
            assert len(await reply.read(LARGE)) == LARGE

    run(script, scenario)


def test_an_answer_before_the_request_was_read_ends_its_connection() -> None:
    async def scenario() -> None:
        transport = HttpTransport(LIMITS, None)
        answered = asyncio.Event()
        serving: list[asyncio.Task[None] | None] = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            serving.append(asyncio.current_task())
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n")
            await answered.wait()
            writer.close()

        port = free_port()
        async with await asyncio.start_server(script, "127.0.0.1", port):
            for _ in range(2):
                async with await transport.post(f"http://127.0.0.1:{port}", {}, bytes(LARGE)) as reply:
                    assert (reply.status, await reply.read(SMALL)) == (413, b"")
        assert len(serving) == 2
        await transport.close()
        answered.set()
        await asyncio.gather(*filter(None, serving))
        await asyncio.sleep(0.1)

    asyncio.run(scenario())


def test_what_comes_unasked_ends_a_kept_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 2\r\n\r\nok")
        await asyncio.sleep(0.1)
        writer.write(OK + b"content-length: 3\r\n\r\nbad")

    async def scenario(server: Server, transport: HttpTransport) -> None:
        for _ in range(2):
            assert await ask(server, transport) == b"ok"
            await asyncio.sleep(0.3)
        assert server.connections == 2

    run(script, scenario)


def test_what_is_sent_is_what_was_meant() -> None:
    asked = b""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"content-length: 0\r\n\r\n")
        writer.close()

    async def scenario() -> None:
        transport = HttpTransport(LIMITS, None)
        port = free_port()
        async with await asyncio.start_server(script, "127.0.0.1", port):
            url = f"http://localhost:{port}/v1/models/a b\u00e9:go%20on?x=1&y=a/b"
            async with await transport.post(url, {"x-key": "caf\u00e9\tau"}, b"{}"):
                pass
            for value in ("a\r\nx: y", "a\nb", "a\0"):
                with pytest.raises(ValueError, match="control character"):
                    await transport.post(url, {"x-key": value}, b"{}")
            await asyncio.sleep(0.1)
        await transport.close()
        lines = asked.decode("latin-1").split("\r\n")
        assert lines[0] == "POST /v1/models/a%20b%C3%A9:go%20on?x=1&y=a/b HTTP/1.1"
        assert lines[1:4] == [f"host: localhost:{port}", "x-key: caf\u00e9\tau", "content-length: 2"]

    asyncio.run(scenario())


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
        transport = HttpTransport(LIMITS, ca_file)
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


# ---------------------------------------------------------------------- through a proxy


class TunnelProxy:
    """An HTTP proxy that connects to whom it is asked for, or answers ``refusal``."""

    def __init__(self, refusal: bytes = b"") -> None:
        self._refusal = refusal
        self.heads: list[bytes] = []
        self._serving: list[asyncio.Task[None] | None] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        port = free_port()
        async with await asyncio.start_server(self._serve, "127.0.0.1", port):
            yield port
        await asyncio.gather(*filter(None, self._serving))
        await asyncio.sleep(0.1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.append(asyncio.current_task())
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        if self._refusal:
            writer.write(self._refusal)
            writer.close()
            return
        host, _, port = self.heads[-1].split()[1].decode().rpartition(":")
        there = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n")
        await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer), return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while block := await reader.read(1 << 16):
            writer.write(block)
            await writer.drain()
    finally:
        writer.close()


def test_providers_of_https_are_reached_through_a_proxy(
    tls_provider: Provider, authority: tuple[str, str, Path]
) -> None:
    async def scenario() -> None:
        proxy = TunnelProxy()
        async with proxy.running() as port:
            through = proxy_of(f"http://us%40er:pass@127.0.0.1:{port}")
            transport = HttpTransport(LIMITS, authority[2], through)
            url = f"{tls_provider.url}/v1/chat/completions"
            for _ in range(2):
                async with await transport.post(url, {}, b"{}") as reply:
                    assert reply.status == 401
                    await reply.read(SMALL)
            await transport.close()
        there = tls_provider.url.removeprefix("https://").encode()
        line = b"proxy-authorization: Basic " + base64.b64encode(b"us@er:pass")
        assert proxy.heads == [b"CONNECT %s HTTP/1.1\r\nhost: %s\r\n%s\r\n\r\n" % (there, there, line)]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "refusal",
    [b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK"],
)
def test_what_a_proxy_refuses_was_not_sent(refusal: bytes) -> None:
    async def scenario() -> None:
        async with TunnelProxy(refusal).running() as port:
            transport = HttpTransport(LIMITS, None, proxy_of(f"http://127.0.0.1:{port}"))
            with pytest.raises(NotSent, match="the proxy"):
                await transport.post("https://provider.invalid/v1", {}, b"{}")
            await transport.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "url", ["https://proxy:1", "proxy:3128", "http://", "http://proxy/path", "socks5://p:1"]
)
def test_what_is_no_proxy_is_told(url: str) -> None:
    with pytest.raises(ValueError, match=r"http://proxy\.example\.com:3128"):
        proxy_of(url)
