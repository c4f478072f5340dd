"""Requests between OpenAI's and Anthropic's formats: the bugs that gateways have again and again, each by
what the provider gets to see. They are numbered as those of test_golden_streams.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.formats.conversation import Untranslatable
from relay.formats.registry import FORMATS
from relay.providers.profiles import Profile

COMPATIBLE = Profile("max_tokens", "pass", extensions=True)
OPENAI = Profile("max_completion_tokens", "pass", extensions=False)
Object = dict[str, Any]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "format": "date"}},
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"x": {"not": {}}},
}


def asked(ours: str, theirs: str, body: Object, profile: Profile = COMPATIBLE) -> Object:
    """What a provider gets."""
    document = json.dumps({"model": "mine", "max_tokens": 9} | body).encode()
    conversation = FORMATS[ours].read_request(document, drop_unknown=False)
    written: Object = json.loads(FORMATS[theirs].write_request(conversation, "theirs", 9, profile).body)
    assert written["model"] == "theirs"
    return written


def to_anthropic(*messages: Object, **fields: Any) -> Object:
    return asked("openai", "anthropic", {"messages": list(messages)} | fields)


def to_openai(*messages: Object, profile: Profile = COMPATIBLE, **fields: Any) -> Object:
    return asked("anthropic", "openai", {"messages": list(messages)} | fields, profile)


def user(*content: Object) -> Object:
    return {"role": "user", "content": list(content) or "Hi?"}


CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": name, "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
        for name in "tu"
    ],
}
USED = {
    "role": "assistant",
    "content": [{"type": "tool_use", "id": name, "name": "look", "input": {"a": 1}} for name in "tu"],
}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aa"}}


def test_07_results_of_parallel_calls_are_one_turn() -> None:
    results = [{"role": "tool", "tool_call_id": name, "content": f"for {name}"} for name in "tu"]
    written = to_anthropic(user(), CALLED, *results, user())
    assert [message["role"] for message in written["messages"]] == ["user", "assistant", "user"]
    blocks = written["messages"][2]["content"]
    assert [block["type"] for block in blocks] == ["tool_result", "tool_result", "text"]
    assert blocks[0] == {"type": "tool_result", "tool_use_id": "t", "content": "for t"}
    blocks = [{"type": "tool_result", "tool_use_id": name, "content": f"for {name}"} for name in "tu"]
    written = to_openai(user(), USED, user(*blocks, {"type": "text", "text": "Well?"}))
    assert [message["role"] for message in written["messages"]] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "user",
    ]
    assert written["messages"][2:4] == results
    assert written["messages"][4]["content"] == "Well?"


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "look!", '"x"'])
def test_07_arguments_that_are_no_object_stay(arguments: str) -> None:
    """A model wrote them, and the agent has told it so: the conversation must go on."""
    call = {
        "id": "functions.look:0",
        "type": "function",
        "function": {"name": "look", "arguments": arguments},
    }
    result = {"role": "tool", "tool_call_id": "functions.look:0", "content": "That is no JSON."}
    written = to_anthropic(user(), {"role": "assistant", "tool_calls": [call]}, result)
    (used,), (answered,) = (message["content"] for message in written["messages"][1:])
    assert used["input"] == {"INVALID_JSON": arguments}
    assert used["id"] == answered["tool_use_id"] == "functions_look_0"
    back = to_openai(*written["messages"])
    assert back["messages"][1]["tool_calls"][0]["function"]["arguments"] == arguments


def test_12_a_message_that_says_nothing_is_none() -> None:
    nothing = {"role": "assistant", "content": ""}
    assert to_anthropic(user(), nothing, user()) == to_anthropic(user(), user())
    assert to_openai(user(), nothing | {"content": []}, user()) == to_openai(user(), user())


def test_10_a_signature_without_thoughts_stays() -> None:
    thoughts = [
        {"type": "thinking", "thinking": "", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "text", "text": "Yes"},
    ]
    there = to_openai(user(), {"role": "assistant", "content": thoughts})
    back = to_anthropic(*there["messages"])
    assert back["messages"][1]["content"] == thoughts


def test_10_pieces_of_thoughts_that_a_client_kept_from_a_stream_are_one() -> None:
    pieces = [{"type": "reasoning.text", "text": piece, "index": 0} for piece in ("Hm", ", yes")]
    pieces.append({"type": "reasoning.text", "text": "", "signature": "s", "index": 0})
    said = {
        "role": "assistant",
        "content": "Yes",
        "reasoning_content": "Hm, yes",
        "reasoning_details": pieces,
    }
    assert to_anthropic(user(), said)["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "Hm, yes", "signature": "s"},
        {"type": "text", "text": "Yes"},
    ]


def test_10_thoughts_that_no_provider_can_check_are_refused_by_name() -> None:
    with pytest.raises(Untranslatable, match=r"messages\[1\].reasoning_content: thoughts without"):
        to_anthropic(user(), {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"})


def test_11_images_of_a_tool_follow_its_result() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "See:"}, IMAGE]}
    written = to_openai(user(), USED, user(result, {"type": "tool_result", "tool_use_id": "u"}))
    tools, following = written["messages"][2:4], written["messages"][4]
    assert [message["role"] for message in (*tools, following)] == ["tool", "tool", "user"]
    assert all(part["type"] == "text" for part in tools[0]["content"])
    assert following["content"][1]["image_url"]["url"] == "data:image/png;base64,aa"
    assert to_anthropic(*written["messages"])["messages"][2]["content"][0] == result


def test_12_a_result_without_text_is_a_result() -> None:
    written = to_openai(user(), USED, user(*({"type": "tool_result", "tool_use_id": name} for name in "tu")))
    assert written["messages"][2:] == [{"role": "tool", "tool_call_id": name, "content": ""} for name in "tu"]
    written = to_anthropic(user(), CALLED, {"role": "tool", "tool_call_id": "t", "content": ""})
    assert written["messages"][2]["content"] == [{"type": "tool_result", "tool_use_id": "t"}]


def test_12_a_failed_tool_stays_failed() -> None:
    failed = {"type": "tool_result", "tool_use_id": "t", "content": "no such file", "is_error": True}
    there = to_openai(user(), USED, user(failed))
    assert there["messages"][2]["content"] == "[tool error]\nno such file"
    assert to_anthropic(*there["messages"])["messages"][2]["content"] == [failed]


def test_13_marks_of_the_cache_stay_where_a_provider_takes_them() -> None:
    marks = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    text = {"type": "text", "text": "long"} | marks
    tool = {"name": "look", "input_schema": SCHEMA} | marks
    there = to_openai(user(text), system=[text], tools=[tool])
    assert [message["content"] for message in there["messages"]] == [[text], [text]]
    assert there["tools"][0]["cache_control"] == marks["cache_control"]
    back = to_anthropic(*there["messages"], tools=there["tools"])
    assert (back["system"], back["messages"][0]["content"], back["tools"]) == ([text], [text], [tool])
    assert "cache_control" not in json.dumps(
        to_openai(user(text), system=[text], tools=[tool], profile=OPENAI)
    )


def test_15_every_keyword_of_a_schema_stays() -> None:
    tool = {"name": "look", "description": "d", "input_schema": SCHEMA, "strict": True}
    there = to_openai(user(), tools=[tool])
    function = {"name": "look", "description": "d", "parameters": SCHEMA, "strict": True}
    assert there["tools"] == [{"type": "function", "function": function}]
    assert to_anthropic(user(), tools=there["tools"])["tools"] == [tool]
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    config = to_anthropic(user(), response_format=wanted)["output_config"]
    assert config == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert to_openai(user(), output_config=config)["response_format"]["json_schema"]["schema"] == SCHEMA


def test_a_mark_on_a_whole_message_is_one_on_its_last_part() -> None:
    """As the AI SDK, and opencode with it, writes marks for models that are Anthropic's by name."""
    mark: Object = {"cache_control": {"type": "ephemeral"}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    there = to_anthropic(
        {"role": "system", "content": "Be brief.", **mark},
        {"role": "user", "content": [{"type": "text", "text": "Hi?"}, image], **mark},
        {"role": "assistant", "content": "I look.", "tool_calls": [call], **mark},
        {"role": "tool", "tool_call_id": "c1", "content": "the sky", **mark},
        {"role": "assistant", "content": "", **mark},
        {
            "role": "user",
            "content": [{"type": "text", "text": "So?", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        }
        | mark,
    )
    assert there["system"] == [{"type": "text", "text": "Be brief.", **mark}]
    asked, called, answered = there["messages"]
    assert ["cache_control" in part for part in asked["content"]] == [False, True]
    assert ["cache_control" in part for part in called["content"]] == [False, True]
    assert answered["content"][0]["cache_control"] == mark["cache_control"]
    assert answered["content"][1]["cache_control"]["ttl"] == "1h"


def test_16_a_system_message_in_the_middle_stays_there() -> None:
    system = {"role": "system", "content": "Be brief."}
    first = {"role": "developer", "content": "You help."}
    there = to_anthropic(first, user(), {"role": "assistant", "content": "Yes"}, user(), system)
    assert there["system"] == "You help."
    assert [message["role"] for message in there["messages"]] == ["user", "assistant", "user", "system"]
    back = to_openai(*there["messages"], system=there["system"])
    assert [message["role"] for message in back["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "system",
    ]


@pytest.mark.parametrize(
    ("choice", "theirs"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "look"}}, {"type": "tool", "name": "look"}),
    ],
)
def test_choices_of_tools(choice: Any, theirs: Object) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    written = to_anthropic(user(), tools=tools, tool_choice=choice)
    assert written["tool_choice"] == theirs
    one = to_anthropic(user(), tools=tools, tool_choice=choice, parallel_tool_calls=False)["tool_choice"]
    assert one.get("disable_parallel_tool_use") is (None if choice == "none" else True)
    back = to_openai(user(), tools=written["tools"], tool_choice=theirs)
    assert back["tool_choice"] == choice


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        *(
            ({"seed": 1}, "seed"),
            ({"n": 2}, "n"),
            ({"logprobs": True}, "logprobs"),
            ({"verbosity": "low"}, "verbosity"),
        ),
        *(({"frequency_penalty": 0.1}, "frequency_penalty"), ({"temperature": 1.5}, "temperature")),
        *(({"reasoning_effort": "minimal"}, "reasoning_effort"), ({"functions": []}, "functions")),
        *(({"response_format": {"type": "json_object"}}, "response_format"), ({"new": 1}, "new")),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"messages": [{"role": "user", "content": "x", "name": "ada"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "assistant", "content": None, "audio": {"id": "a"}}]}, "messages[0].audio"),
    ],
)
def test_what_anthropics_format_cannot_say_is_refused_by_its_openai_name(fields: Object, place: str) -> None:
    with pytest.raises(Untranslatable) as caught:
        asked("openai", "anthropic", {"messages": [user()]} | fields)
    assert caught.value.place == place
    assert caught.value.remedy


