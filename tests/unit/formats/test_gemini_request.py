"""Requests in Gemini's format: what is let in, what it can cost at most, what a provider gets; and between
Gemini's and the other formats, where the bugs are numbered as those of test_golden_streams.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.errors import ApiError
from relay.formats import gemini, gemini_request
from relay.formats.conversation import Untranslatable
from relay.formats.gemini_fields import IMAGE_TOKENS
from relay.formats.gemini_request import GenerateRequest
from relay.formats.registry import FORMATS
from relay.formats.request import INSTRUCTION_TOKENS
from relay.providers.profiles import Profile
from relay.settings import Settings

SETTINGS = Settings.read({})
PASS, DROP, REFUSE = (Profile("max_tokens", how, extensions=True) for how in ("pass", "drop", "refuse"))
Object = dict[str, Any]
HI: Object = {"contents": [{"role": "user", "parts": [{"text": "Hi?"}]}]}
CAPPED: Object = HI | {"generationConfig": {"maxOutputTokens": 9}}
DATA = "QUJD" * 1000
IMAGE: Object = {"inlineData": {"mimeType": "image/png", "data": DATA}}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "format": "date"}},
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"x": {"not": {}}},
}


def parse(body: Any, model: str = "mine") -> GenerateRequest:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return gemini_request.parse(encoded, SETTINGS, model=model)


def with_parts(*parts: Object) -> Object:
    return CAPPED | {"contents": [{"role": "user", "parts": list(parts)}]}


# ---------------------------------------------------------------- what a provider gets


@pytest.mark.parametrize("name", ["maxOutputTokens", "max_output_tokens"])
@pytest.mark.parametrize("config", ["generationConfig", "generation_config"])
@pytest.mark.parametrize("limit", ["9", "9.0", '"9"'])
def test_a_capped_body_passes_byte_by_byte(name: str, config: str, limit: str) -> None:
    body = (
        f'{{ "{config}" : {{"{name}":{limit}, "new": 1e3}},\n "future": "\\u00fc", "contents": '
        f'[{{"parts":[{{"text":"H\\u0069?"}}]}}] }}'
    ).encode()
    request = parse(body)
    assert (request.native("mine", PASS), request.max_output) == (body, 9)
    assert request.native("theirs", PASS) == body  # the model stands in the URL


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '"generationConfig":{"maxOutputTokens":4096},'),
        ('"generationConfig": {},', '"generationConfig": {"maxOutputTokens":4096},'),
        ('"generationConfig": null,', '"generationConfig": {"maxOutputTokens":4096},'),
        (
            '"generation_config": {"topK": 1.0, "max_output_tokens": null},',
            '"generation_config": {"topK":1.0,"maxOutputTokens":4096},',
        ),
    ],
)
def test_where_a_body_has_no_limit_it_gets_the_one_that_is_held_for(before: str, after: str) -> None:
    rest = '"contents": [{"parts": [{"text": "x"}]}], "odd" : 1.50}'
    request = parse(f"{{{before}{rest}".encode())
    assert request.max_output == SETTINGS.max_output_of("mine")
    assert request.native("mine", PASS) == f"{{{after}{rest}".encode()


def test_unknown_fields_are_passed_dropped_or_refused() -> None:
    body = CAPPED | {"future": 1, "generationConfig": {"maxOutputTokens": 9, "futureWish": 1}}
    request = parse(body)
    assert request.unknown == {"future", "generationConfig.futureWish"}
    assert json.loads(request.native("mine", PASS)) == body
    assert json.loads(request.native("mine", DROP)) == CAPPED
    with pytest.raises(ApiError) as refused:
        request.native("mine", REFUSE)
    assert refused.value.param == "future"


def test_a_model_in_the_body_is_the_urls() -> None:
    request = parse(CAPPED | {"model": "models/mine"})
    assert json.loads(request.native("theirs", PASS))["model"] == "models/theirs"
    with pytest.raises(ApiError) as refused:
        parse(CAPPED | {"model": "models/dearer"})
    assert refused.value.param == "model"


# ---------------------------------------------------------------- what it can cost


def test_the_bound() -> None:
    request = parse(CAPPED)
    size = len(json.dumps(CAPPED))
    assert (request.input_bound, request.max_output) == (size + 4, 9)
    several = CAPPED | {"generationConfig": {"maxOutputTokens": 9, "candidateCount": 3}}
    assert (parse(several).choices, parse(several).max_output) == (3, 27)
    tools = CAPPED | {"tools": [{"functionDeclarations": [{"name": "look"}]}]}
    assert parse(tools).input_bound == len(json.dumps(tools)) + 4 + INSTRUCTION_TOKENS


def test_an_image_is_held_by_its_tokens_not_its_bytes() -> None:
    response = {"functionResponse": {"name": "x", "response": {}, "parts": [IMAGE]}}
    for parts in ([IMAGE], [response], [{"inline_data": {"mime_type": "image/png", "data": DATA}}]):
        body = with_parts(*parts)
        request = parse(body)
        assert request.images == 1
        assert request.input_bound == len(json.dumps(body)) - len(DATA) + 4 + IMAGE_TOKENS
        assert request.max_usage().prompt == ("text", "image")


def test_a_part_that_is_unknown_is_held_like_an_image() -> None:
    body = with_parts({"futureThing": {"x": 1}})
    assert parse(body).input_bound == len(json.dumps(body)) + 4 + IMAGE_TOKENS


def test_the_prompt_is_counted_by_its_text() -> None:
    call = {"functionCall": {"name": "look", "args": {"a": "b"}}}
    body = with_parts({"text": "a" * 40}, call) | {"systemInstruction": {"parts": [{"text": "b" * 40}]}}
    assert parse(body).counted_prompt(100) == 4 + 10 + 10 + 1 + 3
    assert parse(with_parts(IMAGE)).counted_prompt(100) == 104


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"cachedContent": "cachedContents/1"}, "cachedContent"),
        ({"cached_content": "cachedContents/1"}, "cachedContent"),
        ({"serviceTier": "priority"}, "serviceTier"),
        ({"tools": [{"googleSearch": {}}]}, "tools[0].googleSearch"),
        ({"tools": [{"functionDeclarations": [], "code_execution": {}}]}, "tools[0].codeExecution"),
        (
            {"generationConfig": {"responseModalities": ["TEXT", "IMAGE"]}},
            "generationConfig.responseModalities",
        ),
        ({"generationConfig": {"responseModalities": 5}}, "generationConfig.responseModalities"),
        ({"generationConfig": {"speechConfig": {}}}, "generationConfig.speechConfig"),
        ({"generationConfig": {"maxOutputTokens": 0}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"maxOutputTokens": "x"}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"maxOutputTokens": True}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"candidateCount": 9}}, "generationConfig.candidateCount"),
        ({"generationConfig": []}, "generationConfig"),
        ({"contents": []}, "contents"),
        ({"contents": {}}, "contents"),
        ({"contents": ["x"]}, "contents[0]"),
        (
            with_parts({"inlineData": {"mimeType": "audio/wav", "data": ""}}),
            "contents[0].parts[0].inlineData.mimeType",
        ),
        (
            with_parts({"inlineData": {"mimeType": "application/pdf"}}),
            "contents[0].parts[0].inlineData.mimeType",
        ),
        *(
            (
                with_parts({"fileData": {"fileUri": uri, "mimeType": "image/png"}}),
                "contents[0].parts[0].fileData",
            )
            for uri in (
                "https://www.youtube.com/watch?v=x",
                "https://generativelanguage.googleapis.com/v1beta/files/x",
                "gs://bucket/x.png",
                "http://a/b.png",
                "https://[/",
            )
        ),
        (with_parts({"fileData": {"fileUri": "https://a/b"}}), "contents[0].parts[0].fileData"),
    ],
)
def test_what_has_no_bound_is_refused_by_name(fields: Object, place: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse(CAPPED | fields)
    assert (refused.value.status, refused.value.param) == (400, place)
    assert place in refused.value.message


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"contents":[{}],"contents":[{}]}', "contents"),
        (
            b'{"generationConfig":{"maxOutputTokens":1},"generation_config":{"topK":1},"contents":[{}]}',
            "generationConfig",
        ),
        (
            b'{"generationConfig":{"maxOutputTokens":1},"generation_config":null,"contents":[{}]}',
            "generationConfig",
        ),
        (
            b'{"generationConfig":{"maxOutputTokens":1,"maxOutputTokens":99999},"contents":[{}]}',
            "generationConfig.maxOutputTokens",
        ),
        (
            b'{"generationConfig":{"maxOutputTokens":1,"max_output_tokens":9},"contents":[{}]}',
            "maxOutputTokens",
        ),
    ],
)
def test_a_name_that_counts_and_occurs_twice_is_refused(body: bytes, place: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse(body)
    assert refused.value.param == place


def test_a_number_that_is_too_large_is_refused() -> None:
    for body in (
        b'{"contents":[{"x":1e999}]}',
        b'{"contents":[{}],"generationConfig":{"seed":%s}}' % (b"9" * 5000),
    ):
        try:
            request = parse(body)
        except ApiError as refused:
            assert refused.status == 400  # noqa: PT017
        else:
            assert request.native("mine", PASS)


def test_a_request_to_count_may_hold_a_whole_one() -> None:
    inner = CAPPED | {"model": "models/mine"}
    body = json.dumps({"generateContentRequest": inner}).encode()
    counted = gemini_request.parse_count(body, SETTINGS, model="mine")
    assert counted.counted_prompt(0) == parse(CAPPED).counted_prompt(0)
    assert gemini_request.parse_count(json.dumps(HI).encode(), SETTINGS, model="mine").counted_prompt(0) > 0
    both = json.dumps({"generateContentRequest": inner} | HI).encode()
    with pytest.raises(ApiError, match="alone"):
        gemini_request.parse_count(both, SETTINGS, model="mine")


# ---------------------------------------------------------------- between formats


def asked(ours: str, theirs: str, body: Object, model: str = "theirs") -> Object:
    """What a provider gets."""
    head = {} if ours == "gemini" else {"model": "mine", "max_tokens": 9}
    conversation = FORMATS[ours].read_request(json.dumps(head | body).encode(), drop_unknown=False)
    written: Object = json.loads(FORMATS[theirs].write_request(conversation, model, 9, PASS).body)
    return written


def of_openai(*messages: Object, model: str = "theirs", **fields: Any) -> Object:
    return asked("openai", "gemini", {"messages": list(messages)} | fields, model)


def of_anthropic(*messages: Object, **fields: Any) -> Object:
    return asked("anthropic", "gemini", {"messages": list(messages)} | fields)


USER: Object = {"role": "user", "content": "Hi?"}
USED: Object = {
    "role": "assistant",
    "content": [{"type": "tool_use", "id": name, "name": f"look_{name}", "input": {"a": 1}} for name in "tu"],
}


def result(name: str, **more: Any) -> Object:
    return {"type": "tool_result", "tool_use_id": name} | more


def test_07_results_answer_their_calls() -> None:
    written = of_anthropic(
        USER, USED, {"role": "user", "content": [result("u", content="b"), result("t", content="a")]}
    )
    assert [content["role"] for content in written["contents"]] == ["user", "model", "user"]
    assert [part["functionCall"]["name"] for part in written["contents"][1]["parts"]] == ["look_t", "look_u"]
    responses = [part["functionResponse"] for part in written["contents"][2]["parts"]]
    assert responses == [
        {"id": "u", "name": "look_u", "response": {"output": "b"}},
        {"id": "t", "name": "look_t", "response": {"output": "a"}},
    ]
    with pytest.raises(Untranslatable, match="there is no call 'x' before it"):
        of_anthropic(USER, {"role": "user", "content": [result("x", content="b")]})


def test_07_calls_without_names_are_answered_in_their_order() -> None:
    """Models before Gemini 3 name none."""
    calls: list[Object] = [{"functionCall": {"name": name, "args": {}}} for name in ("look", "hear", "look")]
    answers = [
        {"functionResponse": {"name": name, "response": {"result": text}}}
        for name, text in (("look", "1"), ("look", "2"), ("hear", "3"))
    ]
    body = {
        "contents": [
            *HI["contents"],
            {"role": "model", "parts": calls},
            {"role": "user", "parts": answers},
            {"role": "model", "parts": calls[:1]},
            {"role": "function", "parts": answers[:1]},
        ]
    }
    written = asked("gemini", "anthropic", body)["messages"]
    names = [block["id"] for block in written[1]["content"]]
    assert len(set(names)) == 3
    results = [(block["tool_use_id"], block["content"]) for block in written[2]["content"]]
    assert results == [(names[0], "1"), (names[2], "2"), (names[1], "3")]
    assert written[3]["content"][0]["id"] == written[4]["content"][0]["tool_use_id"] not in names
    assert asked("gemini", "anthropic", body)["messages"] == written  # the same names another time
    with pytest.raises(Untranslatable, match="no call of 'look' waits"):
        asked("gemini", "openai", {"contents": [{"role": "user", "parts": answers[:1]}]})


def test_11_images_of_a_tool_stay_in_its_result_and_in_their_order() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
    content = [{"type": "text", "text": "See:"}, image, {"type": "text", "text": "and"}, image]
    given = result("t", content=content)
    written = of_anthropic(USER, USED, {"role": "user", "content": [given, result("u")]})
    response = written["contents"][2]["parts"][0]["functionResponse"]
    assert response["response"] == {"output": ["See:", {"$ref": "image-1"}, "and", {"$ref": "image-2"}]}
    assert [part["inlineData"]["displayName"] for part in response["parts"]] == ["image-1", "image-2"]
    back = asked("gemini", "anthropic", written)["messages"]
    assert back[2]["content"] == [given, result("u")]


def test_12_results_that_say_nothing_and_that_failed_stay_what_they_are() -> None:
    failed = result("t", content="no such file", is_error=True)
    written = of_anthropic(USER, USED, {"role": "user", "content": [failed, result("u")]})
    responses = [part["functionResponse"]["response"] for part in written["contents"][2]["parts"]]
    assert responses == [{"error": "no such file"}, {"output": ""}]
    assert asked("gemini", "anthropic", written)["messages"][2]["content"] == [failed, result("u")]


def test_12_a_result_of_any_shape_is_told_whole() -> None:
    parts = [{"functionCall": {"name": "look", "args": {}}}]
    for response, text in (
        ({"result": "x"}, "x"),
        ({"output": {"a": [1]}}, '{"a":[1]}'),
        ({"a": 1, "b": "ü"}, '{"a":1,"b":"ü"}'),
    ):
        answer = {"functionResponse": {"name": "look", "response": response}}
        body = {
            "contents": [
                *HI["contents"],
                {"role": "model", "parts": parts},
                {"role": "user", "parts": [answer]},
            ]
        }
        assert asked("gemini", "openai", body)["messages"][-1]["content"] == text


def test_15_every_keyword_of_a_schema_stays() -> None:
    tools = [{"type": "function", "function": {"name": "look", "description": "d", "parameters": SCHEMA}}]
    written = of_openai(USER, tools=tools)
    declared = {"name": "look", "description": "d", "parametersJsonSchema": SCHEMA}
    assert written["tools"] == [{"functionDeclarations": [declared]}]
    assert asked("gemini", "openai", written)["tools"] == tools
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    config = of_openai(USER, response_format=wanted)["generationConfig"]
    assert (config["responseMimeType"], config["responseJsonSchema"]) == ("application/json", SCHEMA)
    assert asked("gemini", "openai", HI | {"generationConfig": config})["response_format"] == wanted


def test_15_strict_tools_are_called_by_their_schema() -> None:
    function = {"name": "look", "parameters": SCHEMA, "strict": True}
    tools = [{"type": "function", "function": function}]
    calling = of_openai(USER, tools=tools)["toolConfig"]["functionCallingConfig"]
    assert calling == {"mode": "VALIDATED"}
    calling = of_openai(USER, tools=tools, tool_choice="required")["toolConfig"]["functionCallingConfig"]
    assert calling == {"mode": "ANY"}  # which calls by the schema anyway


def test_15_googles_own_schemas_become_json_schema() -> None:
    own = {
        "type": "OBJECT",
        "properties": {
            "snake_case": {"type": "STRING", "nullable": True, "enum": ["a"], "format": "enum"},
            "any": {
                "anyOf": [
                    {"type": "INTEGER"},
                    {"type": "ARRAY", "items": {"type": "NUMBER"}, "minItems": "2"},
                ]
            },
        },
        "required": ["any"],
        "propertyOrdering": ["any", "snake_case"],
    }
    tools = [{"functionDeclarations": [{"name": "look", "parameters": own}]}]
    schema = asked("gemini", "openai", HI | {"tools": tools})["tools"][0]["function"]["parameters"]
    assert schema == {
        "type": "object",
        "properties": {
            "any": {
                "anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "number"}, "minItems": 2}]
            },
            "snake_case": {"type": ["string", "null"], "enum": ["a", None]},
        },
        "required": ["any"],
    }
    assert list(schema["properties"]) == ["any", "snake_case"]


def test_16_a_system_message_in_the_middle_goes_to_the_begin() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert of_openai(system, USER)["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    later = {"role": "system", "content": "And kind."}
    written = of_openai(system, USER, later, USER)
    assert written["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "And kind."}]}
    assert len(written["contents"]) == 1


@pytest.mark.parametrize(
    ("choice", "calling"),
    [
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        (
            {"type": "function", "function": {"name": "look"}},
            {"mode": "ANY", "allowedFunctionNames": ["look"]},
        ),
    ],
)
def test_choices_of_tools(choice: Any, calling: Object) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    written = of_openai(USER, tools=tools, tool_choice=choice)
    assert written["toolConfig"]["functionCallingConfig"] == calling
    assert asked("gemini", "openai", written)["tool_choice"] == choice


@pytest.mark.parametrize(
    ("fields", "model", "thinking"),
    [
        ({"reasoning_effort": "low"}, "gemini-3-pro", {"includeThoughts": True, "thinkingLevel": "low"}),
        ({"reasoning_effort": "high"}, "gemini-2.5-pro", {"includeThoughts": True, "thinkingBudget": 24576}),
        ({"reasoning_effort": "none"}, "gemini-3-pro", {"thinkingBudget": 0}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 77}},
            "x",
            {"includeThoughts": True, "thinkingBudget": 77},
        ),
        ({}, "x", None),
    ],
)
def test_how_hard_to_think(fields: Object, model: str, thinking: Object | None) -> None:
    assert of_openai(USER, model=model, **fields)["generationConfig"].get("thinkingConfig") == thinking


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"n": 2}, "n"),
        ({"seed": 2**31}, "seed"),
        ({"stop": list("abcdef")}, "stop"),
        ({"reasoning_effort": "max"}, "reasoning_effort"),
        ({"messages": [USER | {"name": "ada"}]}, "messages[0].name"),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "refusal": "No."}]},
            "messages[1].refusal",
        ),
        (
            {"parallel_tool_calls": False, "tools": [{"type": "function", "function": {"name": "look"}}]},
            "parallel_tool_calls",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b"}}]}
                ]
            },
            "messages[0].content[0]",
        ),
    ],
)
def test_what_geminis_format_cannot_say_is_refused_by_its_openai_name(fields: Object, place: str) -> None:
    with pytest.raises(Untranslatable) as caught:
        asked("openai", "gemini", {"messages": [USER]} | fields)
    assert caught.value.place == place
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"future": 1}, "future"),
        ({"generationConfig": {"future": 1}}, "generationConfig.future"),
        ({"generationConfig": {"mediaResolution": "HIGH"}}, "generationConfig.mediaResolution"),
        ({"generationConfig": {"candidateCount": 2}}, "generationConfig.candidateCount"),
        ({"generationConfig": {"responseMimeType": "text/x.enum"}}, "generationConfig.responseMimeType"),
        ({"toolConfig": {"retrievalConfig": {}}}, "toolConfig.retrievalConfig"),
        (
            {"toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["a", "b"]}}},
            "toolConfig.functionCallingConfig.allowedFunctionNames",
        ),
        (
            {"tools": [{"functionDeclarations": [{"name": "x", "behavior": "NON_BLOCKING"}]}]},
            "tools[0].functionDeclarations[0].behavior",
        ),
        (with_parts({"executableCode": {"code": "1"}}), "contents[0].parts[0].executableCode"),
        (
            with_parts({"inlineData": {"mimeType": "text/plain", "data": ""}}),
            "contents[0].parts[0].inlineData.mimeType",
        ),
        (with_parts({"text": "x", "functionCall": {"name": "look"}}), "contents[0].parts[0]"),
        (
            with_parts({"functionResponse": {"name": "x", "id": "y", "parts": ["z"]}}),
            "contents[0].parts[0].functionResponse.parts[0]",
        ),
        ({"generationConfig": {"seed": "9" * 5000}}, "generationConfig.seed"),
        (with_parts({"text": "x", "mediaResolution": {}}), "contents[0].parts[0].mediaResolution"),
    ],
)
@pytest.mark.parametrize("theirs", ["openai", "anthropic"])
def test_what_another_format_cannot_say_is_refused_by_its_gemini_name(
    theirs: str, fields: Object, place: str
) -> None:
    with pytest.raises(Untranslatable) as caught:
        asked("gemini", theirs, HI | fields)
    assert caught.value.place == place


def test_what_says_nothing_about_the_answer_is_left_out_and_named() -> None:
    body = HI | {"safetySettings": [{"category": "c", "threshold": "BLOCK_NONE"}], "store": False}
    conversation = gemini.read_request(json.dumps(body).encode(), drop_unknown=False)
    assert FORMATS["openai"].write_request(conversation, "m", 9, PASS).left_out == ["safetySettings", "store"]
    fields = {"user": "u", "metadata": {}, "cache_control": {"type": "ephemeral"}}
    body = {"model": "m", "messages": [USER]} | fields
    conversation = FORMATS["openai"].read_request(json.dumps(body).encode(), drop_unknown=False)
    written = gemini.write_request(conversation, "m", 9, PASS)
    assert sorted(written.left_out) == ["cache_control", "metadata", "user"]


def test_errors_have_googles_shape() -> None:
    error = ApiError(429, "Slow.", code="too_fast", param="x", headers={"retry-after": "7"}, extra={"n": 1})
    told = gemini.error_body(error, "r1")["error"]
    assert (told["code"], told["status"], told["message"]) == (429, "RESOURCE_EXHAUSTED", "Slow.")
    kinds = {detail["@type"].rpartition(".")[2]: detail for detail in told["details"]}
    assert kinds["RequestInfo"]["requestId"] == "r1"
    assert kinds["ErrorInfo"]["reason"] == "too_fast"
    assert kinds["ErrorInfo"]["metadata"] == {"n": "1"}
    assert kinds["BadRequest"]["fieldViolations"][0]["field"] == "x"
    assert kinds["RetryInfo"]["retryDelay"] == "7s"


@pytest.mark.parametrize(
    ("theirs", "thinking", "written"),
    [
        ("openai", {}, None),
        ("openai-responses", {}, None),
        ("anthropic", {}, 64),
        # As its API wants it: not beside thoughts.
        ("anthropic", {"thinkingConfig": {"includeThoughts": True}}, None),
        ("gemini", {}, 64),
    ],
)
def test_what_gemini_cli_always_sends_is_no_reason_to_refuse(
    theirs: str, thinking: Object, written: Any
) -> None:
    config = {"temperature": 1, "topP": 0.95, "topK": 64} | thinking
    body = {"contents": [{"role": "user", "parts": [{"text": "Hi?"}]}], "generationConfig": config}
    conversation = gemini.read_request(json.dumps(body).encode(), drop_unknown=False)
    made = FORMATS[theirs].write_request(
        conversation, "theirs", 100, Profile("max_tokens", "pass", extensions=False)
    )
    fields = json.loads(made.body)
    assert fields.get("top_k", fields.get("generationConfig", {}).get("topK")) == written
    assert ("generationConfig.topK" in made.left_out) == (written is None)
