"""Whatever a provider sends, in whatever pieces, comes to the same, and raises what is documented."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.providers.http_connection import MAX_HEAD_BYTES, READ_BUFFER_BYTES, HttpConnection
from relay.providers.transport import Broken, NotSent, TimedOut

OK = b"HTTP/1.1 200 OK\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
FRAMINGS = ["length", "chunked"]


@dataclass
class Wire:
    """asyncio's transport, with nobody behind it."""

    closing: bool = False
    paused: bool = False
    unsent: int = 0
    written: list[bytes] = field(default_factory=list)

    def writelines(self, parts: Any) -> None:
        self.written += parts

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return self.unsent


def connected() -> tuple[HttpConnection, Wire]:
    """A connection on which a request was sent."""
    connection, wire = HttpConnection(lambda _: None), Wire()
    connection.connection_made(cast(asyncio.Transport, wire))
    connection.send(b"head", b"body")
    return connection, wire


async def read(connection: HttpConnection) -> tuple[int, dict[str, str], bytes, bool]:
    """Status, headers, body and whether it broke, of what has come."""
    body = b""
    try:
        await connection.head(0)
        while block := await connection.block(0):
            body += block
    except (Broken, TimedOut) as error:
        return connection.status, connection.headers, body, isinstance(error, Broken)
    return connection.status, connection.headers, body, False


def outcome(pieces: list[bytes], *, ends: bool = True) -> Any:
    """What becomes of an answer in ``pieces``, after which the provider closes where it ``ends``."""

    async def whole() -> Any:
        connection, wire = connected()
        for piece in pieces:
            if not wire.closing:
                connection.data_received(piece)
        reusable = connection.reusable or wire.paused
        if ends and not wire.closing:
            connection.eof_received()
        if ends or wire.closing:
            connection.connection_lost(None)
        return *await read(connection), reusable and not wire.closing

    return asyncio.run(whole())


def split(raw: bytes, places: list[int]) -> list[bytes]:
    cuts = sorted({place % (len(raw) + 1) for place in places} | {0, len(raw)})
    return [raw[a:b] for a, b in pairwise(cuts)]


bodies = st.binary(max_size=300)
names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,10}", fullmatch=True).filter(
    lambda name: name.lower() not in ("content-length", "transfer-encoding", "connection", "upgrade")
)
fields = st.dictionaries(names.map(str.lower), st.from_regex(r"[!-~]{0,12}", fullmatch=True), max_size=4)
places = st.lists(st.integers(0, 2000), max_size=12)


def framed(framing: str, body: bytes, chunk: int) -> bytes:
    """The end of a head, and the body."""
    if framing == "length":
        return b"content-length: %d\r\n\r\n%s" % (len(body), body)
    if framing == "close":
        return b"connection: close\r\n\r\n" + body
    chunks = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    coded = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in chunks)
    return b"transfer-encoding: chunked\r\n\r\n" + coded + b"0\r\nx-trailer: 1\r\n\r\n"


@given(
    st.sampled_from([*FRAMINGS, "close"]),
    bodies,
    fields,
    st.integers(1, 50),
    st.integers(0, 2),
    places,
)
def test_an_answer_is_read_in_whatever_pieces(
    framing: str, body: bytes, named: dict[str, str], chunk: int, interim: int, cuts: list[int]
) -> None:
    head = b"".join(f"{name}: {value}\r\n".encode() for name, value in named.items())
    raw = EARLY * interim + OK + head + framed(framing, body, chunk)
    status, headers, got, broke, reusable = outcome(split(raw, cuts))
    assert (status, got, broke) == (200, body, False)
    assert reusable == (framing != "close")
    assert named.items() <= headers.items()
    assert not {"link", "x-trailer"} & headers.keys() - named.keys()


@given(st.sampled_from(FRAMINGS), st.binary(min_size=1, max_size=300), st.integers(1, 50), st.data())
def test_an_answer_that_is_cut_is_broken(framing: str, body: bytes, chunk: int, data: st.DataObject) -> None:
    raw = OK + framed(framing, body, chunk)
    cut = data.draw(st.integers(0, len(raw) - 1))
    _, _, got, broke, reusable = outcome([raw[:cut]])
    assert (broke, reusable) == (True, False)
    assert body.startswith(got)


LINES = (
    *(b"HTTP/1.1 200 OK", b"HTTP/1.0 200", b"HTTP/1.1 101 X", b"HTTP/1.1 204 No", b"abc", b"0", b"3"),
    *(b"content-length: 3", b"content-length: -1", b"Content-Length: 99999999999999999999"),
    *(b"transfer-encoding: chunked", b"transfer-encoding: gzip", b"connection: close", b"upgrade: x"),
    *(b"connection: upgrade", b"\0", b"\xff", b": ", b";x=1", b"\r\n\r\n", b"\r\n", b"\n", b"\r", b" "),
)
alphabet = st.sampled_from(LINES)


@given(st.lists(alphabet | st.binary(max_size=5), max_size=30).map(b"".join), places, st.booleans())
def test_nonsense_comes_to_the_same_in_whatever_pieces(raw: bytes, cuts: list[int], ends: bool) -> None:
    assert outcome(split(raw, cuts), ends=ends) == outcome([raw], ends=ends)


@pytest.mark.parametrize(
    "raw",
    [
        OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nabc",
        OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        EARLY * 3000,
        OK + b"transfer-encoding: chunked\r\n\r\n2;" + b"x" * (MAX_HEAD_BYTES + 1),
        OK + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"x" * (MAX_HEAD_BYTES + 1),
    ],
    ids=["two-lengths", "length-and-chunked", "upgrade", "interim-flood", "chunk-extension", "trailers"],
)
@pytest.mark.parametrize("size", [1000, 1 << 20], ids=["small-pieces", "one-piece"])
def test_what_no_answer_is_gets_refused(raw: bytes, size: int) -> None:
    pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
    *_, broke, reusable = outcome(pieces, ends=False)
    assert (broke, reusable) == (True, False)


@pytest.mark.parametrize("together", [True, False])
def test_what_follows_an_answer_ends_its_connection(together: bool) -> None:
    answer, more = OK + b"content-length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad"
    status, _, body, broke, reusable = outcome([answer + more] if together else [answer, more], ends=False)
    assert (status, body, broke, reusable) == (200, b"ok", False, False)


def test_a_provider_is_not_read_while_nobody_takes_what_came() -> None:
    async def scenario() -> None:
        connection, wire = connected()
        connection.data_received(OK + b"content-length: 1000000\r\n\r\n")
        await connection.head(0)
        connection.data_received(bytes(READ_BUFFER_BYTES))
        assert not wire.paused
        connection.data_received(b"x")
        assert wire.paused
        assert len(await connection.block(0)) == READ_BUFFER_BYTES + 1
        assert not wire.paused

    asyncio.run(scenario())


def test_no_request_follows_one_that_was_not_sent_whole() -> None:
    async def scenario() -> None:
        connection, wire = connected()
        wire.unsent = 5
        connection.data_received(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        assert await read(connection) == (413, {"content-length": "0"}, b"", False)
        assert not connection.reusable
        wire.unsent = 0
        assert connection.reusable

    asyncio.run(scenario())


def test_nothing_is_sent_on_a_closed_connection() -> None:
    async def scenario() -> None:
        connection, wire = connected()
        connection.connection_lost(None)
        with pytest.raises(NotSent):
            connection.send(b"head", b"body")
        assert wire.written == [b"head", b"body"]

    asyncio.run(scenario())
