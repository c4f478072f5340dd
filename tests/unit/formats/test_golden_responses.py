"""OpenAI's Responses from and to the other formats: the bugs that gateways have again and again, each by what
the customer or the provider gets to see. They are numbered as those of test_golden_streams.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats.answer import BadAnswer
from relay.formats.conversation import Untranslatable
from relay.formats.format import MeterOptions, Shown
from relay.formats.registry import FORMATS
from relay.formats.translated_stream import TranslatedMeter
from relay.providers.profiles import Profile
from tests.unit.formats.test_golden_streams import (
    OPENAI_END,
    OPENAI_USAGE,
    START,
    block,
    call_block,
    chunk,
    completion,
    ended,
    message,
    sse,
    text_block,
    tool,
)

Object = dict[str, Any]
NAME = "openai-responses"
OPENAI = Profile("max_completion_tokens", "pass", extensions=False)
COMPATIBLE = Profile("max_tokens", "pass", extensions=True)
USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 80},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 7},
    "total_tokens": 120,
}
PATCH = {
    "type": "custom",
    "name": "patch",
    "description": "Edit a file.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: WORD"},
}
FAR = {
    "type": "namespace",
    "name": "weather",
    "description": "About weather.",
    "tools": [{"type": "function", "name": "look", "parameters": {"type": "object"}}],
}


def translated(theirs: str, ours: str, tools: list[Object] | None = None) -> TranslatedMeter:
    shown = Shown("mine", include_usage=True, created=1, repeated={"tools": tools} if tools else {})
    options = MeterOptions(
        keep_usage_chunk=True, choices=1, max_event_bytes=1 << 20, model=None, redact=lambda text: text
    )
    provider = FORMATS[theirs]
    return TranslatedMeter(provider.meter(options), provider.decoder(), FORMATS[ours].encoder(shown))


def whole(theirs: str, ours: str, data: bytes, tools: list[Object] | None = None) -> bytes:
    """All that a customer gets of a provider's stream."""
    meter = translated(theirs, ours, tools)
    passed = meter.feed(data)
    meter.end()
    return passed + meter.tail()


# ---------------------------------------------------------------- what providers send


def item(index: int, kind: str, *deltas: tuple[str, str], **fields: Any) -> bytes:
    """An item with its deltas: (event, text)."""
    made = {"id": f"{kind}_{index}", "type": kind} | fields
    begun = made | {name: [] for name in ("content", "summary") if name in fields}
    begun |= {"arguments": ""} if kind == "function_call" else {}
    said = b"".join(
        sse(f"response.{event}.delta", output_index=index, item_id=made["id"], delta=text)
        for event, text in deltas
    )
    added = sse("response.output_item.added", output_index=index, item=begun)
    return added + said + sse("response.output_item.done", output_index=index, item=made)


def spoken(index: int, *texts: str) -> bytes:
    content = [{"type": "output_text", "text": "".join(texts), "annotations": []}]
    deltas = (("output_text", text) for text in texts)
    return item(index, "message", *deltas, role="assistant", content=content)


def called(index: int, call: str, name: str, *pieces: str, arguments: str | None = None) -> bytes:
    given = arguments if arguments is not None else "".join(pieces)
    deltas = (("function_call_arguments", piece) for piece in pieces)
    return item(index, "function_call", *deltas, call_id=call, name=name, arguments=given)


def thought(index: int, *texts: str, sealed: str | None = None) -> bytes:
    summary = [{"type": "summary_text", "text": "".join(texts)}] if texts else []
    deltas = (("reasoning_summary_text", text) for text in texts)
    more = {} if sealed is None else {"encrypted_content": sealed}
    return item(index, "reasoning", *deltas, summary=summary, **more)


def response(*parts: bytes, status: str = "completed", reason: str | None = None, **more: Any) -> bytes:
    head: Object = {"id": "resp_1", "object": "response", "model": "theirs", "output": [], "error": None}
    details = {"reason": reason} if reason else None
    last = head | {"status": status, "usage": USAGE, "incomplete_details": details} | more
    begun = sse("response.created", response=head | {"status": "in_progress"})
    return begun + b"".join(parts) + sse(f"response.{status}", response=last)


# ---------------------------------------------------------------- what customers see


