"""Anthropic's stream meter: bytes pass untouched however they are cut, the end waits for its payment."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.anthropic_answer import cumulated, read_message
from relay.formats.anthropic_stream import STOP, AnthropicMeter
from relay.formats.meters import meters_of
from relay.formats.sse import EventTooLarge


def sse(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


USAGE = {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 1}
START = sse("message_start", message={"id": "m", "model": "theirs", "content": [], "usage": USAGE})
BLOCK = sse("content_block_start", index=0, content_block={"type": "text", "text": ""})
PING = sse("ping")


def text(words: str) -> bytes:
    return sse("content_block_delta", index=0, delta={"type": "text_delta", "text": words})


TEXT = text("Grüße ") + PING + text("🙂")
BLOCK_END = sse("content_block_stop", index=0)
DELTA = sse(
    "message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 5}
)
END = DELTA + STOP
WHOLE = START + BLOCK + TEXT + BLOCK_END + END


def meter(model: str | None = None, limit: int = 1 << 20) -> AnthropicMeter:
    return AnthropicMeter(limit, lambda data: data.replace(b"secret", b"***"), model)


def passed(made: AnthropicMeter, data: bytes, cuts: Iterable[int] = ()) -> bytes:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return b"".join(made.feed(data[begin:end]) for begin, end in pairwise(edges) if begin < end)


@given(st.lists(st.integers(0, 3000), max_size=9))
def test_bytes_pass_untouched_however_they_are_cut(cuts: list[int]) -> None:
    made = meter()
    assert passed(made, WHOLE, cuts) + made.tail() == WHOLE
    assert made.finished
    assert made.usage == {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 5}
    assert made.estimate() == 1 + 3  # 4 characters are ASCII, 3 are not


def test_the_begin_waits_for_something_generated_and_the_end_for_its_payment() -> None:
    made = meter()
    assert made.feed(START + PING + BLOCK) == b""
    assert not made.generating
    assert made.feed(text("x")) == START + PING + BLOCK + text("x")
    assert made.feed(BLOCK_END) == BLOCK_END
    assert made.feed(END) == b""
    assert (made.finished, made.ending, made.complete) == (True, True, True)
    assert made.tail() == END


def test_a_begin_that_may_wait_no_longer_passes() -> None:
    made = meter()
    assert made.feed(START + BLOCK) == b""
    assert made.release() == START + BLOCK
    assert made.feed(PING) == PING


def test_only_the_models_name_is_replaced() -> None:
    made = meter("mine")
    assert passed(made, WHOLE) + made.tail() == WHOLE.replace(b'"theirs"', b'"mine"')
    spelled = START.replace(b'"usage"', b'"metadata": {"model": "theirs"}, "usage"')
    assert meter("mine").feed(spelled + text("x")).count(b'"theirs"') == 1


def test_a_stream_without_its_last_event_gets_it() -> None:
    made = meter()
    made.feed(START + text("x") + DELTA)
    made.end()
    assert made.tail() == DELTA + STOP
    made = meter()
    made.feed(START + text("x") + DELTA + STOP[:-2])
    assert made.ending
    made.break_off()
    assert made.tail() == DELTA + STOP


def test_a_cut_stream_is_not_complete() -> None:
    made = meter()
    made.feed(START + text("abcdefgh") + BLOCK_END)
    made.end()
    assert (made.finished, made.complete, made.usage_is_last) == (False, False, False)
    assert made.partial_usage(2) == {**USAGE, "output_tokens": 2, "estimated": True}
    assert made.partial_usage(0) is None
    assert meter().partial_usage(2) is None


def test_an_error_passes_without_secrets_and_nothing_after_it() -> None:
    made = meter()
    error = sse("error", error={"type": "overloaded_error", "message": "secret is busy"})
    assert made.feed(START + text("x") + error + text("y")) == START + text("x") + error.replace(
        b"secret", b"***"
    )
    assert made.error == {"type": "overloaded_error", "message": "secret is busy"}
    assert not made.finished
    assert made.tail() == b""
    whole = meter()
    whole.feed(WHOLE + error)
    assert (whole.error, whole.tail()) == (None, END)  # what is complete is not undone


@pytest.mark.parametrize("data", [b"<html>", b"nonsense", b"[1]", b'"x"'])
def test_what_is_no_stream_of_json_objects_is_broken(data: bytes) -> None:
    made = meter()
    made.feed(START + b"data: " + data + b"\n\n" + text("x"))
    assert made.broken is not None
    assert not made.complete


def test_an_event_has_a_bound() -> None:
    with pytest.raises(EventTooLarge):
        passed(meter(limit=5000), b"data: " + b"x" * 10_000, range(0, 10_000, 500))


def test_what_is_generated_after_an_end_releases_it() -> None:
    made = meter()
    made.feed(START + text("x") + DELTA)
    assert made.feed(text("y")) == DELTA + text("y")
    assert not made.finished


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["input_tokens", "output_tokens"]), st.integers(0, 99)), max_size=5
    )
)
def test_usage_is_a_running_total(told: list[dict[str, int]]) -> None:
    usage: dict[str, Any] | None = None
    for later in told:
        usage = cumulated(usage, later)
    answers = [later["output_tokens"] for later in told if "output_tokens" in later]
    assert (usage or {}).get("output_tokens") == (max(answers) if answers else None)
    # A prompt that is told again as less was told more exactly; as zero, it was not told.
    prompts = [later["input_tokens"] for later in told if "input_tokens" in later]
    known = [figure for figure in prompts if figure]
    assert (usage or {}).get("input_tokens") == (known[-1] if known else 0 if prompts else None)


@pytest.mark.parametrize(
    ("first", "later", "fresh"),
    [
        # Moonshot's and Alibaba's (maximhq/bifrost#5510, #5355): the begin tells the whole prompt.
        ({"input_tokens": 8834}, {"input_tokens": 18, "cache_read_input_tokens": 8816}, 18),
        ({"input_tokens": 8834}, {"input_tokens": 0, "cache_read_input_tokens": 8834}, 0),
        # Alibaba's some weeks earlier (jeremychone/rust-genai#258): the end tells the cache alone.
        ({"input_tokens": 3602}, {"cache_read_input_tokens": 3604, "cache_creation_input_tokens": 0}, 0),
        ({"input_tokens": 3602}, {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 2000}, 1602),
        # Anthropic's own: the begin tells both, the end repeats them or tells the answer alone.
        ({"input_tokens": 10, "cache_read_input_tokens": 90}, {"output_tokens": 5}, 10),
        (
            {"input_tokens": 10, "cache_read_input_tokens": 90},
            {"input_tokens": 10, "cache_read_input_tokens": 90},
            10,
        ),
        # Its own tools make a prompt longer while it answers.
        ({"input_tokens": 10, "cache_read_input_tokens": 0}, {"input_tokens": 4000}, 4000),
        # Gateways: a begin that knows nothing yet, an end that repeats nothing.
        ({"input_tokens": 0}, {"input_tokens": 70, "cache_read_input_tokens": 30}, 70),
        ({"input_tokens": 70, "cache_read_input_tokens": 30}, {"input_tokens": 0}, 70),
        ({"input_tokens": 70, "cache_read_input_tokens": 30}, {"input_tokens": None}, 70),
    ],
)
def test_no_token_of_a_prompt_is_counted_as_fresh_and_as_cached(
    first: dict[str, int], later: dict[str, int], fresh: int
) -> None:
    told = cumulated(cumulated(None, first), later)
    assert told is not None
    assert told["input_tokens"] == fresh
    for name in ("cache_read_input_tokens", "cache_creation_input_tokens"):
        assert told.get(name) == later.get(name, first.get(name))


HUGE = pytest.param(10**400, id="huge")


@pytest.mark.parametrize("first", [1.5, 2.0, 10, HUGE, 1e308, math.nan, math.inf, -5, True, "7", None])
@pytest.mark.parametrize("cached", [0.5, 3.0, HUGE, 1e308, math.nan, -math.inf, -10, False, [7], None])
def test_no_figure_breaks_the_sum_of_usage(first: Any, cached: Any) -> None:
    began = {"input_tokens": first, "cache_creation_input_tokens": first}
    for later in (None, 7, 10**400, 0, 0.5):
        for start in (began, {"input_tokens": first}):
            ended = {"input_tokens": later, "cache_read_input_tokens": cached}
            meters_of("anthropic", cumulated(cumulated(None, start), ended))


HIDDEN: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"type": "redacted_thinking", "data": "EmwKAhgB"}, None),
    ({"type": "thinking", "thinking": "", "signature": "EqQBCgIYAhIM"}, None),
    ({"type": "thinking", "thinking": "", "signature": ""}, {"type": "signature_delta", "signature": "EqQB"}),
]


@pytest.mark.parametrize(("block", "delta"), HIDDEN)
def test_a_refusal_after_thoughts_that_are_not_shown_is_billed(
    block: dict[str, Any], delta: dict[str, Any] | None
) -> None:
    """It is one in the midst of an answer: the tokens of the thoughts were made, and Anthropic bills them."""
    made = meter()
    begun = sse("content_block_start", index=0, content_block=block)
    more = b"" if delta is None else sse("content_block_delta", index=0, delta=delta)
    refused = sse("message_delta", delta={"stop_reason": "refusal"}, usage={"output_tokens": 2000})
    made.feed(START + begun + more + BLOCK_END + refused + STOP)
    assert made.usage == USAGE | {"output_tokens": 2000}
    content = [block if delta is None else block | {"signature": delta["signature"]}]
    whole = {"content": content, "stop_reason": "refusal", "usage": USAGE}
    assert read_message(json.dumps(whole).encode()).usage == USAGE


@pytest.mark.parametrize("content", [[], [{"type": "text", "text": ""}], [None, "?"], None])
def test_a_block_without_a_word_is_no_output(content: Any) -> None:
    made = meter()
    refused = sse("message_delta", delta={"stop_reason": "refusal"}, usage={"output_tokens": 1})
    made.feed(START + BLOCK + BLOCK_END + refused + STOP)
    assert made.usage is None
    whole = {"content": content, "stop_reason": "refusal", "usage": USAGE}
    assert read_message(json.dumps(whole).encode()).usage is None


def test_usage_of_nested_kinds_adds_nothing_twice() -> None:
    first = {"cache_creation": {"ephemeral_5m_input_tokens": 3}, "server_tool_use": None}
    later = {
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2},
        "input_tokens": None,
    }
    assert cumulated(cumulated(None, first), later) == {
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2},
    }


def test_whole_answers() -> None:
    message = {
        "content": [{"type": "text", "text": "abcd"}, {"type": "tool_use", "name": "look", "input": {"a": 1}}]
    }
    read = read_message(json.dumps(message).encode())
    assert (read.usage, read.empty, read.estimate()) == (None, False, 1 + 1 + 2)
    assert read_message(b'{"content": []}').empty
    for error in (b'{"type": "error", "error": {"type": "x"}}', b'{"detail": "x"}'):
        with pytest.raises(ErrorAnswer):
            read_message(error)
    for bad in (b"", b"[]", b"nonsense"):
        with pytest.raises(BadAnswer):
            read_message(bad)


@pytest.mark.parametrize(
    "said", [b"", sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "No"})]
)
def test_a_refusal_before_any_output_is_not_billed(said: bytes) -> None:
    """theopenco/llmgateway#2642: Anthropic tells its usage, and does not bill it."""
    ended = {"stop_reason": "refusal", "stop_sequence": None}
    made = meter()
    made.feed(START + said + sse("message_delta", delta=ended, usage={"output_tokens": 1}) + STOP)
    made.end()
    assert made.complete
    assert (made.usage is None) == (not said)
    whole = {
        "content": [{"type": "text", "text": "No"}] if said else [],
        "stop_reason": "refusal",
        "usage": USAGE,
    }
    assert (read_message(json.dumps(whole).encode()).usage is None) == (not said)
