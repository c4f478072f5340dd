"""The stream meter: bytes pass untouched however they are cut, and the end waits for its payment."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats.openai_chat_stream import MAX_EVENT_BYTES, BadStream, StreamMeter

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def event(payload: Any, end: str = "\n\n") -> bytes:
    return b"data: " + json.dumps(payload).encode() + end.encode()


def content(text: str, end: str = "\n\n") -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}], "usage": None}, end)


USAGE_EVENT = event({"choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"
TEXT = content("abcd") + b": keep-alive\n\n" + content("efgh")
WHOLE = TEXT + USAGE_EVENT + DONE


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[left:right] for left, right in pairwise(edges) if left < right]


@given(st.lists(st.integers(min_value=0)), st.booleans())
def test_bytes_pass_untouched_however_they_are_cut(places: list[int], keep: bool) -> None:
    meter = StreamMeter(keep_usage_chunk=keep)
    passed = b"".join(meter.feed(block) for block in cut(WHOLE, places))
    assert passed == TEXT
    assert meter.tail() == (USAGE_EVENT if keep else b"") + DONE
    assert (meter.usage, meter.estimate(), meter.complete) == (USAGE, 2, True)


@given(st.lists(st.integers(min_value=0)), st.sampled_from(["\n\n", "\r\n\r\n", "\r\r"]))
def test_every_line_ending_of_the_standard(places: list[int], end: str) -> None:
    data = content("abcd", end) + b"data: [DONE]" + end.encode()
    meter = StreamMeter(keep_usage_chunk=True)
    passed = b"".join(meter.feed(block) for block in cut(data, places))
    assert passed + meter.tail() == data
    assert meter.done


def test_usage_on_the_last_chunk_with_choices_passes() -> None:
    last = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE})
    meter = StreamMeter(keep_usage_chunk=False)
    assert meter.feed(content("abcd") + last) == content("abcd") + last
    assert meter.usage == USAGE
    assert meter.feed(DONE) == b""
    assert meter.tail() == DONE


def test_a_stream_that_ends_early_is_not_complete() -> None:
    meter = StreamMeter(keep_usage_chunk=False)
    meter.feed(content("abcd") + b'data: {"choi')
    assert not meter.complete
    assert meter.estimate() == 1


def test_an_error_event_is_seen_and_passes() -> None:
    meter = StreamMeter(keep_usage_chunk=False)
    problem = event({"error": {"message": "overloaded"}})
    assert meter.feed(problem) == problem
    assert meter.error == {"message": "overloaded"}
    assert not meter.complete


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "abcd"},
        {"reasoning_content": "abcd"},
        {"reasoning": "abcd"},
        {"refusal": "abcd"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "abcd"}}]},
        {"tool_calls": [{"index": 0, "function": {"name": "ab", "arguments": "cd"}}]},
    ],
)
def test_everything_generated_is_counted(delta: dict[str, Any]) -> None:
    meter = StreamMeter(keep_usage_chunk=False)
    meter.feed(event({"choices": [{"delta": delta}]}))
    assert meter.estimate() == 1


@pytest.mark.parametrize("data", [b"data: nonsense\n\n", b"data: [1]\n\n", b'data: {"choices": 3}\n\n'])
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(BadStream):
        StreamMeter(keep_usage_chunk=False).feed(data)


def test_an_endless_event_is_refused() -> None:
    meter = StreamMeter(keep_usage_chunk=False)
    with pytest.raises(BadStream, match="larger than"):
        meter.feed(b"data: " + b"x" * MAX_EVENT_BYTES)
