"""A bound on the request bodies that a process holds at once.

Each may be as large as `max_body_bytes`, or `max_form_bytes` with files, and some dozens of the largest
would have a replica killed for its memory, with the streams of all its customers.
"""

from __future__ import annotations

from relay import errors
from relay.asgi import Message, Receive

# What is refused is larger: so the largest ones cannot crowd out the many small ones.
LARGE_BYTES = 256 << 10


class BodyMemory:
    """What all requests hold together, and the most that they may, in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0


class CountedReceive:
    """ASGI's ``receive`` of one request, which counts the body until ``release``."""

    __slots__ = ("_memory", "_receive", "_size")

    def __init__(self, receive: Receive, memory: BodyMemory) -> None:
        self._receive, self._memory = receive, memory
        self._size = 0

    async def __call__(self) -> Message:
        """Raises ApiError 503 when the body is large and there is no room for it."""
        message = await self._receive()
        size = len(message.get("body", b""))
        if size:
            self._size += size
            self._memory.held += size
            if self._size > LARGE_BYTES and self._memory.held > self._memory.limit:
                raise errors.server_busy()
        return message

    def release(self) -> None:
        """The request has ended."""
        self._memory.held -= self._size
        self._size = 0
