"""What compatible providers and clients say otherwise than OpenAI, Anthropic and Google, as was reported.

Each kind of it in every format that can say it; ``tests/contract/test_reported.py`` has those with a bill.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.errors import ApiError
from relay.formats import (
    anthropic_answer,
    anthropic_request,
    gemini_answer,
    gemini_request,
    openai_chat_answer,
    openai_chat_request,
    openai_responses_answer,
)
from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.anthropic_fields import BILLING_LINE
from relay.formats.anthropic_schema import answer_schema
from relay.formats.conversation import Untranslatable
from relay.formats.format import MeterOptions, Shown
from relay.formats.openai_chat_answer import Message
from relay.formats.openai_responses_fields import TOOL_TOKENS
from relay.formats.openai_responses_request import parse as parse_responses
from relay.formats.prompt_begin import prompt_begin
from relay.formats.registry import FORMATS
from relay.formats.translated_stream import TranslatedMeter
from relay.providers.profiles import Profile
from relay.settings import Settings

OPENAI = Profile("max_completion_tokens", "pass", extensions=False)
PAIRS = [(ours, theirs) for ours in FORMATS for theirs in FORMATS if ours != theirs]
SETTINGS = Settings.read({})
PARSERS: dict[str, Any] = {
    "openai": lambda body: openai_chat_request.parse(body, SETTINGS),
    "openai-responses": lambda body: parse_responses(body, SETTINGS),
    "anthropic": lambda body: anthropic_request.parse(body, SETTINGS),
    "gemini": lambda body: gemini_request.parse(body, SETTINGS, model="m"),
}
Object = dict[str, Any]


# ---------------------------------------------------------------- requests


def ask(ours: str, schema: Any = None, **more: Any) -> Object:
    """A request with a tool."""
    tool: Object = {"name": "look", "description": "looks"}
    if ours == "anthropic":
        asked = {"messages": [{"role": "user", "content": "Hi?"}], "max_tokens": 50}
        return {"model": "m", **asked, "tools": [tool | {"input_schema": schema}]} | more
    if ours == "gemini":
        contents = [{"role": "user", "parts": [{"text": "Hi?"}]}]
        return {
            "contents": contents,
            "tools": [{"functionDeclarations": [tool | {"parameters": schema}]}],
        } | more
    if ours == "openai":
        asked = {"messages": [{"role": "user", "content": "Hi?"}]}
        declared = {"type": "function", "function": tool | {"parameters": schema}}
        return {"model": "m", **asked, "tools": [declared]} | more
    declared = {"type": "function", **tool, "parameters": schema}
    return {"model": "m", "input": "Hi?", "tools": [declared]} | more


def written(ours: str, theirs: str, body: Object, left_out: list[str] | None = None) -> Any:
    conversation = FORMATS[ours].read_request(json.dumps(body).encode(), drop_unknown=False)
    made = FORMATS[theirs].write_request(conversation, "m", 100, OPENAI)
    if left_out is not None:
        left_out += made.left_out
    return json.loads(made.body)


def schema_of(theirs: str, request: Any) -> Any:
    """The schema of a request's only tool."""
    (tool,) = request["tools"]
    if theirs == "gemini":
        return tool["functionDeclarations"][0]["parametersJsonSchema"]
    if theirs == "anthropic":
        return tool["input_schema"]
    return tool["function"]["parameters"] if theirs == "openai" else tool["parameters"]


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"properties": {}}, {"description": "none"}])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_tool_without_arguments_has_the_schema_that_every_api_takes(
    ours: str, theirs: str, schema: Object
) -> None:
    """icebear0828/codex-proxy#22, containers/kubernetes-mcp-server#717: OpenAI wants properties, Anthropic a
    type; servers of MCP give neither."""
    sent = schema_of(theirs, written(ours, theirs, ask(ours, schema)))
    assert sent == {"type": "object", "properties": {}} | schema


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_choice_of_tools_without_tools_is_not_told(ours: str, theirs: str) -> None:
    """APIs refuse it: "tool_choice is only allowed when tools are specified"."""
    none: Object = {"tool_choice": {"type": "none"} if ours == "anthropic" else "none"}
    if ours == "gemini":
        none = {"toolConfig": {"functionCallingConfig": {"mode": "NONE"}}}
    sent = written(ours, theirs, ask(ours) | none | {"tools": []})
    assert not sent.keys() & {"tools", "tool_choice", "toolConfig"}