def answer(data: bytes) -> Object:
    """The response as an SDK puts it together of events; fails where an SDK would, or the end differs."""
    items: list[Object] = []
    events = []
    for number, event in enumerate(data.decode().split("\n\n")[:-1]):
        name, payload = event.split("\n")
        events.append(json.loads(payload.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        assert events[-1]["sequence_number"] == number
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    for event in events[2:-1]:
        kind, index = event["type"], event["output_index"]
        if kind == "response.output_item.added":
            assert index == len(items)
            items.append(event["item"])
            continue
        given = items[index]
        assert event.get("item_id", given["id"]) == given["id"]
        if kind == "response.output_item.done":
            differing: Object = {"status": None, "encrypted_content": None}
            assert given | differing == event["item"] | differing
            items[index] = event["item"]
        else:
            _add(given, event)
    last: Object = events[-1]["response"]
    assert events[-1]["type"] == f"response.{last['status']}"
    assert last["output"] == items
    assert (last["model"], last["id"][:5], last["store"]) == ("mine", "resp_", False)
    return last


# By an event's name: the list of parts that it adds to, and the text of the item that it continues.
ADDS = {"content_part.added": "content", "reasoning_summary_part.added": "summary"}
CONTINUES = {
    "output_text.delta": ("content", "text"),
    "refusal.delta": ("content", "refusal"),
    "reasoning_summary_text.delta": ("summary", "text"),
    "function_call_arguments.delta": (None, "arguments"),
    "custom_tool_call_input.delta": (None, "input"),
}


def _add(into: Object, event: Object) -> None:
    kind = event["type"].removeprefix("response.")
    number = event.get("content_index", event.get("summary_index", 0))
    if kind in ADDS:
        assert number == len(into[ADDS[kind]])
        into[ADDS[kind]].append(event["part"])
    elif kind in CONTINUES:
        parts, field = CONTINUES[kind]
        (into if parts is None else into[parts][number])[field] += event["delta"]
    else:
        assert kind.endswith(".done")


def from_chat(*parts: bytes, tools: list[Object] | None = None) -> Object:
    return answer(whole("openai", NAME, b"".join(parts), tools))


def from_anthropic(*parts: bytes) -> Object:
    return answer(whole("anthropic", NAME, b"".join((START, *parts))))


def to_chat(*parts: bytes, **ends: Any) -> Object:
    return completion(whole(NAME, "openai", response(*parts, **ends)))


def to_anthropic(*parts: bytes, **ends: Any) -> Object:
    return message(whole(NAME, "anthropic", response(*parts, **ends)))


def brief(made: Object) -> list[tuple[str, Any]]:
    """(type, what it says) of each item."""
    said: list[tuple[str, Any]] = []
    for one in made["output"]:
        if one["type"] == "message":
            said += [(part["type"], part.get("text", part.get("refusal"))) for part in one["content"]]
        elif one["type"] == "reasoning":
            said.append(("reasoning", "".join(part["text"] for part in one["summary"])))
        else:
            said.append((one["name"], one.get("arguments", one.get("input"))))
    return said


# ---------------------------------------------------------------- the bugs, in every direction


def test_02_arguments_that_come_with_the_end_of_a_call_alone() -> None:
    only_done = called(0, "t1", "look", arguments='{"at":"sky"}')
    assert to_chat(only_done)["calls"] == {0: {"id": "t1", "name": "look", "arguments": '{"at":"sky"}'}}
    assert to_anthropic(only_done)["content"] == [
        {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "sky"}}
    ]
    given = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "sky"}}
    assert brief(from_anthropic(block(0, given), ended("tool_use"))) == [("look", '{"at":"sky"}')]


def test_02_an_answer_that_comes_with_the_end_alone() -> None:
    output = [
        {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]},
        {"type": "function_call", "call_id": "t1", "name": "look", "arguments": "{}"},
    ]
    made = to_chat(output=output)
    assert (made["content"], made["calls"][0]["name"], made["finish"]) == ("Hello", "look", "tool_calls")


def test_03_an_empty_list_of_tool_calls_hides_no_text() -> None:
    made = from_chat(
        chunk({"content": "Hello", "tool_calls": []}), chunk({"tool_calls": []}, "stop"), OPENAI_END
    )
    assert brief(made) == [("output_text", "Hello")]


