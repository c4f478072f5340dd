"""Whole answers are bounded together: large ones wait, one at a time goes beyond, none waits for ever."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.answer_memory import LARGE_BYTES, AnswerMemory

BLOCK = LARGE_BYTES // 4
LIMIT = 8 * LARGE_BYTES
Blocks = st.lists(st.integers(1, BLOCK), max_size=40)


class Reading:
    """Reads answers at once and remembers the most that was held, and how many were ever beyond."""

    def __init__(self) -> None:
        self.memory = AnswerMemory(LIMIT)
        self.most = 0

    async def read(self, blocks: list[int], cut_after: int | None = None) -> None:
        room = self.memory.room()
        try:
            for number, size in enumerate(blocks):
                if number == cut_after:
                    raise ConnectionError
                await asyncio.sleep(0)
                await room.take(size)
                self.most = max(self.most, self.memory.held)
            await asyncio.sleep(0)
        except ConnectionError:
            pass
        finally:
            room.release()
            room.release()


@given(st.lists(st.tuples(Blocks, st.none() | st.integers(0, 40)), max_size=12))
def test_all_end_and_what_they_hold_is_bounded(answers: list[tuple[list[int], int | None]]) -> None:
    reading = Reading()

    async def all_at_once() -> None:
        async with asyncio.timeout(30):
            await asyncio.gather(*[reading.read(blocks, cut) for blocks, cut in answers])

    asyncio.run(all_at_once())
    assert reading.memory.held == 0
    # Each may hold what is not large yet, and the block that made it wait; one goes on beyond the limit.
    largest = max((sum(blocks) for blocks, _ in answers), default=0)
    assert reading.most <= LIMIT + largest + len(answers) * (LARGE_BYTES + BLOCK)


def test_large_ones_wait_and_small_ones_do_not() -> None:
    async def scenario() -> None:
        memory = AnswerMemory(LIMIT)
        first, second, third, small = (memory.room() for _ in range(4))
        await first.take(LIMIT + 1)  # beyond it, alone
        waiting = [asyncio.create_task(room.take(LARGE_BYTES + 1)) for room in (second, third)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        await small.take(LARGE_BYTES)
        await first.take(BLOCK)
        first.release()
        await asyncio.gather(*waiting)
        for room in (second, third, small):
            room.release()
        assert memory.held == 0

    asyncio.run(scenario())


def test_who_is_cancelled_while_waiting_holds_up_nobody() -> None:
    async def scenario() -> None:
        memory = AnswerMemory(LIMIT)
        first, second, third = (memory.room() for _ in range(3))
        await first.take(LIMIT + 1)
        waiting = [asyncio.create_task(room.take(LIMIT)) for room in (second, third)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        second.release()
        first.release()
        await waiting[1]
        third.release()
        assert memory.held == 0

    asyncio.run(scenario())


def test_what_a_stream_holds_grows_and_shrinks() -> None:
    async def scenario() -> None:
        memory = AnswerMemory(LIMIT)
        first, second = memory.room(), memory.room()
        first.set(LIMIT + 1)
        assert (memory.held, first.large) == (LIMIT + 1, True)
        await first.admitted()  # beyond it, alone
        second.set(LARGE_BYTES + 1)
        waiting = asyncio.create_task(second.admitted())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        first.set(BLOCK)
        await waiting
        assert (memory.held, first.large) == (BLOCK + LARGE_BYTES + 1, False)
        second.set(0)
        first.release()
        assert memory.held == 0

    asyncio.run(scenario())