def called(*ids: str) -> list[Object]:
    """Messages of OpenAI's: a call after the other, each with its result."""
    messages: list[Object] = [{"role": "user", "content": "Hi?"}]
    for number, name in enumerate(ids):
        function = {"name": "look", "arguments": "{}"}
        messages += [
            {"role": "assistant", "tool_calls": [{"id": name, "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": name, "content": f"result {number}"},
        ]
    return messages


@pytest.mark.parametrize("ids", [("look:0", "look:0", "look:0"), ("look:0", "look.0"), ("a", "a_1", "a")])
def test_calls_have_names_of_their_own_where_an_api_wants_that(ids: tuple[str, ...]) -> None:
    """fw-ai/fireconnect#16, vectorize-io/hindsight#4250: models that count calls anew in each answer."""
    sent = written("openai", "anthropic", {"model": "m", "messages": called(*ids)})
    blocks = [block for message in sent["messages"][1:] for block in message["content"]]
    uses = [block["id"] for block in blocks if block["type"] == "tool_use"]
    assert len(set(uses)) == len(ids)
    assert [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"] == uses
    results = [block["content"] for block in blocks if block["type"] == "tool_result"]
    assert results == [f"result {number}" for number in range(len(ids))]


def test_calls_of_one_turn_that_share_a_name_keep_their_results() -> None:
    calls = [{"id": "0", "type": "function", "function": {"name": "look", "arguments": "{}"}}] * 2
    results = [{"role": "tool", "tool_call_id": "0", "content": text} for text in ("first", "second")]
    said = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "tool_calls": calls}, *results]
    _, uses, answers = written("openai", "anthropic", {"model": "m", "messages": said})["messages"]
    assert [use["id"] for use in uses["content"]] == ["0", "0_1"]
    assert [(one["tool_use_id"], one["content"]) for one in answers["content"]] == [
        ("0", "first"),
        ("0_1", "second"),
    ]


def test_long_names_of_calls_are_as_short_as_openai_takes_them() -> None:
    """vercel/ai#5171, earendil-works/pi#198: 40 characters in chat, where others give longer ones."""
    use = {"type": "tool_use", "id": "t" * 41, "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t" * 41, "content": "x"}
    said = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": [use]}]
    body = {"model": "m", "max_tokens": 50, "messages": [*said, {"role": "user", "content": [result]}]}
    _, assistant, tool = written("anthropic", "openai", body)["messages"]
    assert len(assistant["tool_calls"][0]["id"]) <= 40
    assert tool["tool_call_id"] == assistant["tool_calls"][0]["id"]


def test_texts_of_white_space_alone_are_not_sent_to_anthropic() -> None:
    """home-assistant/core#175637: models say blank lines before calls; Anthropic refuses them."""
    messages = called("t")
    messages[1]["content"] = [{"type": "text", "text": "\n\n", "cache_control": {"type": "ephemeral"}}]
    messages[2]["content"] = " "
    sent = written(
        "openai", "anthropic", {"model": "m", "messages": [*messages, {"role": "user", "content": "?"}]}
    )
    assert [block["type"] for block in sent["messages"][1]["content"]] == ["tool_use"]
    assert sent["messages"][2]["content"][0] == {"type": "tool_result", "tool_use_id": "t"}
    messages[0]["content"] = [
        {"type": "text", "text": "Hi?"},
        {"type": "text", "text": " ", "cache_control": {"type": "ephemeral"}},
    ]
    (first, *_) = written("openai", "anthropic", {"model": "m", "messages": messages})["messages"]
    assert first["content"] == [{"type": "text", "text": "Hi?", "cache_control": {"type": "ephemeral"}}]


@pytest.mark.parametrize("ours", ["openai", "openai-responses", "gemini"])
def test_images_have_their_registered_type(ours: str) -> None:
    """lobehub/lobehub#3001: Anthropic takes image/jpeg, and no image/jpg."""
    url = "data:image/JPG;base64,aGk="
    bodies: dict[str, Object] = {
        "openai": {
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        },
        "openai-responses": {
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
        },
        "gemini": {"contents": [{"parts": [{"inlineData": {"mimeType": "image/JPG", "data": "aGk="}}]}]},
    }
    model = {} if ours == "gemini" else {"model": "m"}
    sent = written(ours, "anthropic", model | bodies[ours])
    assert sent["messages"][0]["content"][0]["source"]["media_type"] == "image/jpeg"


@pytest.mark.parametrize("theirs", ["openai", "openai-responses", "gemini"])
@pytest.mark.parametrize("listed", [False, True])
def test_the_line_for_anthropics_books_goes_to_anthropic_alone(theirs: str, listed: bool) -> None:
    line, own = f"{BILLING_LINE} cc_version=2.1.117.48f; cch=71fea;", "Be brief."
    system = [{"type": "text", "text": line}, {"type": "text", "text": own}] if listed else f"{line}\n{own}"
    left_out: list[str] = []
    sent = written("anthropic", theirs, ask("anthropic", system=system), left_out)
    assert "cch" not in json.dumps(sent)
    assert own in json.dumps(sent)
    assert left_out[0] == "x-anthropic-billing-header"


def test_what_changes_with_each_request_is_no_begin_of_a_prompt() -> None:
    """So calls of one conversation find the channel and key whose cache has it."""

    def begin(changing: str) -> bytes:
        system = [
            {"type": "text", "text": f"{BILLING_LINE} cch={changing};"},
            {"type": "text", "text": "Brief."},
        ]
        return prompt_begin(json.dumps(ask("anthropic", system=system)).encode())

    assert begin("71fea") == begin("0aaa9")
    assert b"Brief." in begin("71fea")


def test_references_of_a_google_schema_find_what_they_name() -> None:
    """The names of definitions are the customer's own; the reference to one is another notation of it."""
    schema = {
        "type": "OBJECT",
        "properties": {"a_place": {"ref": "#/defs/a_type"}, "more": {"$ref": "#/$defs/a_type"}},
        "additionalProperties": {"type": "STRING"},
        "defs": {"a_type": {"type": "STRING", "nullable": True}},
    }
    assert schema_of("openai", written("gemini", "openai", ask("gemini", schema))) == {
        "type": "object",
        "properties": {"a_place": {"$ref": "#/$defs/a_type"}, "more": {"$ref": "#/$defs/a_type"}},
        "additionalProperties": {"type": "string"},
        "$defs": {"a_type": {"type": ["string", "null"]}},
    }


MARK = {"cache_control": {"type": "ephemeral"}}


def test_marks_of_the_cache_count_wherever_clients_set_them() -> None:
    """experientiallabs/experiential#662 (opencode), agno-agi/agno#5405, langfuse/langfuse#16865."""
    messages = called("t")
    messages[1]["tool_calls"][0] |= MARK
    messages[0]["content"] = [
        {"type": "text", "text": "Hi?", "prompt_cache_breakpoint": {"mode": "explicit"}},
    ]
    body = ask("openai", {}, messages=messages)
    body["tools"][0]["function"] |= MARK
    sent = written("openai", "anthropic", body)
    marked = (sent["tools"][0], *(message["content"][0] for message in sent["messages"][:2]))
    assert [one.get("cache_control") for one in marked] == [{"type": "ephemeral"}] * 3
    said = {"type": "input_text", "text": "Hi?", "prompt_cache_breakpoint": {"mode": "explicit"}}
    sent = written(
        "openai-responses", "anthropic", {"model": "m", "input": [{"role": "user", "content": [said]}]}
    )
    assert sent["messages"][0]["content"][0] == {"type": "text", "text": "Hi?"} | MARK


@pytest.mark.parametrize(
    ("schema", "sent", "said"),
    [
        (
            {"type": "integer", "minimum": 1, "maximum": 10, "description": "A score"},
            {"type": "integer", "description": "A score\n\n{minimum: 1, maximum: 10}"},
            ["minimum", "maximum"],
        ),
        ({"type": "array", "minItems": 1}, {"type": "array", "minItems": 1}, []),
        ({"type": "array", "minItems": 2}, {"type": "array", "description": "{minItems: 2}"}, ["minItems"]),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}, []),
        (
            {"type": "string", "format": "iban"},
            {"type": "string", "description": '{format: "iban"}'},
            ["format"],
        ),
        ({"enum": ["a"], "default": {"minimum": 1}}, {"enum": ["a"], "default": {"minimum": 1}}, []),
        (
            {"oneOf": [{"type": "object"}, {"type": "string", "minLength": 1}]},
            {
                "anyOf": [
                    {"type": "object", "additionalProperties": False},
                    {"type": "string", "description": "{minLength: 1}"},
                ]
            },
            ["minLength"],
        ),
        (
            {
                "type": "object",
                "properties": {"minimum": {"$ref": "#/$defs/maximum"}},
                "$defs": {"maximum": {}},
            },
            {
                "type": "object",
                "properties": {"minimum": {"$ref": "#/$defs/maximum"}},
                "$defs": {"maximum": {}},
                "additionalProperties": False,
            },
            [],
        ),
    ],
)
def test_bounds_of_an_answer_are_words_where_anthropic_takes_no_keywords(
    schema: Object, sent: Object, said: list[str]
) -> None:
    """BerriAI/litellm#21016, laravel/ai#715: "For 'integer' type, property 'minimum' is not supported"."""
    told: list[str] = []
    assert answer_schema(schema, told) == sent
    assert told == said
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    left_out: list[str] = []
    body = written("openai", "anthropic", ask("openai", {}, response_format=wanted), left_out)
    assert body["output_config"]["format"]["schema"] == sent
    assert set(left_out) >= {f"response_format.{name}" for name in said}