def test_04_the_first_delta_is_not_lost() -> None:
    made = from_chat(
        chunk({"role": "assistant", "content": "One"}), chunk({"content": " two"}, "stop"), OPENAI_END
    )
    assert brief(made) == [("output_text", "One two")]
    begun = block(0, {"type": "text", "text": "One"}, {"type": "text_delta", "text": " two"})
    assert brief(from_anthropic(begun, ended())) == [("output_text", "One two")]
    assert to_chat(spoken(0, "One", " two"))["content"] == "One two"
    assert to_anthropic(spoken(0, "One", " two"))["content"] == [{"type": "text", "text": "One two"}]


def test_05_thoughts_are_no_text() -> None:
    made = from_chat(chunk({"reasoning_content": "Hm"}), chunk({"content": "Yes"}, "stop"), OPENAI_END)
    assert brief(made) == [("reasoning", "Hm"), ("output_text", "Yes")]
    parts = thought(0, "H", "m", sealed="sig"), spoken(1, "Yes")
    back = to_chat(*parts)
    assert (back["thoughts"], back["content"]) == ("Hm", "Yes")
    assert to_anthropic(*parts)["content"] == [
        {"type": "thinking", "thinking": "Hm", "signature": "sig"},
        {"type": "text", "text": "Yes"},
    ]


def test_06_text_and_a_tool_in_one_chunk() -> None:
    both = chunk({"content": "Look:", "tool_calls": [tool(0, "{}", "t1", "look")]}, "tool_calls")
    assert brief(from_chat(both, OPENAI_END)) == [("output_text", "Look:"), ("look", "{}")]
    made = to_anthropic(spoken(0, "Look:"), called(1, "t1", "look", "{}"))
    assert [part["type"] for part in made["content"]] == ["text", "tool_use"]
    assert made["stop_reason"] == "tool_use"


@pytest.mark.parametrize("indices", [(0, 1), (0, 0)], ids=str)
def test_07_parallel_calls_keep_their_numbers(indices: tuple[int, int]) -> None:
    first, second = indices
    made = from_chat(
        chunk({"tool_calls": [tool(first, '{"at":', "t1", "look")]}),
        chunk({"tool_calls": [tool(first, '"sky"}')]}),
        chunk({"tool_calls": [tool(second, '{"to":"rain"}', "t2", "listen")]}, "tool_calls"),
        OPENAI_END,
    )
    assert brief(made) == [("look", '{"at":"sky"}'), ("listen", '{"to":"rain"}')]
    assert [one["call_id"] for one in made["output"]] == ["t1", "t2"]
    made = to_chat(called(0, "t1", "look", '{"at":', '"sky"}'), called(1, "t2", "listen", "{}"))
    assert [made["calls"][index]["arguments"] for index in (0, 1)] == ['{"at":"sky"}', "{}"]


def test_07_parallel_calls_whose_arguments_alternate() -> None:
    made = from_chat(
        chunk({"tool_calls": [tool(0, '{"at":', "t1", "look"), tool(1, '{"to":', "t2", "listen")]}),
        chunk({"tool_calls": [tool(0, '"sky"}')]}),
        chunk({"tool_calls": [tool(1, '"rain"}')]}, "tool_calls"),
        OPENAI_END,
    )
    assert brief(made) == [("look", '{"at":"sky"}'), ("listen", '{"to":"rain"}')]


def test_07_calls_without_arguments_have_an_object() -> None:
    made = from_anthropic(call_block(0, "t1", "look"), ended("tool_use"))
    assert brief(made) == [("look", "{}")]
    assert to_chat(called(0, "t1", "look"))["finish"] == "tool_calls"


