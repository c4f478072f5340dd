"""What requests hold together is bounded and given back, whatever comes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.asgi import Message
from relay.body_memory import LARGE_BYTES, BodyMemory, CountedReceive
from relay.errors import ApiError

LIMIT = 4 * LARGE_BYTES


def messages(*sizes: int) -> Iterator[Message]:
    for size in sizes:
        yield {"type": "http.request", "body": bytes(size), "more_body": True}
    while True:
        yield {"type": "http.disconnect"}


def counted(memory: BodyMemory, *sizes: int) -> CountedReceive:
    waiting = messages(*sizes)

    async def receive() -> Message:
        return next(waiting)

    return CountedReceive(receive, memory)


def read(receive: CountedReceive, times: int) -> list[Any]:
    async def all_of_them() -> list[Any]:
        return [await receive() for _ in range(times)]

    return asyncio.run(all_of_them())


def test_large_ones_are_refused_and_small_ones_served() -> None:
    memory = BodyMemory(LIMIT)
    first = counted(memory, LIMIT)
    read(first, 1)
    small = counted(memory, LARGE_BYTES // 2, LARGE_BYTES // 2)
    read(small, 3)
    large = counted(memory, LARGE_BYTES, 1)
    read(large, 1)
    with pytest.raises(ApiError) as refused:
        read(large, 1)
    assert (refused.value.status, refused.value.code) == (503, "server_busy")
    assert refused.value.headers["retry-after"] == "2"
    for one in (first, small, large):
        one.release()
    assert memory.held == 0
    read(counted(memory, LIMIT), 1)


@given(st.lists(st.lists(st.integers(0, LIMIT), max_size=4), max_size=6), st.data())
def test_what_ended_is_given_back(requests: list[list[int]], data: st.DataObject) -> None:
    memory = BodyMemory(LIMIT)
    open_ones = [counted(memory, *sizes) for sizes in requests]
    for one, sizes in zip(open_ones, requests, strict=True):
        try:
            read(one, data.draw(st.integers(0, len(sizes) + 1)))
        except ApiError:
            assert memory.held > LIMIT
    for one in open_ones:
        one.release()
        one.release()
    assert memory.held == 0