# ---------------------------------------------------------------- tools of an item


def added(*tools: Object) -> Object:
    """An item that adds tools, as Codex sends it since 0.150."""
    return {"type": "additional_tools", "role": "developer", "tools": list(tools)}


EXEC = {"type": "namespace", "name": "functions", "tools": [{"type": "custom", "name": "exec"}]}


@pytest.mark.parametrize("kind", ["web_search", "code_interpreter", "mcp", "image_generation"])
@pytest.mark.parametrize("item", ["additional_tools", "tool_search_output", "something_new"])
def test_tools_that_an_item_declares_are_checked_as_those_of_the_request(kind: str, item: str) -> None:
    """A provider would run and bill them, and nobody would pay."""
    said = [{"role": "user", "content": "Hi?"}, added({"type": kind}) | {"type": item}]
    with pytest.raises(ApiError, match=rf"input\[1\].tools\[0\].type: '{kind}' has no price here"):
        parse_responses(json.dumps({"model": "m", "input": said}).encode(), SETTINGS)


def test_what_an_item_declares_is_held_for() -> None:
    def bound(*tools: Object) -> int:
        said = [{"role": "user", "content": "Hi?"}, added(*tools)]
        body = json.dumps({"model": "m", "input": said}).encode()
        return parse_responses(body, SETTINGS).input_bound - len(body)

    assert bound({"type": "apply_patch"}) - bound(EXEC) == TOOL_TOKENS