@pytest.mark.parametrize(
    ("theirs", "status", "reason"),
    [
        *(("stop", "completed", None), ("length", "incomplete", "max_output_tokens")),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_08_every_end_has_its_name(theirs: str, status: str, reason: str | None) -> None:
    made = from_chat(chunk({"content": "x"}), chunk({}, theirs), OPENAI_END)
    assert made["status"] == status
    assert made["incomplete_details"] == (reason and {"reason": reason})
    ends = {"status": status, "reason": reason}
    assert to_chat(spoken(0, "x"), **ends)["finish"] == theirs
    anthropics = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}[theirs]
    assert to_anthropic(spoken(0, "x"), **ends)["stop_reason"] == anthropics


def test_08_a_refusal_is_no_ordinary_end() -> None:
    made = from_chat(chunk({"refusal": "N"}), chunk({"refusal": "o."}), chunk({}, "stop"), OPENAI_END)
    assert (brief(made), made["status"]) == ([("refusal", "No.")], "completed")
    content = [{"type": "refusal", "refusal": "No."}]
    refused = item(0, "message", ("refusal", "No."), role="assistant", content=content)
    assert to_chat(refused)["finish"] == "content_filter"
    assert to_anthropic(refused)["stop_reason"] == "refusal"


def test_10_signatures_and_hidden_thoughts_come_back_as_they_were() -> None:
    empty = {"type": "thinking", "thinking": "", "signature": ""}
    signed = block(0, empty, {"type": "signature_delta", "signature": "sig"})
    hidden = block(1, {"type": "redacted_thinking", "data": "secret"})
    said = block(
        2,
        empty,
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "signature_delta", "signature": "sag"},
    )
    made = from_anthropic(signed, hidden, said, text_block(3, "Yes"), ended())
    assert [one.get("encrypted_content") for one in made["output"]] == ["sig", "secret", "sag", None]
    body = {"model": "m", "input": made["output"]}
    conversation = FORMATS[NAME].read_request(json.dumps(body).encode(), drop_unknown=False)
    back = json.loads(FORMATS["anthropic"].write_request(conversation, "m", 9, COMPATIBLE).body)
    assert back["messages"][0]["content"] == [
        empty | {"signature": "sig"},
        {"type": "redacted_thinking", "data": "secret"},
        {"type": "thinking", "thinking": "Hm", "signature": "sag"},
        {"type": "text", "text": "Yes"},
    ]


def test_14_usage_is_told_once_and_the_cache_inside_the_prompt() -> None:
    made = from_anthropic(text_block(0, "x"), ended())
    assert made["usage"]["input_tokens"] == 100
    assert made["usage"]["input_tokens_details"]["cached_tokens"] == 80
    assert (made["usage"]["output_tokens"], made["usage"]["total_tokens"]) == (20, 120)
    assert from_chat(chunk({"content": "x"}), chunk({}, "stop"), OPENAI_END)["usage"] == USAGE | {
        "input_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 0}
    }
    usage = to_anthropic(spoken(0, "x"))["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (20, 80, 20)
    assert to_chat(spoken(0, "x"))["usage"] == OPENAI_USAGE


def test_18_pings_pass() -> None:
    data = START + text_block(0, "x") + sse("ping") + text_block(1, "y")
    assert b": ping\n\n" in translated("anthropic", NAME).feed(data)
    data = response(spoken(0, "x"), b": keep-alive\n\n", sse("keepalive"), spoken(1, "y"))
    assert translated(NAME, "anthropic").feed(data).count(b"event: ping") == 2


# ---------------------------------------------------------------- errors and cuts


def test_an_error_in_a_stream_ends_it_in_the_customers_format() -> None:
    broken = chunk({"content": "x"}) + b'data: {"error": {"message": "too busy", "type": "overloaded"}}\n\n'
    first, last = whole("openai", NAME, broken).decode().split("\n\n")[-3:-1]
    assert first.startswith("event: error\n")
    assert json.loads(first.split("data: ")[1])["message"] == "too busy"
    # zyycn/codex-proxy-rs#90: Codex passes over the first one.
    assert last.startswith("event: response.failed\n")
    assert json.loads(last.split("data: ")[1])["response"]["error"]["message"] == "too busy"
    failed = sse("response.failed", response={"error": {"code": "server_error", "message": "too busy"}})
    begun = sse("response.created", response={"id": "resp_1"})
    for error in (failed, sse("error", code="server_error", message="too busy", param=None)):
        data = whole(NAME, "openai", begun + spoken(0, "x") + error)
        assert json.loads(data.split(b"data: ")[-1])["error"]["message"] == "too busy"
        assert b"message_stop" not in whole(NAME, "anthropic", begun + spoken(0, "x") + error)


def test_an_item_that_cannot_be_said_breaks_the_answer_and_is_not_dropped() -> None:
    with pytest.raises(BadAnswer, match="web_search_call"):
        whole(NAME, "openai", response(spoken(0, "x"), item(1, "web_search_call")))


@given(st.lists(st.integers(0, 9000), max_size=8), st.sampled_from(["openai", "anthropic"]))
def test_it_does_not_matter_how_a_stream_is_cut(cuts: list[int], ours: str) -> None:
    data = response(
        thought(0, "Hm", sealed="s"), spoken(1, "Grüße", " 🙂"), called(2, "t1", "look", '{"a":', "1}")
    )
    meter = translated(NAME, ours)
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    passed = b"".join(meter.feed(data[begin:end]) for begin, end in pairwise(edges))
    meter.end()
    assert passed + meter.tail() == whole(NAME, ours, data)


def test_whole_answers_say_what_streams_say() -> None:
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}], "encrypted_content": "s"},
        {"type": "message", "content": [{"type": "output_text", "text": "Yes"}]},
        {"type": "function_call", "call_id": "t1", "name": "look", "arguments": "{}"},
    ]
    body = {"id": "resp_1", "status": "completed", "output": output, "usage": USAGE}
    read = FORMATS[NAME].read_answer(json.dumps(body).encode())
    written = json.loads(FORMATS[NAME].write_answer(read, Shown("mine", include_usage=True, created=1)))
    stream = START + block(
        0,
        {"type": "thinking", "thinking": ""},
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "signature_delta", "signature": "s"},
    )
    stream += text_block(1, "Yes") + call_block(2, "t1", "look", "{}") + ended("tool_use")
    streamed = answer(whole("anthropic", NAME, stream))
    assert brief(written) == brief(streamed)
    assert {**written, "output": 0, "usage": 0, "id": 0} == {**streamed, "output": 0, "usage": 0, "id": 0}


