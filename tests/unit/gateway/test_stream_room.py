"""What a stream takes of the memory that answers share: what its meter holds, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.gateway.answer_memory import LARGE_BYTES, AnswerMemory
from relay.gateway.call import Call
from relay.gateway.stream_response import StreamAnswer
from tests.unit.formats.test_media_streams import PRICES, metering, sse
from tests.unit.gateway.rig import FakeReply

BIG = "A" * 2 * LARGE_BYTES
PREVIEW = sse("image_generation.partial_image", b64_json=BIG)
DRAWING = sse("image_generation.completed", b64_json=BIG)
DROPPED = sse("image_generation.completed", b64_json=BIG + BIG)


class Watched(FakeReply):
    """Remembers what the memory held before each block, and at the end."""

    def __init__(self, memory: AnswerMemory, blocks: tuple[bytes, ...]) -> None:
        super().__init__(blocks)
        self.memory = memory
        self.held: list[int] = []

    async def blocks(self) -> AsyncIterator[bytes]:
        async for block in super().blocks():
            self.held.append(self.memory.held)
            yield block
        self.held.append(self.memory.held)


@pytest.mark.parametrize(
    ("blocks", "held"),
    [
        ((PREVIEW[:9_999], PREVIEW[9_999:], DRAWING, DRAWING), [0, 9_999, 0, len(DRAWING), len(DRAWING)]),
        ((DRAWING + DRAWING[:5_000], DRAWING[5_000:]), [0, len(DRAWING) + 5_000, len(DRAWING)]),
        ((DRAWING, DRAWING, DROPPED, DROPPED), [0] + [len(DRAWING)] * 4),
    ],
    ids=["second image", "within a block", "dropped"],
)
def test_the_room_is_what_the_meter_holds(blocks: tuple[bytes, ...], held: list[int]) -> None:
    async def scenario() -> None:
        memory = AnswerMemory(64 * LARGE_BYTES)
        call = SimpleNamespace(room=memory.room(), watcher=SimpleNamespace(gone=False), first_byte=None)

        async def send_part(part: bytes, headers: Any) -> None:
            call.first_byte = 1.0

        call.send_part = send_part
        meter = metering("images", PRICES["images"])[1]
        reply = Watched(memory, blocks)
        answer = StreamAnswer(cast(Call, call), meter, lambda _: b"")
        await answer.read(cast(Any, reply))
        assert reply.held == held
        assert meter.tail() == DRAWING

    asyncio.run(scenario())