@pytest.mark.parametrize("theirs", ["openai", "anthropic", "gemini"])
def test_tools_that_an_item_adds_reach_other_formats(theirs: str) -> None:
    """mxyhi/token_proxy#307: Codex adds its tools in an item."""
    body = ask("openai-responses", {}, input=[added(EXEC), {"role": "user", "content": "Hi?"}])
    names = json.dumps(written("openai-responses", theirs, body)["tools"])
    assert '"look"' in names
    assert '"functions__exec"' in names
    refused = body | {"input": [added({"type": "apply_patch"})]}
    with pytest.raises(Untranslatable, match=r"input\[0\].tools\[0\].type"):
        written("openai-responses", theirs, refused)


def test_a_call_of_an_added_tool_is_told_as_it_was_declared() -> None:
    body = json.dumps({"model": "m", "input": [added(EXEC), {"role": "user", "content": "Hi?"}]}).encode()
    shown = Shown("m", True, 1, parse_responses(body, SETTINGS).repeated())
    use = {"type": "tool_use", "id": "t", "name": "functions__exec", "input": {"input": "ls"}}
    answer = FORMATS["anthropic"].read_answer(json.dumps({"id": "m", "content": [use]}).encode())
    (item,) = json.loads(FORMATS["openai-responses"].write_answer(answer, shown))["output"]
    told = {name: item[name] for name in ("type", "name", "namespace", "input")}
    assert told == {"type": "custom_tool_call", "name": "exec", "namespace": "functions", "input": "ls"}


