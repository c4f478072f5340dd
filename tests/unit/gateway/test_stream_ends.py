"""Streams that fail twice: the customer hears one error, and the connection ends as it should."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay import errors
from relay.formats.answer import BadAnswer
from relay.formats.format import MeterOptions, Shown
from relay.formats.registry import FORMATS
from relay.formats.translated_stream import TranslatedMeter
from relay.gateway.answer_memory import LARGE_BYTES, AnswerMemory
from relay.gateway.call import Call
from relay.gateway.stream_response import StreamAnswer
from tests.unit.gateway.rig import FakeReply

MOST = 10_000


def chunk(reason: str | None, *texts: str) -> bytes:
    candidate = {"content": {"parts": [{"text": text} for text in texts]}, "finishReason": reason}
    return b"data: " + json.dumps({"responseId": "r", "candidates": [candidate]}).encode() + b"\r\n\r\n"


def test_what_broke_off_and_cannot_be_read_further_ends_with_one_error() -> None:
    """The end that cannot be translated is kept back when an event comes that is too large."""

    async def scenario() -> None:
        sent: list[bytes] = []
        room = AnswerMemory(64 * LARGE_BYTES).room()
        call = SimpleNamespace(room=room, watcher=SimpleNamespace(gone=False), first_byte=None, begun=True)

        async def send(part: bytes, *_: Any) -> None:
            call.first_byte = 1.0
            sent.append(part)

        call.send_part = call.send_last = send
        theirs, ours = FORMATS["gemini"], FORMATS["openai"]
        options = MeterOptions(
            keep_usage_chunk=True, choices=1, max_event_bytes=MOST, model=None, redact=bytes
        )
        made = TranslatedMeter(theirs.meter(options), theirs.decoder(), ours.encoder(Shown("m", True, 0)))
        answer = StreamAnswer(cast(Call, call), made, lambda _: b"the error")
        reply = FakeReply((chunk(None, "Yes."), chunk("OTHER"), b"data: " + b"x" * 2 * MOST))
        with pytest.raises(BadAnswer):
            await answer.read(cast(Any, reply))
        await answer.finish(errors.broken_off())
        assert b"Yes." in sent[0]
        assert sent[1:] == [b"the error"]

    asyncio.run(scenario())
