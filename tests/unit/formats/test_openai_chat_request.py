"""Reading a chat request: what is refused names its field, and the bounds bound."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ApiError
from relay.formats.json_depth import check_depth
from relay.formats.openai_chat_request import ChatMessage, parse, prompt_estimate
from relay.formats.text_estimate import split_text, text_estimate
from relay.settings import Settings

SETTINGS = Settings.read({})
USER = {"role": "user", "content": "hello"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def refused(raw: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(raw, SETTINGS)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"model": 3}, "model", "Expected `str`"),
        ({"model": ""}, "model", "1 to 200"),
        ({"messages": []}, "messages", "must not be empty"),
        ({"messages": "hi"}, "messages", "Expected `array`"),
        ({"messages": [{"content": "x"}]}, "messages[0]", "role"),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content", "Expected"),
        ({"max_tokens": 0}, "max_tokens", "between 1 and"),
        ({"max_tokens": 2.5}, "max_tokens", "Expected"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "not both"),
        ({"n": 129}, "n", "between 1 and 128"),
        ({"stream": "yes"}, "stream", "Expected `bool | null`"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed with stream"),
        ({"audio": {"voice": "x"}}, "audio", "not supported"),
        ({"web_search_options": {}}, "web_search_options", "no price"),
        ({"modalities": ["text", "audio"]}, "modalities", "has a price"),
        ({"service_tier": "priority"}, "service_tier", "no price"),
        ({"best_of": 3}, "best_of", "use n"),
        ({"nonsense": 1}, "nonsense", "Unrecognized request argument supplied: nonsense"),
    ],
)
def test_a_refusal_names_the_field(changes: dict[str, Any], param: str, says: str) -> None:
    error = refused(body(**changes))
    assert error.param == param
    assert says in error.message


def test_a_missing_field_is_named() -> None:
    assert refused(b'{"messages":[]}').param == "model"
    assert refused(b'{"model":"m"}').param == "messages"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model":"m",}'])
def test_a_body_that_is_no_object_is_refused(raw: bytes) -> None:
    assert refused(raw).code == "invalid_json"


def test_an_unpriced_part_is_named() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_audio", "input_audio": {}}]
    error = refused(body(messages=[{"role": "user", "content": parts}]))
    assert error.param == "messages[0].content[1].type"


def test_depth_is_bounded_but_brackets_in_text_do_not_count() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    assert refused(body(metadata=deep)).code == "too_deep"
    parse(body(messages=[{"role": "user", "content": '[{"\\' * 500}]), SETTINGS)


def test_extremely_deep_json_is_refused_and_not_a_crash() -> None:
    assert refused(b'{"model":' + b"[" * 200_000).status == 400


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_depth_agrees_with_a_walk(value: Any) -> None:
    def depth(node: Any) -> int:
        if isinstance(node, dict):
            return 1 + max(map(depth, node.values()), default=0)
        return 1 + max(map(depth, node), default=0) if isinstance(node, list) else 0

    real = depth(value)
    check_depth(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), real)
    if real:
        with pytest.raises(ApiError):
            check_depth(json.dumps(value).encode(), real - 1)


def test_bounds_multiply_by_the_choices() -> None:
    request = parse(body(n=3, max_tokens=100), SETTINGS)
    assert (request.max_output, request.choices, request.output_is_capped) == (300, 3, True)
    request = parse(body(n=2), SETTINGS)
    assert (request.max_output, request.output_is_capped) == (2 * SETTINGS.default_max_output, False)


@given(st.text(min_size=1))
def test_the_input_bound_covers_every_byte_of_the_prompt(text: str) -> None:
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    request = parse(raw, SETTINGS)
    assert request.input_bound >= len(text.encode("utf-8", "surrogatepass"))
    assert request.input_bound >= prompt_estimate(request.messages)


def test_tools_and_images_count_into_the_bound() -> None:
    plain = parse(body(), SETTINGS).input_bound
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert parse(body(tools=[tool]), SETTINGS).input_bound == plain + len(json.dumps([tool]))
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}
    request = parse(body(messages=[image]), SETTINGS)
    assert request.images == 1
    assert request.input_bound > SETTINGS.image_hold_tokens


def test_a_field_sent_twice_reaches_the_vendor_once() -> None:
    request = parse(b'{"model":"cheap","model":"dear","messages":[{"role":"user"}]}', SETTINGS)
    assert request.model == "dear"
    assert bytes(request.fields["model"]) == b'"dear"'


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("abcd", 1), ("abcde", 2), ("你好", 2), ("ab你cd", 2), ("é" * 3, 3)]
)
def test_estimate(text: str, tokens: int) -> None:
    assert text_estimate(*split_text(text)) == tokens


def test_prompt_estimate_counts_messages_and_parts() -> None:
    assert prompt_estimate([ChatMessage(role="user", content="abcdefgh"), ChatMessage(role="user")]) == 10
