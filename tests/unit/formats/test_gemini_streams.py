"""Streams between Gemini's format and the others: the bugs that gateways have again and again, numbered as
those of test_golden_streams, and how the meter reads Gemini's own.
"""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.formats import gemini
from relay.formats.answer import BadAnswer
from relay.formats.format import MeterOptions
from relay.formats.registry import FORMATS
from relay.pricing.usage import normalise
from relay.providers.profiles import Profile
from tests.unit.formats.test_golden_streams import (
    OPENAI_END,
    SHOWN,
    START,
    Object,
    block,
    call_block,
    chunk,
    completion,
    ended,
    events,
    message,
    sse,
    text_block,
    tool,
    translated,
    whole,
)

COMPATIBLE = Profile("max_tokens", "pass", extensions=True)
USAGE = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 80,
    "candidatesTokenCount": 13,
    "thoughtsTokenCount": 7,
    "totalTokenCount": 120,
}


def said(*parts: Object, finish: str | None = None, usage: Object | None = USAGE, **more: Any) -> bytes:
    """An event of Google's."""
    candidate: Object = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    body: Object = {"candidates": [candidate], "modelVersion": "theirs", "responseId": "r1"} | more
    if usage is not None:
        body["usageMetadata"] = usage
    return b"data: " + json.dumps(body).encode() + b"\r\n\r\n"


def call(name: str, args: Object, signature: str | None = None, call_id: str | None = None) -> Object:
    made: Object = {"functionCall": {"name": name, "args": args} | ({"id": call_id} if call_id else {})}
    return made | ({"thoughtSignature": signature} if signature else {})


def generated(data: bytes) -> Object:
    """Gemini's parts as an SDK collects them, with ``finish`` and ``usage``."""
    made: Object = {"parts": [], "finish": None, "usage": None}
    for event in data.split(b"\r\n\r\n")[:-1]:
        value = json.loads(event.strip().removeprefix(b"data: "))
        assert value["modelVersion"] == "mine"
        (candidate,) = value["candidates"]
        made["parts"] += candidate["content"]["parts"]
        made["finish"] = candidate.get("finishReason", made["finish"])
        made["usage"] = value.get("usageMetadata", made["usage"])
    return made


def to_anthropic(*parts: bytes) -> Object:
    return message(whole("gemini", "anthropic", b"".join(parts)))


def to_openai(*parts: bytes) -> Object:
    return completion(whole("gemini", "openai", b"".join(parts)))


def from_anthropic(*parts: bytes) -> Object:
    return generated(whole("anthropic", "gemini", b"".join((START, *parts))))


def from_openai(*parts: bytes) -> Object:
    return generated(whole("openai", "gemini", b"".join(parts)))


# ---------------------------------------------------------------- the bugs


def test_01_arguments_of_tools_are_not_lost() -> None:
    asked = said(call("look", {"at": "sky"}, call_id="c1"), finish="STOP")
    assert to_anthropic(asked)["content"] == [
        {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "sky"}}
    ]
    assert to_openai(asked)["calls"] == {0: {"id": "c1", "name": "look", "arguments": '{"at":"sky"}'}}


def test_02_arguments_in_pieces_and_at_the_begin_become_whole_calls() -> None:
    expected = [call("look", {"at": "sky"}, call_id="t1")]
    assert (
        from_anthropic(call_block(0, "t1", "look", '{"at":', '"sky"}'), ended("tool_use"))["parts"]
        == expected
    )
    given = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "sky"}}
    assert from_anthropic(block(0, given), ended("tool_use"))["parts"] == expected
    pieces = (
        chunk({"tool_calls": [tool(0, '{"at"', "t1", "look")]}),
        chunk({"tool_calls": [tool(0, ':"sky"}')]}),
    )
    assert from_openai(*pieces, chunk({}, "tool_calls"), OPENAI_END)["parts"] == expected


