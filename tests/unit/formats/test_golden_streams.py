"""Streams between OpenAI's and Anthropic's formats: the bugs that gateways have again and again, each by
what the customer gets to see. The names of the tests say what was lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats.answer import BadAnswer
from relay.formats.format import MeterOptions, Shown
from relay.formats.registry import FORMATS
from relay.formats.translated_stream import TranslatedMeter

SHOWN = Shown("mine", include_usage=True, created=1)
Object = dict[str, Any]


def translated(theirs: str, ours: str) -> TranslatedMeter:
    options = MeterOptions(
        keep_usage_chunk=True, choices=1, max_event_bytes=1 << 20, model=None, redact=lambda text: text
    )
    provider = FORMATS[theirs]
    return TranslatedMeter(provider.meter(options), provider.decoder(), FORMATS[ours].encoder(SHOWN))


def whole(theirs: str, ours: str, data: bytes, cuts: Iterable[int] = ()) -> bytes:
    """All that a customer gets of a provider's stream, cut at these places."""
    meter = translated(theirs, ours)
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    passed = b"".join(meter.feed(data[begin:end]) for begin, end in pairwise(edges) if begin < end)
    meter.end()
    return passed + meter.tail()


# ---------------------------------------------------------------- what providers send


def sse(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


def chunk(delta: Object | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "c1", "object": "chat.completion.chunk", "model": "theirs", "choices": choices}
    return f"data: {json.dumps(body | more)}\n\n".encode()


def tool(index: int, arguments: str = "", call: str = "", name: str = "") -> Object:
    made: Object = {"index": index, "function": {"arguments": arguments}}
    if call:
        made |= {"id": call, "type": "function"}
        made["function"]["name"] = name
    return made


OPENAI_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 80},
    "completion_tokens_details": {"reasoning_tokens": 7},
}
OPENAI_END = chunk(None, usage=OPENAI_USAGE) + b"data: [DONE]\n\n"
START = sse(
    "message_start",
    message={
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "theirs",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 20, "cache_read_input_tokens": 80, "output_tokens": 1},
    },
)


def block(index: int, start: Object, *deltas: Object) -> bytes:
    begun = sse("content_block_start", index=index, content_block=start)
    said = b"".join(sse("content_block_delta", index=index, delta=delta) for delta in deltas)
    return begun + said + sse("content_block_stop", index=index)


def text_block(index: int, *texts: str) -> bytes:
    return block(
        index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": text} for text in texts)
    )


def call_block(index: int, call: str, name: str, *pieces: str) -> bytes:
    deltas = ({"type": "input_json_delta", "partial_json": piece} for piece in pieces)
    return block(index, {"type": "tool_use", "id": call, "name": name, "input": {}}, *deltas)


def ended(reason: str = "end_turn", sequence: str | None = None) -> bytes:
    delta = {"stop_reason": reason, "stop_sequence": sequence}
    return sse("message_delta", delta=delta, usage={"output_tokens": 20}) + sse("message_stop")


# ---------------------------------------------------------------- what customers see


