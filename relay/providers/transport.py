"""The one way to providers. What lies behind it can be exchanged: callers know only this module's names.

A request is written at most once: after ``NotSent`` the provider knows nothing of it, after ``Broken`` or
``TimedOut`` it may have done the work, and may bill it. Closing a reply that is not read to its end closes
the connection, which is how a call is cancelled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from relay.providers.content_encoding import BadEncoding, Decoder

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


class DecodedReply(ABC):
    """What all Replies share: bodies are decoded while they arrive."""

    status: int
    headers: Mapping[str, str]

    def __init__(self, decoder: Decoder | None) -> None:
        self._decoder = decoder

    @abstractmethod
    async def raw_block(self) -> bytes:
        """The next block of the body, not decoded; empty at its end. Raises Broken and TimedOut."""

    @abstractmethod
    def close(self) -> None:
        """See Reply."""

    async def read(self, limit: int, came: Came | None = None) -> bytes:
        """See Reply."""
        parts: list[bytes] = []
        size = 0
        next_block = self._next_block()
        while block := await next_block():
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

    async def blocks(self) -> AsyncIterator[bytes]:
        """See Reply."""
        next_block = self._next_block()
        while block := await next_block():
            yield block

    def _next_block(self) -> Callable[[], Awaitable[bytes]]:
        """What gives the next block of the decoded body, and nothing at its end."""
        if self._decoder is None:
            return self.raw_block
        return partial(anext, self._decoded_blocks(self._decoder), b"")

    async def _decoded_blocks(self, decoder: Decoder) -> AsyncIterator[bytes]:
        try:
            while block := await self.raw_block():
                for part in decoder.feed(block):
                    yield part
        except BadEncoding as error:
            raise Broken(str(error)) from error
        if not decoder.ended:
            raise Broken("the compressed answer is cut short")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