def test_03_an_empty_list_of_tool_calls_hides_no_text() -> None:
    made = from_openai(chunk({"content": "Hello", "tool_calls": []}), chunk({}, "stop"), OPENAI_END)
    assert made["parts"] == [{"text": "Hello"}, {"text": ""}]
    assert made["finish"] == "STOP"


def test_04_the_first_and_the_last_delta_are_not_lost() -> None:
    """Google's last event may bring text with the reason of the end."""
    parts = (said({"text": "One"}), said({"text": " two"}, finish="STOP"))
    assert to_anthropic(*parts)["content"] == [{"type": "text", "text": "One two"}]
    assert to_openai(*parts)["content"] == "One two"


def test_05_thoughts_are_no_text() -> None:
    parts = (said({"text": "Hm", "thought": True}), said({"text": "Yes"}, finish="STOP"))
    assert [part["type"] for part in to_anthropic(*parts)["content"]] == ["thinking", "text"]
    made = to_openai(*parts)
    assert (made["thoughts"], made["content"]) == ("Hm", "Yes")
    made = from_openai(chunk({"reasoning_content": "Hm"}), chunk({"content": "Yes"}, "stop"), OPENAI_END)
    assert made["parts"][:2] == [{"text": "Hm", "thought": True}, {"text": "Yes"}]


def test_06_text_and_a_tool_in_one_event() -> None:
    both = said({"text": "Look:"}, call("look", {}), finish="STOP")
    assert [part["type"] for part in to_anthropic(both)["content"]] == ["text", "tool_use"]
    made = to_openai(both)
    assert (made["content"], made["calls"][0]["name"]) == ("Look:", "look")


def test_07_parallel_calls_keep_their_numbers_and_get_names() -> None:
    """Models before Gemini 3 name none."""
    parts = (said(call("look", {"at": "sky"})), said(call("look", {"at": "sea"}), finish="STOP"))
    made = to_openai(*parts)["calls"]
    assert [made[number]["arguments"] for number in (0, 1)] == ['{"at":"sky"}', '{"at":"sea"}']
    assert made[0]["id"] != made[1]["id"]
    assert [part["input"] for part in to_anthropic(*parts)["content"]] == [{"at": "sky"}, {"at": "sea"}]


def test_07_parallel_calls_whose_arguments_alternate() -> None:
    made = from_openai(
        chunk({"tool_calls": [tool(0, '{"at":', "t1", "look"), tool(1, '{"to":', "t2", "listen")]}),
        chunk({"tool_calls": [tool(0, '"sky"}')]}),
        chunk({"tool_calls": [tool(1, '"rain"}')]}, "tool_calls"),
        OPENAI_END,
    )
    assert made["parts"] == [
        call("look", {"at": "sky"}, call_id="t1"),
        call("listen", {"to": "rain"}, call_id="t2"),
    ]


def test_08_the_end_of_an_answer_with_calls_says_so() -> None:
    """Google ends it with STOP."""
    for parts in ([said(call("look", {}), finish="STOP")], [said(call("look", {})), said(finish="STOP")]):
        assert to_anthropic(*parts)["stop_reason"] == "tool_use"
        assert to_openai(*parts)["finish"] == "tool_calls"


@pytest.mark.parametrize(
    ("theirs", "openais", "anthropics"),
    [
        *(("STOP", "stop", "end_turn"), ("MAX_TOKENS", "length", "max_tokens")),
        *(("SAFETY", "content_filter", "refusal"), ("RECITATION", "content_filter", "refusal")),
        ("NEW", "stop", "end_turn"),
    ],
)
def test_08_every_end_has_its_name(theirs: str, openais: str, anthropics: str) -> None:
    answer = said({"text": "x"}, finish=theirs)
    assert to_openai(answer)["finish"] == openais
    assert to_anthropic(answer)["stop_reason"] == anthropics


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *(
            ("end_turn", "STOP"),
            ("max_tokens", "MAX_TOKENS"),
            ("stop_sequence", "STOP"),
            ("tool_use", "STOP"),
        ),
        *(("refusal", "SAFETY"), ("model_context_window_exceeded", "MAX_TOKENS")),
    ],
)
def test_08_every_end_has_its_name_the_other_way(theirs: str, ours: str) -> None:
    assert from_anthropic(text_block(0, "x"), ended(theirs))["finish"] == ours


