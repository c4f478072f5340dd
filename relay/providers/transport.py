"""The one way to providers. What lies behind it can be exchanged: callers know only this module's names.

A request is written at most once: after ``NotSent`` the provider knows nothing of it, after ``Broken`` or
``TimedOut`` it may have done the work, and may bill it. Closing a reply that is not read to its end closes
the connection, which is how a call is cancelled.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import aiohttp

from relay.providers.content_encoding import BadEncoding, Decoder, decoder_of

MAX_HEADER_BYTES = 16 << 10
# We, not the provider, must close what is idle: a request that crosses a provider's close may have been
# executed, so it cannot be sent again and fails. Common servers (Node.js, uvicorn) close after 5 seconds.
KEEPALIVE_SECONDS = 4.0
READ_BUFFER_BYTES = 64 << 10

# Told the bytes of each block, and waited for before the next one is read.
Came = Callable[[int], Awaitable[None]]


class TransportError(Exception):
    """A provider could not be reached, or not to the end."""


class NotSent(TransportError):
    """Nothing was written: the provider knows nothing of this call."""


class Broken(TransportError):
    """The connection or the answer broke after the request was written."""


class TimedOut(TransportError):
    """The provider was too slow after the request was written."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect, to the answer's head, between two reads, and for all of it."""

    connect: float
    first_byte: float
    idle: float
    total: float


class Reply(Protocol):
    """A provider's answer whose body is read while it arrives. Use it as an async context manager."""

    status: int
    headers: Mapping[str, str]

    async def read(self, limit: int, came: Came | None = None) -> bytes:
        """The whole body; raises Broken above ``limit`` bytes, or when it is cut short."""

    async def read_begin(self, limit: int) -> bytes:
        """The first ``limit`` bytes of the body, or what came of them before it broke."""

    def blocks(self) -> AsyncIterator[bytes]:
        """The body in blocks as they arrive; raises Broken and TimedOut."""

    def close(self) -> None:
        """Close; cancels the call when the body was not read to its end."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Transport(Protocol):
    """Sends requests to providers over kept connections."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send once and return when the answer's head is there; raises TransportError."""

    async def close(self) -> None:
        """Close all connections."""


class AiohttpReply:
    """A Reply over aiohttp."""

    def __init__(self, response: aiohttp.ClientResponse, deadline: float, decoder: Decoder | None) -> None:
        self._response = response
        self._deadline = deadline
        self._decoder = decoder
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def read(self, limit: int, came: Came | None = None) -> bytes:
        """See Reply."""
        parts: list[bytes] = []
        size = 0
        async for block in self.blocks():
            size += len(block)
            if size > limit:
                raise Broken(f"the answer is larger than {limit} bytes")
            parts.append(block)
            if came is not None:
                await came(len(block))
        return b"".join(parts)

    async def read_begin(self, limit: int) -> bytes:
        """See Reply."""
        begin = bytearray()
        with suppress(TransportError):
            async for block in self.blocks():
                begin += block
                if len(begin) >= limit:
                    break
        return bytes(begin[:limit])

    def blocks(self) -> AsyncIterator[bytes]:
        """See Reply."""
        return self._raw_blocks() if self._decoder is None else self._decoded_blocks(self._decoder)

    async def _decoded_blocks(self, decoder: Decoder) -> AsyncIterator[bytes]:
        try:
            async for block in self._raw_blocks():
                for part in decoder.feed(block):
                    yield part
        except BadEncoding as error:
            raise Broken(str(error)) from error
        if not decoder.ended:
            raise Broken("the compressed answer is cut short")

    async def _raw_blocks(self) -> AsyncIterator[bytes]:
        content = self._response.content
        loop = asyncio.get_running_loop()
        try:
            while block := await content.readany():
                if loop.time() > self._deadline:
                    raise TimedOut("the answer took too long")
                yield block
        except TimeoutError as error:
            raise TimedOut("the answer stalled") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Broken(_describe(error)) from error

    def close(self) -> None:
        """See Reply."""
        self._response.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Drops the connection unless the body's end was seen: then it is back in the pool already.
        self._response.close()


class AiohttpTransport:
    """A Transport over aiohttp's client, which keeps connections, verifies names and bounds headers."""

    def __init__(self, timeouts: Timeouts, ca_file: Path | None) -> None:
        context = ssl.create_default_context()
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
        self._timeouts = timeouts
        connector = aiohttp.TCPConnector(ssl=context, limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=timeouts.connect, sock_read=timeouts.first_byte
            ),
            auto_decompress=False,
            skip_auto_headers=("User-Agent",),
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> AiohttpReply:
        """See Transport."""
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeouts.connect + self._timeouts.first_byte):
                response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectorError as error:
            raise NotSent(_describe(error)) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise NotSent("connecting took too long") from error
        except TimeoutError as error:
            raise TimedOut("no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Broken(_describe(error)) from error
        try:
            decoder = decoder_of(response.headers.getall("content-encoding", []))
        except BadEncoding as error:
            response.close()
            raise Broken(str(error)) from error
        if response.connection is not None and response.connection.protocol is not None:
            response.connection.protocol.read_timeout = self._timeouts.idle
        return AiohttpReply(response, started + self._timeouts.total, decoder)

    async def close(self) -> None:
        """See Transport."""
        await self._session.close()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