# ---------------------------------------------------------------- answers


def answer_with(theirs: str, calls: list[tuple[Any, str, Any]]) -> Object:
    """A whole answer with calls: (id, name, arguments)."""
    if theirs == "openai":
        made = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": given}}
            for id, name, given in calls
        ]
        message = {"role": "assistant", "content": None, "tool_calls": made}
        return {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    if theirs == "anthropic":
        uses = [{"type": "tool_use", "id": id, "name": name, "input": given} for id, name, given in calls]
        return {"id": "c", "content": uses, "stop_reason": "tool_use"}
    if theirs == "gemini":
        parts = [{"functionCall": {"id": id, "name": name, "args": given}} for id, name, given in calls]
        return {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}], "responseId": "c"}
    items = [
        {"type": "function_call", "call_id": id, "name": name, "arguments": given}
        for id, name, given in calls
    ]
    return {"id": "c", "status": "completed", "output": items}


def calls_in(ours: str, answer: Any) -> list[tuple[str, str, Any]]:
    """The calls that a customer reads: (id, name, arguments)."""
    if ours == "openai":
        made = answer["choices"][0]["message"]["tool_calls"]
        return [
            (one["id"], one["function"]["name"], json.loads(one["function"]["arguments"])) for one in made
        ]
    if ours == "anthropic":
        return [(one["id"], one["name"], one["input"]) for one in answer["content"]]
    if ours == "gemini":
        made = [part["functionCall"] for part in answer["candidates"][0]["content"]["parts"]]
        return [(one["id"], one["name"], one["args"]) for one in made]
    return [(one["call_id"], one["name"], json.loads(one["arguments"])) for one in answer["output"]]


def read(theirs: str, ours: str, answer: Object) -> Any:
    made = FORMATS[theirs].read_answer(json.dumps(answer).encode())
    return json.loads(FORMATS[ours].write_answer(made, Shown("m", True, 1)))


@pytest.mark.parametrize("given", [{"at": 1}, '{"at":1}', None, ""])
@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_arguments_are_read_as_text_and_as_object(theirs: str, ours: str, given: Any) -> None:
    """ggml-org/llama.cpp#20198, sipeed/picoclaw#1287: arguments that are an object where a text belongs, and
    the other way."""
    ((_, name, arguments),) = calls_in(ours, read(theirs, ours, answer_with(theirs, [("t", "look", given)])))
    assert (name, arguments) == ("look", {"at": 1} if given else {})


@pytest.mark.parametrize("ids", [("t", "t"), (None, None), ("", "t"), (None, "call_c_0")])
@pytest.mark.parametrize("ours", [name for name in FORMATS if name != "openai"])
def test_calls_without_names_get_some_and_each_another_one(ours: str, ids: tuple[Any, Any]) -> None:
    calls = [(ids[0], "look", '{"at":1}'), (ids[1], "look", '{"at":2}')]
    told = calls_in(ours, read("openai", ours, answer_with("openai", calls)))
    assert [arguments for _, _, arguments in told] == [{"at": 1}, {"at": 2}]
    assert len({id for id, _, _ in told} - {""}) == 2