def test_08_a_blocked_prompt_is_a_refusal() -> None:
    blocked = {
        "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
        "usageMetadata": {"promptTokenCount": 9},
    }
    data = b"data: " + json.dumps(blocked).encode() + b"\r\n\r\n"
    assert to_openai(data)["finish"] == "content_filter"
    assert to_anthropic(data)["stop_reason"] == "refusal"


def asked_back(ours: str, turn: Object) -> list[Object]:
    """The parts that Google gets of a model's turn in a customer's history, as Gemini 3 wants them."""
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}, turn]})
    conversation = FORMATS[ours].read_request(body.encode(), drop_unknown=False)
    written = json.loads(FORMATS["gemini"].write_request(conversation, "gemini-3", 9, COMPATIBLE).body)
    parts: list[Object] = written["contents"][1]["parts"]
    return parts


def test_09_signatures_of_calls_come_back_from_customers_of_other_formats() -> None:
    """Gemini 3 refuses a conversation without them."""
    signed = call("look", {"at": "sky"}, "c2ln", "c1")
    answer = said(signed, call("look", {}, call_id="c2"), finish="STOP")
    turn = {"role": "assistant", "content": to_anthropic(answer)["content"]}
    assert asked_back("anthropic", turn) == [signed, call("look", {}, call_id="c2")]
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in whole("gemini", "openai", answer).decode().split("\n\n")
        if line.startswith("data: {")
    ]
    calls = [
        one
        for event in chunks
        for choice in event["choices"]
        for one in choice["delta"].get("tool_calls", ())
    ]
    begun = calls[0]
    assert begun["extra_content"] == {"google": {"thought_signature": "c2ln"}}
    begun["function"]["arguments"] = calls[1]["function"]["arguments"]
    assert asked_back("openai", {"role": "assistant", "tool_calls": [begun]}) == [signed]


def test_09_a_client_that_loses_signatures_can_go_on() -> None:
    """With the value that Google documents for calls of other models."""
    lost = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    (part,) = asked_back("openai", {"role": "assistant", "tool_calls": [lost]})
    assert part == call("look", {}, "skip_thought_signature_validator", "c1")


def test_09_signatures_of_texts_stay() -> None:
    """Google sends them with the text, or in an empty part behind it."""
    for parts in (
        [{"text": "Yes", "thoughtSignature": "c2ln"}],
        [{"text": "Yes"}, {"text": "", "thoughtSignature": "c2ln"}],
    ):
        content = to_anthropic(said(*parts, finish="STOP"))["content"]
        assert {"type": "thinking", "thinking": "", "signature": "c2ln"} in content
        back = asked_back("anthropic", {"role": "assistant", "content": content})
        assert [part.get("text") for part in back if part.get("text")] == ["Yes"]
        assert [part["thoughtSignature"] for part in back if "thoughtSignature" in part] == ["c2ln"]
        details = to_openai(said(*parts, finish="STOP"))["details"]
        assert [detail["signature"] for detail in details] == ["c2ln"]