@pytest.mark.parametrize(
    "field", [{"n": 1}, {"logprobs": False}, {"frequency_penalty": 0}, {"logit_bias": {}}]
)
def test_a_default_says_nothing(field: Object) -> None:
    assert to_anthropic(user(), **field) == to_anthropic(user())


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        *(
            ({"stop_sequences": list("abcde")}, "stop_sequences"),
            ({"new": 1}, "new"),
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
        ({"tools": [{"name": "x", "input_schema": {}, "input_examples": [{}]}]}, "tools.0.input_examples"),
        ({"messages": [user({"type": "document", "source": {}})]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [IMAGE | {"new": 1}]}]}, "messages.0.content.0.new"),
        (
            {"messages": [USED | {"content": [*USED["content"], {"type": "text", "text": "x"}]}]},
            "messages.0.content.2",
        ),
    ],
)
def test_what_openais_format_cannot_say_is_refused_by_its_anthropic_name(fields: Object, place: str) -> None:
    with pytest.raises(Untranslatable) as caught:
        asked("anthropic", "openai", {"messages": [user()]} | fields, OPENAI)
    assert caught.value.place == place


def test_what_claude_code_sends_beside_the_answer_is_left_out_and_named() -> None:
    body = {
        "messages": [user({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}})],
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "u", "session": "s"},
        "thinking": {"type": "adaptive"},
        "tools": [{"name": "x", "input_schema": {"type": "object"}, "eager_input_streaming": True}],
        "model": "mine",
        "max_tokens": 5,
    }
    conversation = FORMATS["anthropic"].read_request(json.dumps(body).encode(), drop_unknown=False)
    written = FORMATS["openai"].write_request(conversation, "theirs", 9, OPENAI)
    assert json.loads(written.body)["user"] == "u"
    assert sorted(written.left_out) == [
        "cache_control",
        "context_management",
        "metadata.session",
        "tools.0.eager_input_streaming",
    ]