# ---------------------------------------------------------------- requests


def asked(theirs: str, profile: Profile = COMPATIBLE, **fields: Any) -> Object:
    """What a provider gets of a customer's request."""
    body = {"model": "mine", "input": "Hi?", "max_output_tokens": 50} | fields
    conversation = FORMATS[NAME].read_request(json.dumps(body).encode(), drop_unknown=False)
    written: Object = json.loads(FORMATS[theirs].write_request(conversation, "theirs", 9, profile).body)
    return written


def told(ours: str, profile: Profile = OPENAI, **fields: Any) -> Object:
    """What a provider of this format gets of a request in another one."""
    body = {"model": "mine", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi?"}]} | fields
    conversation = FORMATS[ours].read_request(json.dumps(body).encode(), drop_unknown=False)
    written: Object = json.loads(FORMATS[NAME].write_request(conversation, "theirs", 9, profile).body)
    return written


def test_custom_tools_and_namespaces_are_functions_for_others_and_come_back_as_they_were() -> None:
    """Codex has both."""
    there = asked("openai", tools=[PATCH, FAR])
    patch, far = (tool["function"] for tool in there["tools"])
    assert (patch["name"], far["name"]) == ("patch", "weather__look")
    assert patch["parameters"]["properties"] == {"input": {"type": "string"}}
    assert "start: WORD" in patch["description"]
    made = from_chat(
        chunk({"tool_calls": [tool(0, '{"input":"+ li', "t1", "patch")]}),
        chunk({"tool_calls": [tool(0, 'ne\\n"}'), tool(1, "{}", "t2", "weather__look")]}, "tool_calls"),
        OPENAI_END,
        tools=[PATCH, FAR],
    )
    first, second = made["output"]
    assert (first["type"], first["name"], first["input"]) == ("custom_tool_call", "patch", "+ line\n")
    assert (second["type"], second["namespace"], second["name"]) == ("function_call", "weather", "look")
    results = [
        {"type": "custom_tool_call_output", "call_id": "t1", "output": "Done."},
        {"type": "function_call_output", "call_id": "t2", "output": "It rains."},
    ]
    again = asked("openai", tools=[PATCH, FAR], input=[first, second, *results])
    calls = again["messages"][0]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"input": "+ line\n"}, {}]
    assert [call["function"]["name"] for call in calls] == ["patch", "weather__look"]
    assert [one["content"] for one in again["messages"][1:]] == ["Done.", "It rains."]


def test_11_images_of_a_tool_stay_in_its_result() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "aa"}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": source}]}
    use = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    turns = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    (call, output) = told("anthropic", messages=turns)["input"]
    assert output["output"] == [{"type": "input_image", "image_url": "data:image/png;base64,aa"}]
    assert call["call_id"] == output["call_id"] == "t"
    assert asked("anthropic", input=[call, output])["messages"][1]["content"] == [result]


def test_12_a_failed_tool_stays_failed() -> None:
    failed = {"type": "tool_result", "tool_use_id": "t", "content": "no such file", "is_error": True}
    (output,) = told("anthropic", messages=[{"role": "user", "content": [failed]}])["input"]
    assert output["output"] == "[tool error]\nno such file"
    assert asked("anthropic", input=[output])["messages"][0]["content"] == [failed]


