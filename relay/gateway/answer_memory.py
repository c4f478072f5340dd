"""A bound on the whole answers of providers that a process holds at once.

Each may be as large as `max_answer_bytes`. Who has sent a call was promised nothing of memory, and the answer
is paid for: so a large one is not refused, its reading waits, and with it the provider's sending.
"""

from __future__ import annotations

import asyncio

# What waits is larger: so the largest answers cannot hold up the many small ones.
LARGE_BYTES = 256 << 10


class AnswerMemory:
    """What all answers hold together, and the most that they may, in bytes.

    One answer at a time may go beyond it, so that there is always one that ends.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._beyond: Room | None = None
        self._changed = asyncio.Event()

    def room(self) -> Room:
        """For one answer."""
        return Room(self)

    def admits(self, room: Room) -> bool:
        """Whether ``room``, which is large, may grow further."""
        if self.held > self.limit:
            if self._beyond not in (None, room):
                return False
            self._beyond = room
        return True

    async def change(self) -> None:
        """Wait until something was given back."""
        await self._changed.wait()

    def give_back(self, room: Room, size: int) -> None:
        """``room`` holds ``size`` bytes less."""
        self.held -= size
        if self._beyond is room:
            self._beyond = None
        self._changed.set()
        self._changed.clear()


class Room:
    """What one answer holds."""

    __slots__ = ("_memory", "_size")

    def __init__(self, memory: AnswerMemory) -> None:
        self._memory = memory
        self._size = 0

    async def take(self, size: int) -> None:
        """``size`` bytes more have come; returns when the next may."""
        self._size += size
        self._memory.held += size
        await self.admitted()

    def set(self, size: int) -> None:
        """``size`` bytes are held now, where more or fewer were."""
        more = size - self._size
        self._size = size
        if more > 0:
            self._memory.held += more
        elif more:
            self._memory.give_back(self, -more)

    @property
    def large(self) -> bool:
        """Whether it may have to wait; see admitted()."""
        return self._size > LARGE_BYTES

    async def admitted(self) -> None:
        """Return when the answer may grow further."""
        while self.large and not self._memory.admits(self):
            await self._memory.change()

    def release(self) -> None:
        """The answer is sent, or nobody's any more."""
        self.set(0)