def events(data: bytes) -> list[Object]:
    """Anthropic's events; each has its name in its line ``event``, without which SDKs pass over it."""
    found = []
    for event in data.decode().split("\n\n")[:-1]:
        name, payload = event.split("\n")
        found.append(json.loads(payload.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def message(data: bytes) -> Object:
    """Anthropic's message as an SDK puts it together; fails where an SDK would."""
    made: Object = {}
    buffers: dict[int, str] = {}
    for event in events(data):
        kind = event["type"]
        if kind == "message_start":
            assert not made
            made = event["message"]
        elif kind == "content_block_start":
            assert event["index"] == len(made["content"])
            made["content"].append(event["content_block"])
        elif kind == "content_block_delta":
            _add(made["content"][event["index"]], event["delta"], buffers, event["index"])
        elif kind == "message_delta":
            made |= event["delta"]
            made["usage"] |= event["usage"]
    for index, buffer in buffers.items():
        made["content"][index]["input"] = json.loads(buffer)
    started = [event["index"] for event in events(data) if event["type"] == "content_block_start"]
    stopped = [event["index"] for event in events(data) if event["type"] == "content_block_stop"]
    assert sorted(stopped) == started
    assert events(data)[-1]["type"] == "message_stop"
    return made


def _add(into: Object, delta: Object, buffers: dict[int, str], index: int) -> None:
    kind = delta["type"]
    if kind == "input_json_delta":
        assert into["type"] == "tool_use"
        buffers[index] = buffers.get(index, "") + delta["partial_json"]
    else:
        name = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}[kind]
        assert into["type"] == {"text": "text"}.get(name, "thinking")
        into[name] += delta[name]


def completion(data: bytes) -> Object:
    """OpenAI's message as an SDK puts it together, with ``finish`` and ``usage``."""
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    made: Object = {"content": "", "calls": {}, "thoughts": "", "details": [], "finish": None, "usage": None}
    for line in lines[:-1]:
        chunk = json.loads(line)
        assert (chunk["model"], chunk["object"]) == ("mine", "chat.completion.chunk")
        made["usage"] = chunk.get("usage") or made["usage"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            made["content"] += delta.get("content") or ""
            made["thoughts"] += delta.get("reasoning_content") or ""
            made["details"] += delta.get("reasoning_details") or []
            made["finish"] = choice["finish_reason"] or made["finish"]
            for call in delta.get("tool_calls") or []:
                known = made["calls"].setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
                known["id"] += call.get("id") or ""
                known["name"] += call["function"].get("name") or ""
                known["arguments"] += call["function"].get("arguments") or ""
    return made


def to_anthropic(*parts: bytes) -> Object:
    return message(whole("openai", "anthropic", b"".join(parts)))


def to_openai(*parts: bytes) -> Object:
    return completion(whole("anthropic", "openai", b"".join((START, *parts))))


# ---------------------------------------------------------------- the bugs


def test_02_arguments_that_come_with_the_begin_of_a_call() -> None:
    given = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "sky"}}
    made = to_openai(block(0, given), ended("tool_use"))
    assert made["calls"] == {0: {"id": "t1", "name": "look", "arguments": '{"at":"sky"}'}}
    made = to_anthropic(
        chunk({"tool_calls": [tool(0, '{"at":"sky"}', "t1", "look")]}, "tool_calls"), OPENAI_END
    )
    assert made["content"] == [given]


def test_03_an_empty_list_of_tool_calls_hides_no_text() -> None:
    made = to_anthropic(
        chunk({"content": "Hello", "tool_calls": []}), chunk({"tool_calls": []}, "stop"), OPENAI_END
    )
    assert made["content"] == [{"type": "text", "text": "Hello"}]
    assert made["stop_reason"] == "end_turn"


def test_04_the_first_delta_is_not_lost() -> None:
    made = to_anthropic(
        chunk({"role": "assistant", "content": "One"}), chunk({"content": " two"}, "stop"), OPENAI_END
    )
    assert made["content"] == [{"type": "text", "text": "One two"}]
    begun = block(0, {"type": "text", "text": "One"}, {"type": "text_delta", "text": " two"})
    assert to_openai(begun, ended())["content"] == "One two"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_05_thoughts_are_no_text_and_a_message_starts_once(name: str) -> None:
    head = chunk({"role": "assistant", "content": None})
    made = to_anthropic(
        head,
        head,
        chunk({name: "Hm, "}),
        chunk({name: "yes."}),
        chunk({"content": "Yes"}, "stop"),
        OPENAI_END,
    )
    assert made["content"] == [
        {"type": "thinking", "thinking": "Hm, yes.", "signature": ""},
        {"type": "text", "text": "Yes"},
    ]
    thinking = block(
        0, {"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": "Hm"}
    )
    made = to_openai(thinking, text_block(1, "Yes"), ended())
    assert (made["thoughts"], made["content"]) == ("Hm", "Yes")


def test_06_text_and_a_tool_in_one_chunk() -> None:
    both = chunk({"content": "Look:", "tool_calls": [tool(0, "{}", "t1", "look")]}, "tool_calls")
    made = to_anthropic(both, OPENAI_END)
    assert [part["type"] for part in made["content"]] == ["text", "tool_use"]
    assert made["stop_reason"] == "tool_use"
    made = to_openai(text_block(0, "Look:"), call_block(1, "t1", "look", "{}"), ended("tool_use"))
    assert (made["content"], made["calls"][0]["name"], made["finish"]) == ("Look:", "look", "tool_calls")