@pytest.mark.parametrize("theirs", ["openai", "gemini"])
def test_calls_without_names_in_answers_without_one_are_told_apart(theirs: str) -> None:
    """Else the second turn's call would have the first one's name."""
    seen = set()
    for at in (1, 2):
        answer = answer_with(theirs, [(None, "look", {"at": at})])
        answer = {name: value for name, value in answer.items() if name not in ("id", "responseId")}
        ((name, _, _),) = calls_in("anthropic", read(theirs, "anthropic", answer))
        seen.add(name)
    assert len(seen) == 2


def collected(theirs: str, name: str, given: Any) -> list[str]:
    """The generated texts of a call that are counted where nobody tells a usage."""
    into: list[str] = []
    if theirs == "chat":
        call = {"function": {"name": name, "arguments": given}}
        openai_chat_answer.collect_texts(Message(tool_calls=[call]), into)
    elif theirs == "responses":
        item = {"type": "function_call", "name": name, "arguments": given}
        openai_responses_answer.collect_item(item, into)
    elif theirs == "messages":
        anthropic_answer.collect_block({"type": "tool_use", "name": name, "input": given}, into)
    else:
        gemini_answer.collect_texts([{"functionCall": {"name": name, "args": given}}], into)
    return into


COLLECTED = ("chat", "responses", "messages", "gemini")


@pytest.mark.parametrize("theirs", COLLECTED)
@pytest.mark.parametrize("given", [None, "", {}, [], 0])
def test_a_call_of_nothing_with_nothing_generated_nothing(theirs: str, given: Any) -> None:
    assert collected(theirs, "", given) == []


@pytest.mark.parametrize("theirs", COLLECTED)
@pytest.mark.parametrize("given", [{"at": 1}, {"deep": {"": [None]}}])
def test_arguments_that_are_an_object_are_counted(theirs: str, given: Any) -> None:
    assert json.loads(collected(theirs, "look", given)[-1]) == given


def candidate(reason: str, *parts: Object) -> Object:
    return {"candidates": [{"content": {"parts": list(parts)}, "finishReason": reason}], "responseId": "r"}


def translated(theirs: str, ours: str) -> TranslatedMeter:
    options = MeterOptions(
        keep_usage_chunk=True, choices=1, max_event_bytes=1 << 20, model=None, redact=lambda text: text
    )
    provider = FORMATS[theirs]
    return TranslatedMeter(
        provider.meter(options), provider.decoder(), FORMATS[ours].encoder(Shown("m", True, 1))
    )


GOOGLES_FAILURES = ("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MISSING_THOUGHT_SIGNATURE", "OTHER")


@pytest.mark.parametrize("reason", GOOGLES_FAILURES)
@pytest.mark.parametrize("ours", [name for name in FORMATS if name != "gemini"])
def test_an_answer_that_google_broke_off_is_no_answer(ours: str, reason: str) -> None:
    """BerriAI/litellm#21744, #40477. Of a stream it is known before the call is paid for."""
    with pytest.raises(BadAnswer, match=reason):
        read("gemini", ours, candidate(reason))
    meter = translated("gemini", ours)
    meter.feed(b"data: " + json.dumps(candidate(reason, {"text": "Yes"})).encode() + b"\r\n\r\n")
    with pytest.raises(BadAnswer, match=reason):
        meter.end()
    assert meter.tail() == b""


@pytest.mark.parametrize("reason", ["SAFETY", "IMAGE_SAFETY", "MODEL_ARMOR", "LANGUAGE"])
def test_every_filter_of_googles_is_told_as_a_refusal(reason: str) -> None:
    assert read("gemini", "anthropic", candidate(reason))["stop_reason"] == "refusal"