def test_10_thoughts_of_another_provider_come_back_as_they_were() -> None:
    """Google's clients keep parts and signatures, which are bytes in base64 to them; one SDK puts every event
    of a stream into a content of its own."""
    empty = {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [{"type": "thinking_delta", "thinking": text} for text in ("Hm", ", yes")]
    signature = "EqQB+/sig=="
    data = (
        block(0, empty, *deltas, {"type": "signature_delta", "signature": signature}),
        block(1, {"type": "redacted_thinking", "data": "secret"}),
        block(2, empty, {"type": "signature_delta", "signature": "alone"}),
        text_block(3, "Yes"),
    )
    parts = from_anthropic(*data, ended())["parts"]
    for part in parts:
        if "thoughtSignature" in part:
            raw = base64.b64decode(part["thoughtSignature"], validate=True)
            part["thoughtSignature"] = base64.urlsafe_b64encode(raw).decode()
    contents = [{"role": "user", "parts": [{"text": "Hi"}]}]
    contents += [{"role": "model", "parts": [part]} for part in parts]
    body = json.dumps({"contents": contents}).encode()
    conversation = FORMATS["gemini"].read_request(body, drop_unknown=False)
    written = json.loads(FORMATS["anthropic"].write_request(conversation, "m", 9, COMPATIBLE).body)
    assert written["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "Hm, yes", "signature": signature},
        {"type": "redacted_thinking", "data": "secret"},
        {"type": "thinking", "thinking": "", "signature": "alone"},
        {"type": "text", "text": "Yes"},
    ]


def test_14_usage_is_told_once_and_the_cache_where_the_format_has_it() -> None:
    """Google tells totals so far with every event."""
    parts = (
        said({"text": "x"}, usage=USAGE | {"candidatesTokenCount": 1}),
        said({"text": "y"}, finish="STOP"),
    )
    usage = to_anthropic(*parts)["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (20, 80, 20)
    usage = to_openai(*parts)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (100, 20, 120)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 80
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 7
    assert from_openai(chunk({"content": "x"}, "stop"), OPENAI_END)["usage"] == USAGE
    told = from_anthropic(text_block(0, "x"), ended())["usage"]
    assert normalise("gemini", told) == {"in_text": 20, "cache_read": 80, "out_text": 20}


def test_18_pings_pass() -> None:
    """As blank lines, over which every client of Google's passes."""
    assert FORMATS["gemini"].PING == b"\r\n"
    data = START + text_block(0, "x") + sse("ping") + text_block(1, "y")
    assert b"\r\n\r\n\r\ndata: " in translated("anthropic", "gemini").feed(data)
    data = said({"text": "x"}) + b": keep-alive\n\n" + said({"text": "y"})
    assert b": ping\n\n" in translated("gemini", "openai").feed(data)


# ---------------------------------------------------------------- errors, cuts, what cannot be said


def test_an_error_in_a_stream_ends_it_in_the_customers_format() -> None:
    error = {"error": {"code": 503, "message": "too busy", "status": "UNAVAILABLE"}}
    broken = said({"text": "x"}) + b"data: " + json.dumps(error).encode() + b"\r\n\r\n"
    assert events(whole("gemini", "anthropic", broken))[-1]["error"]["message"] == "too busy"
    data = whole("gemini", "openai", broken)
    assert json.loads(data.split(b"data: ")[-1])["error"]["message"] == "too busy"
    failed = sse("error", error={"type": "overloaded_error", "message": "too busy"})
    data = whole("anthropic", "gemini", START + text_block(0, "x") + failed)
    last = json.loads(data.split(b"data: ")[-1])["error"]
    assert (last["message"], last["status"]) == ("too busy", "INTERNAL")


@pytest.mark.parametrize("part", [{"executableCode": {"code": "1"}}, {"inlineData": {"data": "aa"}}], ids=str)
def test_a_part_that_cannot_be_said_breaks_the_answer_and_is_not_dropped(part: Object) -> None:
    meter = translated("gemini", "openai")
    with pytest.raises(BadAnswer, match=next(iter(part))):
        meter.feed(said({"text": "x"}) + said(part))
    body = json.dumps({"candidates": [{"content": {"parts": [part]}}]}).encode()
    with pytest.raises(BadAnswer, match=next(iter(part))):
        gemini.read_answer(body)


GEMINI = (
    said({"text": "Hm ünd 🙂", "thought": True})
    + said({"text": "Grüße"})
    + said(call("look", {"a": "ü"}, "c2ln"), finish="STOP")
)


@given(st.lists(st.integers(0, 3000), max_size=8))
def test_it_does_not_matter_how_a_stream_is_cut(cuts: list[int]) -> None:
    for ours in ("openai", "anthropic"):
        assert whole("gemini", ours, GEMINI, cuts) == whole("gemini", ours, GEMINI)
    theirs = START + text_block(0, "Grüße", " 🙂") + call_block(1, "t1", "look", "{}") + ended("tool_use")
    assert whole("anthropic", "gemini", theirs, cuts) == whole("anthropic", "gemini", theirs)


def test_the_end_waits_for_the_payment() -> None:
    meter = translated("gemini", "anthropic")
    passed = meter.feed(said({"text": "x"}) + said({"text": "y"}, finish="STOP"))
    assert b'"x"' in passed
    assert b'"y"' not in passed
    assert b"message_stop" in meter.tail()
    meter = translated("openai", "gemini")
    assert b"finishReason" not in meter.feed(chunk({"content": "x"}) + chunk({}, "stop") + OPENAI_END)
    assert b"finishReason" in meter.tail()


# ---------------------------------------------------------------- the meter, where nothing is translated


def metered(model: str | None = None, choices: int = 1) -> Any:
    options = MeterOptions(
        keep_usage_chunk=True, choices=choices, max_event_bytes=1 << 20, model=model, redact=lambda text: text
    )
    return gemini.meter(options)


@given(st.lists(st.integers(0, 3000), max_size=8))
@example([len(GEMINI) - 1])
def test_a_stream_passes_byte_by_byte(cuts: list[int]) -> None:
    meter = metered()
    edges = [0, *sorted({cut % (len(GEMINI) + 1) for cut in cuts}), len(GEMINI)]
    passed = b"".join(meter.feed(GEMINI[begin:end]) for begin, end in pairwise(edges) if begin < end)
    meter.end()
    assert passed + meter.tail() == GEMINI
    assert (meter.usage, meter.complete, meter.events) == (USAGE, True, 3)


def test_only_the_models_name_is_replaced() -> None:
    meter = metered("mine")
    passed = meter.feed(GEMINI)
    meter.end()
    assert (passed + meter.tail()).replace(b"\r\n", b"\n") == GEMINI.replace(b'"theirs"', b'"mine"').replace(
        b"\r\n", b"\n"
    )


def test_a_stream_is_whole_when_each_candidate_is() -> None:
    meter = metered(choices=2)
    meter.feed(said({"text": "x"}, finish="STOP"))
    assert not meter.finished
    second = {"content": {"parts": [{"text": "y"}]}, "index": 1, "finishReason": "STOP"}
    meter.feed(said({"text": ""}, candidates=[second]))
    assert meter.finished


def test_a_stream_that_breaks_is_known_by_its_usage_so_far() -> None:
    meter = metered()
    meter.feed(said({"text": "x" * 40}, usage=USAGE))
    assert (meter.complete, meter.usage_is_last, meter.usage) == (False, True, USAGE)
    meter.feed(said({"text": "x" * 40}, usage=None))
    assert not meter.usage_is_last
    told = meter.partial_usage(25)
    assert normalise("gemini", told) == {"in_text": 20, "cache_read": 80, "out_text": 25}
    meter.break_off()
    assert not meter.complete


def test_nothing_passes_after_an_error() -> None:
    meter = metered()
    error = b'data: {"error": {"code": 500, "message": "no"}}\r\n\r\n'
    assert meter.feed(said({"text": "x"}) + error + said({"text": "y"})).endswith(error)
    assert (meter.error, meter.complete) == ({"code": 500, "message": "no"}, False)


def test_whole_answers_there_and_back() -> None:
    parts = [{"text": "Hm", "thought": True}, {"text": "Yes"}, call("look", {"at": "sky"}, "c2ln", "c1")]
    candidate = {"content": {"parts": parts, "role": "model"}, "finishReason": "STOP", "index": 0}
    body = {"candidates": [candidate], "usageMetadata": USAGE, "modelVersion": "theirs", "responseId": "r1"}
    encoded = json.dumps(body).encode()
    assert json.loads(gemini.write_answer(gemini.read_answer(encoded), SHOWN)) == body | {
        "modelVersion": "mine"
    }
    assert gemini.read_whole(encoded).usage == USAGE
    assert gemini.read_whole(encoded).estimate() > 0
