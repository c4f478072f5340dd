"""The meter of OpenAI's Responses: bytes pass untouched however cut, the end waits for its payment."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.openai_responses_answer import read_response
from relay.formats.openai_responses_stream import ResponsesMeter
from relay.formats.sse import EventTooLarge

USAGE = {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 5}


def sse(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields, ensure_ascii=False)}\n\n".encode()


def frame(**fields: Any) -> dict[str, Any]:
    inner = {"format": {"model": "theirs"}}  # a name deeper down is not the model's
    return {"id": "resp_1", "model": "theirs", "text": inner, "output": [], "usage": None} | fields


START = sse("response.created", response=frame()) + sse("response.in_progress", response=frame())
ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
ADDED = sse("response.output_item.added", output_index=0, item=ITEM)
SAID = [{"type": "output_text", "text": "Grüße 🙂"}]
DONE = sse("response.output_item.done", output_index=0, item=ITEM | {"content": SAID})
COMPLETED = sse("response.completed", response=frame(status="completed", usage=USAGE))


def text(words: str) -> bytes:
    return sse("response.output_text.delta", output_index=0, content_index=0, delta=words)


TEXT = text("Grüße ") + b": ping\n\n" + text("🙂")
WHOLE = START + ADDED + TEXT + DONE + COMPLETED


def meter(model: str | None = None, limit: int = 1 << 20) -> ResponsesMeter:
    return ResponsesMeter(limit, lambda data: data.replace(b"secret", b"***"), model)


def passed(made: ResponsesMeter, data: bytes, cuts: Iterable[int] = ()) -> bytes:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return b"".join(made.feed(data[begin:end]) for begin, end in pairwise(edges) if begin < end)


@given(st.lists(st.integers(0, 3000), max_size=9))
def test_bytes_pass_untouched_however_they_are_cut(cuts: list[int]) -> None:
    made = meter()
    assert passed(made, WHOLE, cuts) + made.tail() == WHOLE
    assert made.finished
    assert made.usage == USAGE
    assert made.estimate() == 1 + 3  # 4 characters are ASCII, 3 are not


def test_the_end_waits_and_the_begin_does_until_something_is_generated() -> None:
    made = meter()
    assert made.feed(START + ADDED) == b""
    assert not made.generating
    assert made.feed(text("x")) == START + ADDED + text("x")
    assert made.feed(DONE + COMPLETED) == DONE
    assert made.ending
    assert made.tail() == COMPLETED


def test_the_models_name_is_the_customers_and_every_other_byte_as_it_came() -> None:
    made = meter("ours")
    got = passed(made, WHOLE) + made.tail()
    assert got == WHOLE.replace(b'"id": "resp_1", "model": "theirs"', b'"id": "resp_1", "model": "ours"')
    assert b'{"format": {"model": "theirs"}}' in got


def test_what_came_by_no_delta_is_counted_once() -> None:
    call = {"type": "function_call", "name": "look", "arguments": "{}" * 8}
    added = sse("response.output_item.added", output_index=1, item=call | {"arguments": ""})
    done = sse("response.output_item.done", output_index=1, item=call)
    made = meter()
    made.feed(START + ADDED + TEXT + DONE + added + done + COMPLETED)
    assert made.estimate() == (4 + len("look") + 16) // 4 + 3
    alone = meter()
    alone.feed(START + sse("response.completed", response=frame(usage=USAGE, output=[call])))
    assert alone.estimate() == (4 + 16) // 4


def test_a_stream_without_its_end_is_not_complete() -> None:
    made = meter()
    made.feed(START + ADDED + TEXT + DONE)
    made.end()
    assert (made.complete, made.finished, made.usage) == (False, False, None)
    cut = meter()
    cut.feed(START + ADDED + TEXT + COMPLETED.rstrip())
    cut.break_off()
    assert cut.complete
    assert cut.tail().endswith(COMPLETED)


def test_events_after_the_end_are_dropped() -> None:
    made = meter()
    made.feed(WHOLE + text("more") + COMPLETED)
    assert made.tail() == COMPLETED
    chat = meter()
    chat.feed(WHOLE + b"data: [DONE]\n\n")
    assert chat.tail() == COMPLETED + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "event",
    [
        sse("response.failed", response=frame(status="failed", error={"code": "x", "message": "secret"})),
        sse("error", code="x", message="secret", param=None),
    ],
)
def test_an_error_passes_without_secrets_and_nothing_after_it(event: bytes) -> None:
    made = meter()
    got = made.feed(START + ADDED + text("x") + event + text("y"))
    assert got == START + ADDED + text("x") + event.replace(b"secret", b"***")
    assert made.error is not None
    assert made.tail() == b""
    assert not made.complete


def test_what_is_no_json_breaks_the_stream() -> None:
    made = meter()
    made.feed(START + b"data: {nonsense\n\n" + text("x"))
    assert made.broken
    with pytest.raises(EventTooLarge):
        meter(limit=100).feed(b"data: " + b"x" * 200)


def test_whole_answers() -> None:
    answer = read_response(json.dumps(frame(output=[ITEM | {"content": SAID}], usage=USAGE)).encode())
    assert (answer.usage, answer.empty, answer.estimate()) == (USAGE, False, 4)
    for error in ({"error": {"message": "no"}}, {"status": "failed", "output": []}, {"id": "x"}):
        with pytest.raises(ErrorAnswer):
            read_response(json.dumps(error).encode())
    with pytest.raises(BadAnswer):
        read_response(b"<html>")