def test_07_parallel_calls_keep_their_numbers() -> None:
    made = to_openai(
        call_block(0, "t1", "look", '{"at":', '"sky"}'),
        call_block(1, "t2", "listen", "{}"),
        ended("tool_use"),
    )
    assert made["calls"] == {
        0: {"id": "t1", "name": "look", "arguments": '{"at":"sky"}'},
        1: {"id": "t2", "name": "listen", "arguments": "{}"},
    }


@pytest.mark.parametrize("indices", [(0, 1), (0, 0), (1, 2)], ids=str)
def test_07_parallel_calls_of_providers_that_number_them_all_alike(indices: tuple[int, int]) -> None:
    first, second = indices
    made = to_anthropic(
        chunk({"tool_calls": [tool(first, "", "t1", "look")]}),
        chunk({"tool_calls": [tool(first, '{"at":"sky"}')]}),
        chunk({"tool_calls": [tool(second, "", "t2", "listen")]}),
        chunk({"tool_calls": [tool(second, '{"to":')]}),
        chunk({"tool_calls": [tool(second, '"rain"}')]}, "tool_calls"),
        OPENAI_END,
    )
    assert [(part["id"], part["input"]) for part in made["content"]] == [
        ("t1", {"at": "sky"}),
        ("t2", {"to": "rain"}),
    ]


def test_04_names_that_come_later_than_ids_and_calls_without_arguments() -> None:
    made = to_anthropic(
        chunk({"tool_calls": [{"index": 0, "id": "t1"}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"name": "look"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"at":"sky"}'}}]}),
        chunk({"tool_calls": [{"index": 1, "id": "t2", "function": {"name": "listen"}}]}, "tool_calls"),
        OPENAI_END,
    )
    assert [(part["id"], part["name"], part["input"]) for part in made["content"]] == [
        ("t1", "look", {"at": "sky"}),
        ("t2", "listen", {}),
    ]


def test_07_parallel_calls_whose_arguments_alternate() -> None:
    made = to_anthropic(
        chunk({"tool_calls": [tool(0, '{"at":', "t1", "look"), tool(1, '{"to":', "t2", "listen")]}),
        chunk({"tool_calls": [tool(0, '"sky"}')]}),
        chunk({"tool_calls": [tool(1, '"rain"}')]}, "tool_calls"),
        OPENAI_END,
    )
    assert [part["input"] for part in made["content"]] == [{"at": "sky"}, {"to": "rain"}]


def test_08_the_end_of_an_answer_with_calls_says_so() -> None:
    """Some providers end with "stop" though tools are to be called."""
    for reason in ("tool_calls", "stop", "function_call"):
        made = to_anthropic(
            chunk({"tool_calls": [tool(0, "{}", "t1", "look")]}), chunk({}, reason), OPENAI_END
        )
        assert made["stop_reason"] == "tool_use"
    assert to_openai(call_block(0, "t1", "look", "{}"), ended("tool_use"))["finish"] == "tool_calls"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *(("end_turn", "stop"), ("max_tokens", "length"), ("stop_sequence", "stop"), ("pause_turn", "stop")),
        *(("refusal", "content_filter"), ("model_context_window_exceeded", "length"), ("new", "stop")),
    ],
)
def test_08_every_end_has_its_name(theirs: str, ours: str) -> None:
    assert to_openai(text_block(0, "x"), ended(theirs))["finish"] == ours


