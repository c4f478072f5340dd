"""Anthropic's requests: what passes, what is refused by name, and what a call can cost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ApiError
from relay.formats.anthropic_fields import IMAGE_TOKENS
from relay.formats.anthropic_request import TOKENS_A_MESSAGE, MessagesRequest, parse
from relay.providers.profiles import Profile
from relay.settings import Settings

SETTINGS = Settings.read({})
PASS, DROP, REFUSE = (Profile("max_tokens", policy) for policy in ("pass", "drop", "refuse"))
ASKED: dict[str, Any] = {
    "model": "mine",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hi?"}],
}
DATA = "iVBORw0KGgo" * 1000


def read(**change: Any) -> MessagesRequest:
    return parse(json.dumps(ASKED | change).encode(), SETTINGS)


def refusal(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(body, SETTINGS)
    return caught.value


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def test_what_is_read() -> None:
    request = read(stream=True)
    assert (request.model, request.stream, request.max_output) == ("mine", True, 100)
    assert request.choices == 1
    assert request.counted_prompt(2000) == TOKENS_A_MESSAGE + 1
    assert read(stream=None).stream is False


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n\t", " :  ")], ids=str)
@given(st.lists(st.text(max_size=8), max_size=4, unique=True), st.text(max_size=20))
def test_any_body_passes_but_for_the_models_name(
    separators: tuple[str, str], names: list[str], value: str
) -> None:
    body = json.dumps(
        {name: {"model": value, "x": [1, value]} for name in names if name not in ASKED} | ASKED,
        separators=separators,
        ensure_ascii=len(value) % 2 == 0,
    ).encode("utf-8", "replace")
    try:
        request = parse(body, SETTINGS)
    except ApiError:
        assert set(names) & {"container", "thread", "compaction"} or b"?" in body
        return
    assert request.native("mine", PASS) == body
    begin, end = request.model_at
    assert request.native("theirs", PASS) == body[:begin] + b'"theirs"' + body[end:]
    assert json.loads(request.native("theirs", PASS)) == json.loads(body) | {"model": "theirs"}


def test_unknown_fields_pass_are_dropped_or_refused() -> None:
    request = read(future={"a": 1.50})
    assert json.loads(request.native("mine", PASS))["future"] == {"a": 1.5}
    assert json.loads(request.native("theirs", DROP)) == ASKED | {"model": "theirs"}
    with pytest.raises(ApiError, match="future: Extra inputs are not permitted"):
        request.native("mine", REFUSE)
    assert read().native("mine", REFUSE) == json.dumps(ASKED).encode()


@pytest.mark.parametrize(
    "twice",
    [
        b'{"model":"a","model":"mine","max_tokens":1,"messages":[{"role":"user","content":"x"}]}',
        b'{"max_tokens":1,"model":"mine","messages":[{"role":"user","content":"x"}], "max_tokens" : 1}',
        b'{"max_tokens":1,"model":"mine","messages":[{"role":"user","content":"x"}],"max_\\u0074okens":2}',
    ],
)
def test_a_name_is_there_once(twice: bytes) -> None:
    assert "it is there twice" in refusal(twice).message


def test_tokens_of_an_image_are_held_and_not_its_bytes() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": DATA}
    inside = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": source}]}
    request = read(**user({"type": "image", "source": source}, inside))
    assert request.images == 2
    assert 2 * IMAGE_TOKENS < request.input_bound < 2 * IMAGE_TOKENS + 500


def test_no_prompt_has_more_tokens_than_its_bound() -> None:
    """A token has a byte at least, whatever the prompt is made of."""
    text = "🙂" * 100
    request = read(system=text, tools=[{"name": "a", "input_schema": {"type": "object", "title": text}}])
    assert request.input_bound >= 2 * len(text.encode())
    assert read(tools=[{"type": "bash_20250124", "name": "bash"}]).input_bound > read().input_bound + 1000
    assert read(**user({"type": "new"})).input_bound > read().input_bound + 1000


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (
            user({"type": "image", "source": {"type": "file", "file_id": "f"}}),
            "messages.0.content.0.source.type",
        ),
        (user({"type": "document", "source": {"type": "base64"}}), "messages.0.content.0.source.type"),
        (user({"type": "document", "source": {"type": "url"}}), "messages.0.content.0.source.type"),
        (user({"type": "container_upload"}), "messages.0.content.0.type"),
        (user({"text": "x"}), "messages.0.content.0.type"),
        (
            user({"type": "tool_result", "content": [{"type": "document", "source": {}}]}),
            "messages.0.content.0.content.0.source.type",
        ),
        *(({"messages": {}}, "messages"), ({"messages": ["x"]}, "messages.0")),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        *(({"system": 5}, "system"), ({"tools": {}}, "tools"), ({"tools": [5]}, "tools.0")),
        ({"tools": [{"type": "web_search_20250305"}]}, "tools.0.type"),
        ({"tools": [{"type": "code_execution_20250825"}]}, "tools.0.type"),
        *(({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens")),
        *(({"max_tokens": "9"}, "max_tokens"), ({"max_tokens": None}, "max_tokens")),
        *(({"stream": 1}, "stream"), ({"model": None}, "model"), ({"model": ""}, "model")),
        *(({"speed": "fast"}, "speed"), ({"service_tier": "priority"}, "service_tier")),
        *(({"container": "c"}, "container"), ({"fallbacks": []}, "fallbacks")),
        ({"context_management": {"edits": [{}, {"type": "compact_x"}]}}, "context_management.edits.1.type"),
    ],
)
def test_what_is_refused_is_named(change: dict[str, Any], place: str) -> None:
    error = refusal(json.dumps(ASKED | change).encode())
    assert (error.status, error.param) == (400, place)
    assert place in error.message


def test_texts_of_documents_and_typed_tools_pass() -> None:
    source = {"type": "content", "content": [{"type": "text", "text": "x"}]}
    tools = [{"type": kind, "name": "x"} for kind in ("bash_20250124", "computer_20251124", "custom")]
    edits = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    read(**user({"type": "document", "source": source}), tools=tools, context_management=edits)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "source", "content", "edits", "role", "text", "input", "data", "x"]),
            inner,
        )
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from([*ASKED, "system", "tools", "stream", "speed", "context_management"]), ANYTHING
    )
)
def test_whatever_comes_is_read_or_refused(fields: dict[str, Any]) -> None:
    for body in (fields, ASKED | fields):
        try:
            request = parse(json.dumps(body).encode("utf-8", "replace"), SETTINGS)
        except ApiError as error:
            assert error.status == 400  # noqa: PT017
        else:
            assert request.input_bound > 0
            assert request.counted_prompt(2000) > 0


@given(st.binary(max_size=60))
def test_whatever_bytes_come(body: bytes) -> None:
    assert refusal(body).status == 400
