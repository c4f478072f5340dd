"""A stream of events as one JSON array, as Gemini's is without ``alt=sse``."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.asgi import Message
from relay.gateway.call import SSE_HEADERS
from relay.gateway.json_array import ArraySend

VALUES = st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.integers(), max_size=3)


def sent(headers: list[tuple[bytes, bytes]], *bodies: bytes) -> list[Message]:
    """What a response of these bodies becomes; the last one ends it."""
    messages: list[Message] = []

    async def collect(message: Message) -> None:
        messages.append(message)

    async def respond() -> None:
        send = ArraySend(collect)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for body in bodies[:-1]:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": bodies[-1]})

    asyncio.run(respond())
    return messages


def event(value: Any, end: str = "\r\n\r\n") -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}{end}".encode()


@given(st.lists(st.lists(VALUES, max_size=3), min_size=1, max_size=4), st.sampled_from(["\n\n", "\r\n\r\n"]))
def test_every_event_is_an_element_byte_by_byte(parts: list[list[Any]], end: str) -> None:
    bodies = [b"".join(event(value, end) for value in part) for part in parts]
    head, *rest = sent([*SSE_HEADERS], *bodies)
    assert (b"content-type", b"application/json; charset=UTF-8") in head["headers"]
    assert SSE_HEADERS[0] not in head["headers"]
    whole = b"".join(message["body"] for message in rest)
    assert json.loads(whole) == [value for part in parts for value in part]
    for value in (value for part in parts for value in part):
        assert event(value, "").removeprefix(b"data: ") in whole


@pytest.mark.parametrize("ping", [b"\r\n", b": ping\n\n"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_pings_are_blank_lines(ping: bytes, at: int) -> None:
    bodies = [event({"a": 1}), event({"a": 2})]
    bodies.insert(at, ping)
    _, *rest = sent([*SSE_HEADERS], *bodies, b"")
    assert rest[at]["body"] == b"\r\n"
    assert json.loads(b"".join(message["body"] for message in rest)) == [{"a": 1}, {"a": 2}]


def test_what_is_no_stream_passes_as_it_is() -> None:
    headers = [(b"content-type", b"application/json")]
    head, body = sent(headers, b'{"error": {}}')
    assert (head["headers"], body["body"]) == (headers, b'{"error": {}}')
