"""One connection to a provider: HTTP/1.1 (RFC 9112) on asyncio's protocols, parsed by httptools.

One request at a time. What comes is kept until the reader takes it, and when it is much, the provider is no
longer read. Nothing may follow an answer: a connection on which something does is not used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from relay.providers.transport import Broken, NotSent, TimedOut, TransportError

# Of an answer: its head, and later what comes without a byte of its body (chunk extensions, trailers).
MAX_HEAD_BYTES = 64 << 10
# What the reader has not taken yet, before the provider is no longer read.
READ_BUFFER_BYTES = 64 << 10


class HttpConnection(asyncio.Protocol):
    """``on_lost`` is told when it is closed, from either side. ``status`` and ``headers`` (lower case; the
    values of one name joined by commas, RFC 9110, 5.3) are of the answer whose head came last."""

    __slots__ = (
        "_blocks",
        "_chunked",
        "_complete",
        "_error",
        "_head_complete",
        "_loop",
        "_on_lost",
        "_overhead",
        "_parser",
        "_paused",
        "_sized",
        "_spoilt",
        "_transport",
        "_unread",
        "_waiter",
        "headers",
        "status",
    )

    def __init__(self, on_lost: Callable[[HttpConnection], None]) -> None:
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        # As tolerant as providers' servers need it: what they mean is not in doubt.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._paused = self._spoilt = False
        self._complete = True
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._head_complete = self._sized = self._chunked = False
        self._blocks: list[bytes] = []
        self._unread = self._overhead = 0
        self._error: TransportError | None = None

    # ------------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The provider is connected to."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Closed by either side."""
        self._transport = None
        self._end(f"{type(error).__name__}: {error}" if error else "the provider closed the connection")
        self._on_lost(self)

    def eof_received(self) -> bool:
        """The provider will send nothing more: the end of an answer that has no other."""
        if self._head_complete and not self._sized and not self._chunked:
            self._complete = True
        self._end("the provider closed the connection")
        return False

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        if self._complete:
            self._fail("the provider sent something that nobody asked for")
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the provider changed the protocol")
        except httptools.HttpParserError as error:
            self._fail(str(error.__context__ or error))
        else:
            if self._overhead > MAX_HEAD_BYTES:
                self._complete = False
                self._fail(f"more than {MAX_HEAD_BYTES} bytes came that are no body")
        self._wake()

    def _end(self, why: str) -> None:
        self._spoilt = True
        if not self._complete and self._error is None:
            self._error = Broken(why)
        self._wake()

    def _fail(self, why: str) -> None:
        self._end(why)
        self.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ------------------------------------------------------------------ the parser's side

    def on_message_begin(self) -> None:
        """The first byte of an answer: of a second one where the first is complete."""
        if self._complete:
            self._spoilt = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is nobody's."""
        if self._head_complete:
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key == "content-length":
            self._sized = True
        elif key == "transfer-encoding":
            self._chunked = text.rpartition(",")[2].strip().lower() == "chunked"
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        """The end of a head."""
        if self._complete:
            return
        self.status = self._parser.get_status_code()
        self._head_complete = self.status >= 200

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._complete:
            return
        self._overhead = 0
        self._blocks.append(body)
        self._unread += len(body)
        if self._unread > READ_BUFFER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The end of an answer, or of an interim one (RFC 9110, 15.2), after which another comes."""
        if not self._head_complete:
            self.headers = {}
            self._sized = self._chunked = False
            return
        self._complete = True
        if not self._parser.should_keep_alive():
            self._spoilt = True

    # ------------------------------------------------------------------ the reader's side

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: the answer is complete, and the request was sent whole."""
        transport = self._transport
        return (
            self._complete
            and not self._spoilt
            and not self._paused
            and transport is not None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )

    def send(self, head: bytes, body: bytes) -> None:
        """Send a request; only where the connection is new or ``reusable``. Raises NotSent where it was lost
        meanwhile."""
        if self._transport is None or self._transport.is_closing():
            raise NotSent("the provider closed the connection")
        self._begin()
        self._complete = False
        self._resume()
        self._transport.writelines((head, body))

    async def head(self, seconds: float) -> None:
        """Wait for the answer's head; raises Broken and TimedOut."""
        deadline = self._loop.time() + seconds
        while not self._head_complete:
            if self._error is not None:
                raise self._error
            await self._wait(deadline - self._loop.time(), "no answer in time")

    async def block(self, seconds: float) -> bytes:
        """All of the body that has come, waited for where it is nothing; empty at its end. Raises Broken
        and TimedOut."""
        while not self._blocks:
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait(seconds, "the answer stalled")
        block = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
        self._blocks = []
        self._unread = 0
        self._resume()
        return block

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    async def _wait(self, seconds: float, late: str) -> None:
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(max(0.0, seconds), _time_out, waiter, late)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def abort(self) -> None:
        """Close at once: what is under way is cancelled."""
        self._spoilt = True
        if self._transport is not None:
            self._transport.abort()


def _time_out(waiter: asyncio.Future[None], late: str) -> None:
    if not waiter.done():
        waiter.set_exception(TimedOut(late))