@pytest.mark.parametrize(
    ("theirs", "ours"), [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal")]
)
def test_08_every_end_has_its_name_the_other_way(theirs: str, ours: str) -> None:
    assert to_anthropic(chunk({"content": "x"}), chunk({}, theirs), OPENAI_END)["stop_reason"] == ours


def test_08_a_refusal_is_no_ordinary_end() -> None:
    made = to_anthropic(chunk({"refusal": "No."}), chunk({}, "stop"), OPENAI_END)
    assert (made["content"], made["stop_reason"]) == ([{"type": "text", "text": "No."}], "refusal")


def test_09_signatures_of_calls_stay() -> None:
    """Gemini's, as its compatible API has them."""
    call = tool(0, "{}", "t1", "look") | {"extra_content": {"google": {"thought_signature": "sig"}}}
    decoder = FORMATS["openai"].decoder()
    decoded = decoder.feed(chunk({"tool_calls": [call]}))
    begun = next(event for event in decoded if hasattr(event, "index"))
    assert getattr(begun, "signature", None) == "sig"
    assert b'"thought_signature":"sig"' in FORMATS["openai"].encoder(SHOWN).write(begun)


def test_10_a_signature_without_thoughts_stays() -> None:
    empty = {"type": "thinking", "thinking": "", "signature": ""}
    signed = block(0, empty, {"type": "signature_delta", "signature": "sig"})
    hidden = block(1, {"type": "redacted_thinking", "data": "secret"})
    made = to_openai(signed, hidden, text_block(2, "Yes"), ended())
    assert made["details"] == [
        {"type": "reasoning.text", "text": "", "signature": "sig", "index": 0},
        {"type": "reasoning.encrypted", "data": "secret", "index": 1},
    ]
    details = [chunk({"reasoning_details": [detail]}) for detail in made["details"]]
    back = to_anthropic(*details, chunk({"content": "Yes"}, "stop"), OPENAI_END)
    assert back["content"][:2] == [
        empty | {"signature": "sig"},
        {"type": "redacted_thinking", "data": "secret"},
    ]


def test_14_usage_is_told_once_and_the_cache_where_the_format_has_it() -> None:
    made = to_anthropic(chunk({"content": "x"}), chunk({}, "stop"), OPENAI_END)
    usage = made["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (20, 80, 20)
    twice = sse("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 9})
    made = to_openai(text_block(0, "x"), twice, ended())
    assert made["usage"]["prompt_tokens"] == 100
    assert made["usage"]["prompt_tokens_details"]["cached_tokens"] == 80
    assert (made["usage"]["completion_tokens"], made["usage"]["total_tokens"]) == (20, 120)


def test_18_pings_pass() -> None:
    data = START + text_block(0, "x") + sse("ping") + text_block(1, "y")
    assert b": ping\n\n" in translated("anthropic", "openai").feed(data)
    data = chunk({"content": "x"}) + b": keep-alive\n\n" + chunk({"content": "y"})
    assert b'event: ping\ndata: {"type": "ping"}\n\n' in translated("openai", "anthropic").feed(data)


# ---------------------------------------------------------------- errors, cuts, what cannot be said


def test_an_error_in_a_stream_ends_it_in_the_customers_format() -> None:
    broken = chunk({"content": "x"}) + b'data: {"error": {"message": "too busy", "type": "overloaded"}}\n\n'
    last = events(whole("openai", "anthropic", broken))[-1]
    assert last == {"type": "error", "error": {"type": "overloaded", "message": "too busy"}}
    error = sse("error", error={"type": "overloaded_error", "message": "too busy"})
    data = whole("anthropic", "openai", START + text_block(0, "x") + error)
    assert json.loads(data.split(b"data: ")[-1])["error"]["message"] == "too busy"
    assert b"[DONE]" not in data


def test_a_block_that_cannot_be_said_breaks_the_answer_and_is_not_dropped() -> None:
    meter = translated("anthropic", "openai")
    served = block(1, {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}})
    with pytest.raises(BadAnswer, match="server_tool_use"):
        meter.feed(START + text_block(0, "x") + served)


@given(st.lists(st.integers(0, 3000), max_size=8))
def test_it_does_not_matter_how_a_stream_is_cut(cuts: list[int]) -> None:
    openai = b"".join(
        (
            chunk({"role": "assistant", "content": ""}),
            chunk({"reasoning_content": "Hm ünd 🙂"}),
            chunk({"content": "Grüße"}),
            chunk({"tool_calls": [tool(0, '{"a":"ü"}', "t1", "look")]}, "tool_calls"),
            OPENAI_END,
        )
    )
    assert whole("openai", "anthropic", openai, cuts) == whole("openai", "anthropic", openai)
    anthropic = START + text_block(0, "Grüße", " 🙂") + call_block(1, "t1", "look", "{}") + ended("tool_use")
    assert whole("anthropic", "openai", anthropic, cuts) == whole("anthropic", "openai", anthropic)


def test_the_end_waits_for_the_payment() -> None:
    meter = translated("openai", "anthropic")
    passed = meter.feed(chunk({"content": "x"}) + chunk({}, "stop") + OPENAI_END)
    assert b"message_delta" not in passed
    assert b"message_stop" not in passed
    assert [event["type"] for event in events(meter.tail())] == [
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    meter = translated("anthropic", "openai")
    assert b'finish_reason":"stop' not in meter.feed(START + text_block(0, "x") + ended())
    assert meter.tail().endswith(b"data: [DONE]\n\n")
