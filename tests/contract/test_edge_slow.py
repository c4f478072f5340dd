"""Clients that trickle, on a real nginx: they are cut, whatever they speak; slow but honest ones are not."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from deploys.lib.fleet import REPOSITORY
from tests import stall
from tests.contract import http2
from tests.contract.edge_rig import LARGE, NAME, Edge, FakeRelay, running_edge
from tests.contract.http2 import Http2

CHAT = "/v1/chat/completions"
# Half a minute on hosts.
WINDOW = 3
# Bytes a second: what is asked for, and 64 kbit/s.
SLOWEST, MOBILE = 1024, 8000
# What a busy machine may add.
BUSY_SECONDS = 30
Send = Callable[[bytes], None]


@pytest.fixture
def relay() -> Iterator[FakeRelay]:
    fake = FakeRelay()
    yield fake
    fake.close()


@pytest.fixture
def edge(tmp_path: Path, relay: FakeRelay) -> Iterator[Edge]:
    with running_edge(
        tmp_path,
        [relay.address],
        slow_seconds=WINDOW,
        slow_bytes=SLOWEST,
        client_rate=1000,
        read_timeout="90s",
    ) as running:
        yield running


def tls(edge: Edge, buffer: int = 0, protocol: str = "http/1.1") -> ssl.SSLSocket:
    """A connection; `buffer`: how many bytes this machine takes before the client reads them."""
    host, _, port = edge.settings.https_listen.rpartition(":")
    plain = socket.socket()
    if buffer:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    plain.settimeout(60)
    plain.connect((host, int(port)))
    context = ssl.create_default_context(cafile=str(edge.ca_file))
    context.set_alpn_protocols([protocol])
    return context.wrap_socket(plain, server_hostname=NAME)


class Http1Upload:
    """A call over HTTP/1.1 whose body comes piece by piece."""

    def __init__(self, edge: Edge, size: int, *, told: bool) -> None:
        self.connection, self.told = tls(edge), told
        length = f"Content-Length: {size}" if told else "Transfer-Encoding: chunked"
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
        self.connection.sendall(head.encode())

    def send(self, piece: bytes) -> None:
        self.connection.sendall(piece if self.told else b"%x\r\n%s\r\n" % (len(piece), piece))

    def is_over(self, seconds: float) -> bool:
        """Waits; whether the edge has ended the call without an answer."""
        self.connection.settimeout(seconds)
        try:
            return self.connection.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def finish(self) -> bool:
        """Ends the body; whether it was answered with 200."""
        if not self.told:
            self.connection.sendall(b"0\r\n\r\n")
        self.connection.settimeout(20)
        return self.connection.recv(1000).startswith(b"HTTP/1.1 200")

    def close(self) -> None:
        self.connection.close()


class Http2Upload:
    """The same over HTTP/2, with a ping before each piece, which the edge must answer."""

    def __init__(self, edge: Edge, size: int, *, told: bool) -> None:
        self.connection = Http2(tls(edge, protocol="h2"), NAME)
        length = [("content-length", str(size))] if told else []
        self.connection.request(1, "POST", CHAT, ("content-type", "application/json"), *length, end=False)

    def send(self, piece: bytes) -> None:
        self.connection.ping()
        self.connection.data(1, piece)

    def is_over(self, seconds: float) -> bool:
        frames = self.connection.frames(seconds)
        return any((kind, stream) == (http2.RESET, 1) for kind, stream, _ in frames)

    def finish(self) -> bool:
        self.connection.data(1, b"", end=True)
        return self.connection.answered(1, 20)

    def close(self) -> None:
        self.connection.close()


WAYS = [(Http1Upload, True), (Http1Upload, False), (Http2Upload, True), (Http2Upload, False)]


@pytest.mark.parametrize("first", [0, 100_000], ids=["from the first byte", "after a quick beginning"])
@pytest.mark.parametrize(("way", "told"), WAYS)
def test_a_body_that_trickles_is_ended(
    edge: Edge, relay: FakeRelay, way: type[Http1Upload | Http2Upload], told: bool, first: int
) -> None:
    client = edge.client()
    upload = way(edge, 500_000, told=told)
    # Below what one flow-control window of HTTP/2 holds.
    for _ in range(first // 10_000):
        upload.send(b"x" * 6_000)
    started = time.monotonic()
    while not upload.is_over(0.3):
        assert time.monotonic() - started < 2 * WINDOW + BUSY_SECONDS, "nobody ends it"
        upload.send(b"x")
        assert client.request("POST", CHAT, body=b"{}").status == 200
    # Another call of the same connection goes on.
    if isinstance(upload, Http2Upload):
        upload.connection.request(3, "GET", "/v1/models")
        assert upload.connection.answered(3)
    upload.close()
    assert b"xx" not in b"".join(call["body"] for call in relay.calls)
    log = (edge.directory / "access.log").read_text()
    assert log.count('"status":"408"') == 1


@stall.again_where_it_stood_still(WINDOW / 3)
def test_a_mobile_upload_at_64_kbit_arrives(edge: Edge, relay: FakeRelay) -> None:
    """Of 160 kB in 20 seconds, which are seven windows. 2 MB take longer, by more of the same."""
    size = 20 * MOBILE

    def upload(way: type[Http1Upload | Http2Upload], told: bool) -> bool:
        one = way(edge, size, told=told)
        for number in range(20):
            one.send(b"x" * MOBILE)
            if isinstance(one, Http2Upload):
                list(one.connection.frames(0.05))
            time.sleep(0.95 if number < 19 else 0)
        try:
            return one.finish()
        finally:
            one.close()

    with ThreadPoolExecutor(len(WAYS)) as pool:
        assert list(pool.map(lambda way: upload(*way), WAYS)) == [True] * len(WAYS)
    assert [len(call["body"]) for call in relay.calls[-len(WAYS) :]] == [size] * len(WAYS)


# nginx's send_timeout.
STALLED_SECONDS = 20


def test_a_reader_that_stands_still_is_cut(edge: Edge, relay: FakeRelay) -> None:
    """By nginx alone, and by its first hop: a client that reads nothing, over both protocols, and one of
    HTTP/2 that reads what comes and gives its answer no more room."""
    relay.behave = "large"
    stalled = [reading(edge, protocol, 4096) for protocol in ("http/1.1", "h2")]
    roomless = Http2(tls(edge, protocol="h2"), NAME, window=1000)
    roomless.request(1, "GET", "/v1/models")
    started = time.monotonic()
    frames = list(roomless.frames(STALLED_SECONDS / 2))
    if time.monotonic() - started < STALLED_SECONDS:
        assert not [kind for kind, _, _ in frames if kind in (http2.RESET, http2.GO_AWAY)], "cut too early"
    cut = edge.access_log(3)
    assert STALLED_SECONDS / 2 < time.monotonic() - started < STALLED_SECONDS + 2 * BUSY_SECONDS
    assert [int(entry["response_bytes"]) < LARGE for entry in cut] == [True] * 3
    assert [is_closed(connection) for connection in stalled] == [True] * 2
    assert (http2.RESET, 1) in [(kind, stream) for kind, stream, _ in roomless.frames(5)]
    # Its connection goes on, for it does no harm.
    relay.behave = "ok"
    roomless.request(3, "GET", "/v1/models")
    assert roomless.answered(3)
    roomless.close()


@contextmanager
def watched(edge: Edge, *, oldest: float = 4200) -> Iterator[Path]:
    """relay-slow-clients looks after the edge; the file of its figures."""
    assert os.geteuid() == 0, "ending a connection needs root"
    figures = edge.directory / "slow_clients.prom"
    port = edge.settings.https_listen.rpartition(":")[2]
    command = [sys.executable, str(REPOSITORY / "templates/edge/relay_slow_clients.py"), f"--port={port}"]
    command += [f"--slowest={SLOWEST}", f"--window={WINDOW}", "--pause=0.5", f"--oldest={oldest}"]
    process = subprocess.Popen([*command, f"--figures={figures}"], stdout=subprocess.DEVNULL)
    try:
        yield figures
        assert process.poll() is None, "relay-slow-clients has ended"
    finally:
        process.kill()
        process.wait()


def count(figures: Path, why: str) -> int:
    text = figures.read_text() if figures.exists() else ""
    (line,) = [line for line in text.splitlines() if f'why="{why}"' in line] or ["x 0"]
    return int(line.split()[1])


def reading(edge: Edge, protocol: str, buffer: int) -> ssl.SSLSocket:
    """A connection over which a large answer has been asked for, which nothing but its reading holds up."""
    connection = tls(edge, buffer, protocol)
    if protocol == "h2":
        both = Http2(connection, NAME, window=2**31 - 1)
        both.more(0, 2**31 - 1 - 65_535)
        both.request(1, "GET", "/v1/models")
    else:
        connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
    return connection


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
@stall.again_where_it_stood_still(WINDOW / 3)
def test_a_reader_that_trickles_is_cut_and_others_are_not(
    edge: Edge, relay: FakeRelay, protocol: str
) -> None:
    relay.behave = "large"
    with watched(edge) as figures:
        slow, honest = reading(edge, protocol, 4096), reading(edge, protocol, 65_536)
        started = time.monotonic()
        taken = 0
        while count(figures, "reader") == 0:
            assert time.monotonic() - started < 2 * WINDOW + BUSY_SECONDS + 10, "nobody cuts it"
            slow.recv(1)
            # Not slower: the loopback has packets of 64 KB, and tells of as much room at a time.
            taken += len(honest.recv(16 * SLOWEST))
            time.sleep(0.1)
        relay.behave = "ok"
        assert edge.client().request("POST", CHAT, body=b"{}").status == 200
        while taken < LARGE and (received := len(honest.recv(2**20))):
            taken += received
        assert taken >= LARGE
        assert is_closed(slow)
        assert count(figures, "reader") == 1
        honest.close()


def is_closed(connection: ssl.SSLSocket) -> bool:
    """Reads what is left; whether it ended before the answer did."""
    left = 0
    try:
        while received := len(connection.recv(65_536)):
            left += received
    except OSError:
        pass
    connection.close()
    return left < LARGE - 2**20


def test_who_lets_one_byte_at_a_time_come_over_http_2_ends_with_the_connections_age(
    edge: Edge, relay: FakeRelay
) -> None:
    """To the kernel it reads all there is, so that its rate tells nothing."""
    relay.behave = "large"
    with watched(edge, oldest=2 * WINDOW) as figures:
        slow = Http2(tls(edge, protocol="h2"), NAME, window=1)
        slow.request(1, "GET", "/v1/models")
        started = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - started < 2 * WINDOW + BUSY_SECONDS + 5:
                slow.more(1, 1)
                list(slow.frames(0.2))
        slow.close()
        assert 2 * WINDOW <= time.monotonic() - started < 2 * WINDOW + BUSY_SECONDS
        # Written after the cut.
        time.sleep(1)
        assert count(figures, "age") == 1
        assert count(figures, "reader") == 0