def test_15_functions_are_strict_only_where_that_was_said() -> None:
    """This format's default is the other way round than chat's."""
    schema = {"type": "object", "properties": {"a": {"not": {}}}, "additionalProperties": False}
    for strict in (True, None):
        function = {"name": "look", "parameters": schema} | ({"strict": True} if strict else {})
        (tool,) = told("openai", tools=[{"type": "function", "function": function}])["tools"]
        assert tool == {"type": "function", "name": "look", "parameters": schema, "strict": bool(strict)}
        (back,) = asked("openai", tools=[tool])["tools"]
        assert back["function"] == function


def test_16_instructions_and_system_items_stay_where_they_were() -> None:
    items = [
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Well?"},
        {"role": "developer", "content": "Be brief."},
    ]
    there = asked("anthropic", input=items, instructions="You help.")
    assert there["system"] == "You help."
    assert [turn["role"] for turn in there["messages"]] == ["user", "assistant", "user", "system"]
    back = told("anthropic", messages=there["messages"], system=there["system"])
    assert [one["role"] for one in back["input"]] == ["system", "user", "assistant", "user", "system"]


def test_a_prompt_cache_key_marks_the_prompt_where_that_is_needed() -> None:
    assert asked("anthropic", prompt_cache_key="k")["cache_control"] == {"type": "ephemeral"}
    assert "cache_control" not in asked("anthropic")


def test_nothing_is_kept_at_the_provider() -> None:
    written = told("openai", reasoning_effort="high")
    assert (written["store"], written["max_output_tokens"]) == (False, 50)
    assert written["include"] == ["reasoning.encrypted_content"]


def test_long_names_of_calls_are_shortened_alike() -> None:
    name = "call_" + "x" * 100
    function = {"id": name, "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns = [
        {"role": "assistant", "tool_calls": [function]},
        {"role": "tool", "tool_call_id": name, "content": "x"},
    ]
    call, output = told("openai", messages=turns)["input"]
    assert call["call_id"] == output["call_id"]
    assert len(call["call_id"]) <= 64


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        *(({"truncation": "auto"}, "truncation"), ({"text": {"verbosity": "low"}}, "text.verbosity")),
        *(({"top_logprobs": 3}, "top_logprobs"), ({"new": 1}, "new")),
        ({"include": ["message.output_text.logprobs"]}, "include[0]"),
        ({"tools": [{"type": "local_shell"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"input": [{"type": "local_shell_call", "call_id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "reasoning", "summary": [{"text": "Hm"}]}]}, "input[0]"),
        ({"tools": [FAR | {"name": "w" * 60}]}, "tools[0].tools[0].name"),
    ],
)
def test_what_anthropics_format_cannot_say_is_refused_by_name(fields: Object, place: str) -> None:
    with pytest.raises(Untranslatable) as caught:
        asked("anthropic", **fields)
    assert caught.value.place == place
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("ours", "fields", "place"),
    [
        *(("openai", {"stop": ["x"]}, "stop"), ("openai", {"seed": 1}, "seed"), ("openai", {"n": 2}, "n")),
        *(("openai", {"logprobs": True}, "logprobs"), ("openai", {"max_tokens": 3}, "max_tokens")),
        ("anthropic", {"stop_sequences": ["x"]}, "stop_sequences"),
        ("openai", {"messages": [{"role": "user", "content": "x", "name": "ada"}]}, "messages[0].name"),
    ],
)
def test_what_responses_cannot_say_is_refused_by_its_own_name(ours: str, fields: Object, place: str) -> None:
    with pytest.raises(Untranslatable) as caught:
        told(ours, **fields)
    assert caught.value.place == place


def test_what_codex_sends_beside_the_answer_is_left_out_and_named() -> None:
    body = {
        "model": "m",
        "instructions": "You code.",
        "input": [{"type": "message", "role": "assistant", "phase": "commentary", "content": "Hm."}],
        "tools": [PATCH],
        "reasoning": {"effort": "medium", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "text": {"verbosity": "medium"},
        "store": False,
        "stream": True,
        "prompt_cache_key": "k",
        "parallel_tool_calls": True,
        "client_metadata": {"x": "y"},
    }
    conversation = FORMATS[NAME].read_request(json.dumps(body).encode(), drop_unknown=False)
    written = FORMATS["anthropic"].write_request(conversation, "theirs", 9, COMPATIBLE)
    assert sorted(written.left_out) == ["client_metadata", "phase", "reasoning.summary", "store"]