def test_parts_that_say_nothing_are_none_and_answers_without_a_candidate_are_no_answers() -> None:
    told = read("gemini", "anthropic", candidate("STOP", {}, {"thought": True}, {"text": "Yes"}))
    assert told["content"] == [{"type": "text", "text": "Yes"}]
    with pytest.raises(BadAnswer, match="no candidate"):
        read("gemini", "anthropic", {"usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 3}})


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        *(("max_tokens", "max_tokens"), ("model_length", "max_tokens"), ("sensitive", "refusal")),
        *(("model_context_window_exceeded", "model_context_window_exceeded"), ("end_turn", "end_turn")),
        *(("eos", "end_turn"), ("stop", "end_turn")),
    ],
)
def test_reasons_of_compatible_providers_keep_their_meaning(reason: str, told: str) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Yes"}, "finish_reason": reason}
    assert read("openai", "anthropic", {"id": "c", "choices": [choice]})["stop_reason"] == told


@pytest.mark.parametrize(
    "failed",
    [
        {"finish_reason": "error"},
        {"finish_reason": "network_error"},
        {"finish_reason": "insufficient_system_resource"},
        {"finish_reason": "stop", "error": {"code": 502, "message": "upstream"}},
        {"finish_reason": "stop", "native_finish_reason": "network_error"},
    ],
)
def test_an_answer_that_a_compatible_provider_broke_off_is_an_error(failed: Object) -> None:
    """genkit-ai/genkit#6259, earendil-works/pi#8511: the failure rides on the choice, with status 200."""
    whole = {"id": "c", "choices": [{"index": 0, "message": {"content": "Ye"}} | failed]}
    with pytest.raises(ErrorAnswer):
        FORMATS["openai"].read_whole(json.dumps(whole).encode())
    meter = translated("openai", "anthropic")
    streamed = {"id": "c", "choices": [{"index": 0, "delta": {"content": "Ye"}} | failed]}
    meter.feed(b"data: " + json.dumps(streamed).encode() + b"\n\n")
    meter.end()
    assert meter.error is not None
    assert not meter.complete


def test_images_in_an_answer_are_not_dropped() -> None:
    """OpenRouter's field, which no other format has: an answer without them would be another answer."""
    message = {
        "role": "assistant",
        "content": "",
        "images": [{"type": "image_url", "image_url": {"url": "u"}}],
    }
    with pytest.raises(BadAnswer, match="images"):
        read("openai", "anthropic", {"id": "c", "choices": [{"message": message, "finish_reason": "stop"}]})


@pytest.mark.parametrize("ours", [*FORMATS])
def test_declared_tools_and_calls_are_counted_where_nobody_else_counts(ours: str) -> None:
    """router-for-me/CLIProxyAPI#679: the most of an agent's prompt are its tools."""
    parse = PARSERS[ours]
    plain, tools = ask(ours, {"description": "d" * 400}), ask(ours, {"description": "d" * 4_000})
    counts = [parse(json.dumps(body).encode()).counted_prompt(0) for body in (plain, tools)]
    assert counts[1] - counts[0] == 900
    if ours == "openai":
        plain, calls = (ask(ours, {}, messages=called(*names)) for names in (("t",), ("t", "u")))
        counts = [parse(json.dumps(body).encode()).counted_prompt(0) for body in (plain, calls)]
        assert counts[1] - counts[0] > 2 * 4 + 10  # two messages, and a call beside its result


def test_a_first_chunk_without_an_id_is_no_begin_of_an_answer() -> None:
    """microsoft/autogen#6465: Azure tells of its filters first."""
    first = {"id": "", "choices": [], "model": "", "prompt_filter_results": []}
    said = {"id": "c", "choices": [{"index": 0, "delta": {"content": "Yes"}, "finish_reason": "stop"}]}
    meter = translated("openai", "anthropic")
    told = meter.feed(b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in (first, said)))
    meter.end()
    assert b'"id":"c"' in told + meter.tail()
