"""Requests of OpenAI's Responses: what passes, what can be held for it, what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ApiError
from relay.formats.openai_responses_fields import TOOL_TOKENS
from relay.formats.openai_responses_request import parse
from relay.formats.request import INSTRUCTION_TOKENS
from relay.providers.profiles import Profile
from relay.settings import Settings

SETTINGS = Settings.read({"RELAY_MODEL_MAX_OUTPUT": "*=777"})
PASS, DROP, REFUSE = (Profile("max_tokens", policy) for policy in ("pass", "drop", "refuse"))
FUNCTION = {"type": "function", "name": "look", "parameters": {"type": "object"}}
IMAGE = "data:image/png;base64," + "a" * 5000


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "Hi?"} | fields).encode()


def test_bytes_pass_as_they_came_but_for_the_model() -> None:
    sent = b'{ "input":"Hi?","new" :{"a":1e400},\n"model" : "m", "max_output_tokens":50 }'
    request = parse(sent, SETTINGS)
    assert request.native("m", PASS) == sent
    assert request.native("theirs", PASS) == sent.replace(b'"m"', b'"theirs"')
    assert request.max_output == 50
    with pytest.raises(ApiError, match="new"):
        request.native("m", REFUSE)


def test_an_answer_is_bounded_as_it_was_held_for() -> None:
    request = parse(body(), SETTINGS)
    assert request.max_output == 777
    assert request.native("m", PASS) == b'{"max_output_tokens":777,' + body()[1:]
    null = parse(body(max_output_tokens=None), SETTINGS).native("m", PASS)
    assert null.count(b"max_output_tokens") == 1
    assert json.loads(null)["max_output_tokens"] == 777


@given(st.text(), st.text(), st.text())
def test_what_is_held_covers_every_text(instructions: str, said: str, output: str) -> None:
    items = [
        {"role": "user", "content": said},
        {"type": "function_call_output", "call_id": "t", "output": [{"type": "input_text", "text": output}]},
    ]
    request = parse(body(input=items, instructions=instructions), SETTINGS)
    assert request.input_bound >= sum(len(text.encode()) for text in (instructions, said, output))
    assert request.counted_prompt(0) <= request.input_bound


def test_images_are_held_by_the_piece_and_not_by_their_bytes() -> None:
    plain = parse(body(input=[{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]), SETTINGS)
    shown = {"type": "input_image", "image_url": IMAGE}
    request = parse(body(input=[{"role": "user", "content": [shown]}]), SETTINGS)
    assert request.images == 1
    assert abs(request.input_bound - plain.input_bound - SETTINGS.image_hold_tokens) < 60
    screen = {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": IMAGE}}
    assert parse(body(input=[screen]), SETTINGS).images == 1


def test_tools_are_held_for_by_the_instructions_that_they_bring() -> None:
    bare = parse(body(), SETTINGS).input_bound
    tools = [FUNCTION, {"type": "custom", "name": "patch"}]
    declared = parse(body(tools=tools), SETTINGS).input_bound
    assert declared == bare + len(body(tools=tools)) - len(body()) + INSTRUCTION_TOKENS
    tools.append({"type": "local_shell"})
    own = parse(body(tools=tools), SETTINGS).input_bound
    assert own == bare + len(body(tools=tools)) - len(body()) + INSTRUCTION_TOKENS + TOOL_TOKENS


@pytest.mark.parametrize(
    "tool",
    [
        *(FUNCTION, {"type": "custom", "name": "x"}, {"type": "apply_patch"}),
        {"type": "namespace", "name": "far", "tools": [FUNCTION]},
        {"type": "shell", "environment": {"type": "local"}},
        {"type": "tool_search", "execution": "client"},
    ],
    ids=lambda tool: tool["type"],
)
def test_tools_that_the_customer_runs_pass(tool: dict[str, Any]) -> None:
    parse(body(tools=[tool]), SETTINGS)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        *(({"tools": [{"type": name}]}, "tools[0].type") for name in ("web_search", "mcp", "file_search")),
        *(({"tools": [{"type": name}]}, "tools[0].type") for name in ("code_interpreter", "shell")),
        ({"tools": [{"type": "tool_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "namespace", "tools": [{"type": "mcp"}]}]}, "tools[0].tools[0].type"),
        *(({"tools": ["x"]}, "tools[0].type"), ({"tools": {}}, "tools")),
        *(({"previous_response_id": "r"}, "previous_response_id"), ({"conversation": {}}, "conversation")),
        *(({"background": True}, "background"), ({"store": True}, "store"), ({"prompt": {}}, "prompt")),
        *(({"context_management": []}, "context_management"), ({"service_tier": "flex"}, "service_tier")),
        *(({"messages": []}, "messages"), ({"max_tokens": 5}, "max_tokens"), ({"stream": 1}, "stream")),
        *(({"max_output_tokens": 0}, "max_output_tokens"), ({"model": ""}, "model")),
        *(({"input": None}, "input"), ({"input": []}, "input"), ({"input": ["x"]}, "input[0]")),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].type",
        ),
    ],
)
def test_what_has_no_price_or_needs_what_was_kept_is_refused_by_name(
    fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(ApiError) as caught:
        parse(body(**fields), SETTINGS)
    assert (caught.value.status, caught.value.param) == (400, place)
    assert place in caught.value.message


@pytest.mark.parametrize("fields", [{"store": False}, {"background": False}, {"service_tier": "auto"}])
def test_what_changes_nothing_passes(fields: dict[str, Any]) -> None:
    assert json.loads(parse(body(**fields), SETTINGS).native("m", PASS)).items() >= fields.items()
