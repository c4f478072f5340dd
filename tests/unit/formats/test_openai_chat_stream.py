"""The stream meter: bytes pass untouched however they are cut, and the end waits for its payment."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats import sse
from relay.formats.openai_chat_stream import DONE, StreamMeter
from relay.formats.sse import BOM, EventTooLarge
from relay.formats.stream_meter import MAX_KEPT_BYTES

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
LATER = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}


def event(payload: Any, end: str = "\n\n") -> bytes:
    return b"data: " + json.dumps(payload).encode() + end.encode()


def content(text: str, end: str = "\n\n", **more: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}], "usage": None} | more, end)


def finish(index: int = 0, reason: str = "stop", **more: Any) -> bytes:
    return event({"choices": [{"index": index, "delta": {}, "finish_reason": reason}]} | more)


def usage_chunk(usage: Any = USAGE) -> bytes:
    return event({"choices": [], "usage": usage})


ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
PING = b": keep-alive\n\n"
LAST = event({"choices": [{"index": 0, "delta": {"content": "last"}, "finish_reason": "stop"}]})
TEXT = content("abcd") + PING + content("efgh")
WHOLE = TEXT + finish() + usage_chunk() + DONE


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[left:right] for left, right in pairwise(edges) if left < right]


def meter(**options: Any) -> StreamMeter:
    return StreamMeter(**{"keep_usage_chunk": True} | options)


def passed(made: StreamMeter, blocks: Iterable[bytes]) -> bytes:
    return b"".join(made.feed(block) for block in blocks)


def whole(made: StreamMeter, data: bytes) -> bytes:
    """All that a customer gets of a stream that is closed after ``data``."""
    sent = made.feed(data)
    made.end()
    return sent + made.tail()


PLACES = st.lists(st.integers(min_value=0))
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


# ---------------------------------------------------------------------- bytes


@given(PLACES, st.booleans())
def test_bytes_pass_untouched_however_they_are_cut(places: list[int], keep: bool) -> None:
    made = meter(keep_usage_chunk=keep)
    assert passed(made, cut(WHOLE, places)) == TEXT
    assert made.tail() == finish() + (usage_chunk() if keep else b"") + DONE
    assert (made.usage, made.estimate(), made.complete) == (USAGE, 2, True)


@given(PLACES, st.lists(LINE_ENDS, min_size=12, max_size=12))
def test_line_ends_of_the_standard_are_mixed_at_will(places: list[int], ends: list[bytes]) -> None:
    bodies = [content("abcd", ""), b": ping", content("efgh", ""), finish().strip(), usage_chunk().strip()]
    data = b"".join(
        body + first + second
        for body, first, second in zip([*bodies, b"data: [DONE]"], ends[:6], ends[6:], strict=True)
        if first + second != b"\r\n"
    )
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    made = meter()
    sent = passed(made, cut(data, places))
    made.end()
    sent += made.tail()
    assert sent.replace(b"\r\n", b"\n").replace(b"\r", b"\n").startswith(lines.rstrip(b"\n"))
    assert made.estimate() == 4 * lines.count(b'"content"') // 4


@pytest.mark.parametrize("size", [1, 1400])
def test_one_large_event_costs_linear_time(size: int) -> None:
    def seconds(length: int) -> float:
        made, data = meter(), content("x" * length)
        began = time.process_time()
        passed(made, (data[start : start + size] for start in range(0, len(data), size)))
        return time.process_time() - began

    length = min(20_000 * size, 1_000_000)
    small, large = min(seconds(length) for _ in range(2)), min(seconds(4 * length) for _ in range(2))
    assert large < 9 * small + 0.02, "four times the bytes cost about four times the time"


def test_five_megabytes_in_one_event_pass_and_what_is_too_large_is_refused() -> None:
    data = content("x" * 5_000_000)
    made = meter()
    assert passed(made, cut(data, list(range(0, len(data), 65_536)))) == data
    assert made.estimate() == 1_250_000
    with pytest.raises(EventTooLarge, match="larger than 4096"):
        passed(meter(max_event_bytes=4096), [b"data: " + b"x" * 5000])


def test_a_byte_order_mark_hides_nothing() -> None:
    made = meter()
    assert whole(made, BOM + WHOLE) == WHOLE
    assert made.estimate() == 2
    one_by_one = meter()
    assert passed(one_by_one, cut(BOM + WHOLE, list(range(20)))) + one_by_one.tail() == WHOLE


# ---------------------------------------------------------------------- where usage may stand


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    "parts",
    [
        [usage_chunk(), TEXT, finish(), usage_chunk(LATER), DONE],
        [ROLE, usage_chunk(), TEXT, usage_chunk(LATER), finish(), DONE],
        [content("abcd"), usage_chunk(), content("efgh"), usage_chunk(LATER), DONE],
        [TEXT, finish(), DONE, usage_chunk(LATER)],
        [TEXT, usage_chunk(), finish(usage=LATER), DONE],
        [content("abcd", usage=USAGE), content("efgh", usage=LATER), finish(), DONE],
        [TEXT, finish(), usage_chunk(USAGE), PING, usage_chunk(LATER), DONE],
    ],
    ids=["first", "before-finish", "between", "after-done", "on-finish", "on-content", "twice"],
)
def test_usage_may_stand_anywhere_and_the_last_one_counts(parts: list[bytes], keep: bool) -> None:
    made = meter(keep_usage_chunk=keep)
    data = b"".join(parts)
    expected = b"".join(part for part in parts if keep or part not in (usage_chunk(), usage_chunk(LATER)))
    expected = expected[: expected.index(DONE) + len(DONE)]
    assert whole(made, data) == expected
    assert (made.usage, made.complete, made.estimate()) == (LATER, True, 2)


@pytest.mark.parametrize("opening", [usage_chunk(), ROLE, usage_chunk() + ROLE, PING + usage_chunk()])
def test_content_flows_as_it_is_made_whatever_came_first(opening: bytes) -> None:
    made = meter()
    assert made.feed(opening) == b""
    assert made.feed(content("abcd")) == opening + content("abcd")
    assert made.feed(content("efgh")) == content("efgh")


def test_the_finish_waits_until_something_is_generated_again() -> None:
    made = meter()
    made.feed(content("abcd"))
    assert made.feed(finish() + usage_chunk()) == b""
    assert made.finished
    assert made.feed(content("more")) == finish() + usage_chunk() + content("more")
    assert not made.finished
    assert not made.usage_is_last


def test_usage_before_the_last_text_is_not_the_last_word() -> None:
    made = meter()
    made.feed(usage_chunk() + content("abcd"))
    assert (made.usage, made.usage_is_last, made.complete) == (USAGE, False, False)


def test_all_choices_must_be_over() -> None:
    made = meter(choices=2)
    assert made.feed(content("abcd") + finish(0)) == content("abcd") + finish(0)
    assert not made.finished
    assert made.feed(finish(1)) == b""
    assert made.finished


def test_what_is_kept_back_is_bounded() -> None:
    opening, ending = meter(), meter()
    ending.feed(content("abcd") + finish())
    beat = b": " + b"x" * 2000 + b"\n\n"
    for _ in range(3 * MAX_KEPT_BYTES // len(beat)):
        opening.feed(beat)
        ending.feed(beat)
    assert len(opening.tail()) <= MAX_KEPT_BYTES + len(beat)
    assert len(ending.tail()) <= MAX_KEPT_BYTES + len(beat) + len(DONE)
    assert ending.tail().startswith(finish())


def test_a_begin_that_may_wait_no_longer_is_released() -> None:
    made = meter()
    assert made.feed(PING + ROLE) == b""
    assert made.release() == PING + ROLE
    assert made.feed(PING) == PING


# ---------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("data", "tail"),
    [
        (content("a") + finish() + DONE, finish() + DONE),
        (content("a") + finish() + b"data: [DONE] \n\n", finish() + DONE),
        (content("a") + finish() + b"data:[DONE]\n\n", finish() + DONE),
        (content("a") + finish() + b"data: [DONE]key sk-secret\n\n", finish() + DONE),
        (content("a") + finish() + b"id: sk-secret\ndata: [DONE]\n: sk-secret\n\n", finish() + DONE),
        (content("a") + finish() + b"data: [DONE]key sk-secret", finish() + DONE),
        (content("a") + finish() + b"data: [DONE]", finish() + DONE),
        (content("a") + finish() + b"data: [DONE]\n", finish() + DONE),
        (content("a") + finish(), finish() + DONE),
        (content("a") + finish().rstrip(), finish() + DONE),
        (content("a") + finish() + usage_chunk().rstrip(), finish() + usage_chunk() + DONE),
        (content("a") + finish() + LAST.rstrip(), finish() + LAST + DONE),
        (content("a") + usage_chunk(), usage_chunk() + DONE),
        (content("a") + finish() + b'data: {"choi', finish() + DONE),
        (DONE, DONE),
        (content("a") + b"data: {}\ndata: [DONE]\n", DONE),
    ],
)
def test_a_stream_that_is_complete_is_complete_however_it_ends(data: bytes, tail: bytes) -> None:
    made = meter()
    made.feed(data)
    made.end()
    assert made.complete
    assert made.tail() == tail


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ROLE,
        content("abcd"),
        content("abcd") + b'data: {"choi',
        usage_chunk(),
        usage_chunk() + content("abcd"),
        content("abcd", usage=USAGE),
        content("abcd") + finish(reason=""),
        event({"choices": [{"index": 1, "delta": {"content": "x"}}]}) + finish(0),
    ],
)
def test_a_stream_that_stops_early_is_not_complete(data: bytes) -> None:
    made = meter(choices=2)
    made.feed(data)
    made.end()
    assert not made.complete


def test_an_error_event_passes_and_its_stream_is_not_complete() -> None:
    made = meter()
    problem = event({"error": {"message": "overloaded", "type": "t", "param": None, "code": 5}})
    assert made.feed(content("abcd") + problem) == content("abcd") + problem
    assert (made.error is None, made.complete, made.finished) == (False, False, False)
    assert made.feed(content("efgh") + finish() + usage_chunk() + DONE) == b""
    assert (made.tail(), made.estimate(), made.usage, made.complete) == (b"", 1, None, False)


@pytest.mark.parametrize(
    "error", [7, "text", {"": {}}, {"message": None}, {"code": "c"}, ["x"], True, {"type": 3}]
)
def test_an_error_event_gets_openais_shape(error: Any) -> None:
    made = meter()
    sent = made.feed(content("abcd") + event({"error": error})).removeprefix(content("abcd"))
    shaped = json.loads(sent.removeprefix(b"data: "))["error"]
    assert isinstance(shaped["message"], str)
    assert shaped["message"]
    assert isinstance(shaped["type"], str)
    assert {"param", "code"} <= shaped.keys()


@pytest.mark.parametrize("late", [event({"error": "overloaded"}), DONE + event({"error": "overloaded"})])
def test_an_error_after_a_complete_answer_undoes_nothing(late: bytes) -> None:
    made = meter()
    made.feed(content("abcd") + finish() + late)
    assert made.complete
    assert b"overloaded" not in made.tail()


@pytest.mark.parametrize("nothing", ["", None, {}, False, 0, []])
def test_an_empty_error_is_none(nothing: Any) -> None:
    made = meter()
    data = content("abcd", error=nothing) + finish(error=nothing) + DONE
    assert whole(made, data) == data
    assert made.complete


# ---------------------------------------------------------------------- odd fields


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "abcd"},
        {"reasoning_content": "abcd"},
        {"reasoning": "abcd"},
        {"thinking": "abcd"},
        {"refusal": "abcd"},
        {"content": [{"type": "text", "text": "abcd"}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "abcd"}]}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "abcd"}}]},
        {"tool_calls": [{"index": 0, "function": {"name": "ab", "arguments": "cd"}}]},
        {"tool_calls": [{"index": 0, "custom": {"name": "ab", "input": "cd"}}]},
        {"function_call": {"name": "ab", "arguments": "cd"}},
    ],
)
def test_everything_generated_is_counted(delta: dict[str, Any]) -> None:
    made = meter()
    made.feed(event({"choices": [{"delta": delta}]}))
    assert made.estimate() == 1


ODD: list[Any] = [None, 5, "text", [], {}, [[]], [None], [5], True, 1.5, {"function": 5}]
ODD += [[{"function": {"name": 5}}], [{"function": 5}]]


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("path", ["choices", "usage", "choice", "delta", "index", "finish_reason", "content"])
def test_fields_of_any_type_pass(path: str, value: Any) -> None:
    choice: dict[str, Any] = {"index": 0, "delta": {"content": "abcd"}, "finish_reason": None}
    chunk: dict[str, Any] = {"choices": [choice], "usage": None}
    inner = {"choices": chunk, "usage": chunk, "content": choice["delta"]}.get(path, choice)
    if path == "choice":
        chunk["choices"] = [value]
    else:
        inner[path] = value
    made = meter()
    data = content("abcd") + event(chunk) + finish() + DONE
    assert whole(made, data) == data
    assert made.complete


@pytest.mark.parametrize("name", ["tool_calls", "refusal", "reasoning_content", "function_call", "audio"])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_fields_of_a_delta_of_any_type_pass(name: str, value: Any) -> None:
    made = meter()
    data = content("abcd") + event({"choices": [{"delta": {"content": "efgh", name: value}}]}) + DONE
    assert whole(made, data) == data
    assert made.estimate() >= 2


@pytest.mark.parametrize(
    "data",
    [
        b"data: [1]\n\n",
        b"data: 3\n\n",
        b"data: null\n\n",
        b'data: "text"\n\n',
        b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"ab"},"logprobs":NaN}]}\n\n',
        b'event: message\nid: 3\ndata: {"choices":\ndata: [{"delta":{"content":"abcd"}}]}\n\n',
        b': {"error":"x"}\n\n',
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_chunk_passes(data: bytes) -> None:
    made = meter()
    everything = content("abcd") + data + finish() + DONE
    assert whole(made, everything) == everything
    assert made.complete


@pytest.mark.parametrize(
    "data",
    [b"data:\n\n", b"data\n\n", b"event: ping\n\n", b"id: 7\nretry: 3\n\n", b": \xff\n\n", b"junk\n\n"],
)
def test_an_event_without_data_is_left_out(data: bytes) -> None:
    made = meter()
    assert whole(made, data + content("abcd") + data + finish() + DONE) == content("abcd") + finish() + DONE


NOT_JSON = [
    b"data: nonsense\n\n",
    b"data: {\n\n",
    b"data: \xff\xfe\n\n",
    b'data: {"choices":[],"\xdf":null}\n\n',
    b"data: " + b"[" * 5000 + b"]" * 5000 + b"\n\n",
    b'data: {"a":' * 3000 + b"\n\n",
    b"data: {}\ndata: {}\n\n",
]


@pytest.mark.parametrize("data", NOT_JSON, ids=lambda data: repr(data[:30]))
def test_nothing_passes_after_data_that_is_not_json(data: bytes) -> None:
    made = meter()
    assert made.feed(content("abcd") + data + content("efgh") + finish() + DONE) == content("abcd")
    assert made.broken
    assert (made.complete, made.finished, made.estimate()) == (False, False, 1)


@pytest.mark.parametrize("data", NOT_JSON, ids=lambda data: repr(data[:30]))
def test_what_is_complete_is_not_broken_by_what_follows(data: bytes) -> None:
    made = meter()
    assert whole(made, content("abcd") + finish() + data + DONE) == content("abcd") + finish() + DONE
    assert made.complete


def test_a_line_that_is_not_utf8_is_left_out() -> None:
    data = (
        b": \xff\nid: \xe2\x80\xa8\n" + content("abcd") + content("efgh").replace(b"efgh", "\u2028".encode())
    )
    sent = whole(meter(), data + finish() + DONE)
    assert sent == data.removeprefix(b": \xff\n") + finish() + DONE


@pytest.mark.parametrize("done", [b"data:  [DONE]\n\n", b"data:\ndata: [DONE]\n\n"])
def test_the_end_is_written_as_clients_expect_it(done: bytes) -> None:
    made = meter()
    assert whole(made, content("abcd") + finish() + done) == content("abcd") + finish() + DONE


def test_halves_of_an_emoji_in_two_chunks_are_counted() -> None:
    made = meter()
    for half in (b"\\ud83d", b"\\ude00"):
        made.feed(b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % half)
    assert made.estimate() == 2


# ---------------------------------------------------------------------- the customer's model, and secrets


def test_chunks_name_the_customers_model() -> None:
    def chunk(name: str) -> bytes:
        delta = {"content": '"model": "inner"', "model": "other"}
        return event({"id": "x", "model": name, "choices": [{"delta": delta}]})

    made = meter(model="mine")
    data = chunk("theirs") + b'event: e\ndata: {"model":\ndata: "theirs","choices":[]}\n\n' + finish() + DONE
    expected = chunk("mine") + b'event: e\ndata: {"model":\ndata: "mine","choices":[]}\n\n' + finish() + DONE
    assert whole(made, data) == expected
    assert whole(meter(), data) == data


@given(PLACES)
def test_what_is_no_ordinary_chunk_is_redacted(places: list[int]) -> None:
    made = meter(redact=lambda text: text.replace(b"s3cret", b"[redacted]"))
    odd = [
        event({"error": {"message": "key s3cret"}}),
        event({"note": "s3cret"}),
        b": s3cret\n\n",
        event(["s3cret"]),
    ]
    data = content("abcd") + b"".join(reversed(odd))
    sent = passed(made, cut(data, places))
    assert b"s3cret" not in sent
    assert sent.count(b"[redacted]") == 4


@pytest.mark.parametrize(
    "junk", [b"\xc3", b"data: [DONE]\n\xc3", b"id: \xff\ndata: [DONE]", b"data: [DONE]\xe2\x82"]
)
def test_the_end_is_sent_in_utf8(junk: bytes) -> None:
    last = junk if b"[DONE]" in junk else b"data: [DONE]\r" + junk
    made = meter()
    assert whole(made, TEXT + finish() + last + b"\n\n") == TEXT + finish() + DONE


@pytest.mark.parametrize("done", [b"data: [DONE]", b"data:[DONE]\r\n", b"data: [DONE] \n"])
def test_a_provider_that_falls_silent_within_the_last_line_has_ended(done: bytes) -> None:
    made = meter()
    sent = made.feed(TEXT + done)
    made.break_off()
    assert (made.finished, sent + made.tail()) == (True, TEXT + DONE)


@pytest.mark.parametrize("cut", [content("more", end=""), finish().rstrip(), b"data: [DON", b"[DONE]", b""])
def test_nothing_else_without_its_blank_line_counts_when_a_stream_breaks(cut: bytes) -> None:
    made = meter()
    assert made.feed(TEXT + cut) == TEXT
    before = made.estimate()
    made.break_off()
    assert (made.finished, made.estimate(), made.tail()) == (False, before, b"")


@pytest.mark.parametrize(
    "begin", [b"", b"da", b": hi", b"x: 1\ndata: {", b"\r\nunknown\r\nretry: 5", BOM + b"event: a"]
)
def test_a_stream_may_begin_with_fields_that_the_standard_ignores(begin: bytes) -> None:
    assert sse.may_begin(begin)


@pytest.mark.parametrize("begin", [b"<html>", b'{"error": {\n "data": 1}}', b"Bad Gateway\n", b"x: 1\ny: 2"])
def test_what_has_no_field_of_the_standard_is_no_stream(begin: bytes) -> None:
    assert not sse.may_begin(begin)
