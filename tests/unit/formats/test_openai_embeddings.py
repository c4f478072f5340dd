"""Requests for embeddings: what is read of them, and what they can cost at most."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ApiError
from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.openai_embeddings import API, parse
from relay.providers.profiles import Profile
from relay.settings import Settings

SETTINGS = Settings.read({})
PASS, DROP, REFUSE = (Profile("max_tokens", policy) for policy in ("pass", "drop", "refuse"))
INPUTS: Any = (
    st.text()
    | st.lists(st.integers(0, 10**6), min_size=1)
    | st.lists(st.text() | st.lists(st.integers(0, 10**6), min_size=1), min_size=1)
)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "Hi?"} | fields).encode()


@given(INPUTS)
def test_what_is_held_covers_every_token(given: Any) -> None:
    request = parse(body(input=given), SETTINGS)
    one = isinstance(given, str) or isinstance(given[0], int)
    least = sum(len(text.encode()) if isinstance(text, str) else len(text) for text in [given] if one)
    least += 0 if one else sum(len(text.encode()) if isinstance(text, str) else len(text) for text in given)
    assert request.input_bound >= least
    assert 0 <= request.counted <= request.input_bound
    assert request.max_usage().max_output == 0


def test_bytes_pass_as_they_came_but_for_the_model() -> None:
    sent = b'{ "input":["a",\n"b"],"encoding_format":"base64", "model" : "m","new":1}'
    request = parse(sent, SETTINGS)
    assert request.native("m", PASS) == sent
    assert request.native("theirs", PASS) == sent.replace(b'"m"', b'"theirs"')
    assert "new" not in json.loads(request.native("m", DROP))
    with pytest.raises(ApiError, match="new"):
        request.native("m", REFUSE)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        *(({"input": None}, "input"), ({"input": []}, "input"), ({"input": 7}, "input")),
        *(({"input": ["a", 7]}, "input[1]"), ({"input": [[]]}, "input[0]"), ({"input": [True]}, "input[0]")),
        *(({"model": ""}, "model"), ({"model": None}, "model")),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(body(**fields), SETTINGS)
    assert (caught.value.status, caught.value.param) == (400, place)


def test_a_name_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ApiError, match="twice"):
        parse(b'{"model": "m", "input": "cheap", "input": "dear"}', SETTINGS)


def test_answers() -> None:
    answer = API.read_whole(b'{"data": [{"embedding": [1]}], "usage": {"prompt_tokens": 3}}')
    assert (answer.usage, answer.empty, answer.estimate()) == ({"prompt_tokens": 3}, False, 1)
    packed = API.read_whole(b'{"data": [{"embedding": "AAAA"}]}')
    assert (packed.usage, packed.estimate()) == (None, 1)
    for refused in (b'{"error": {"message": "no"}}', b"{}"):
        with pytest.raises(ErrorAnswer):
            API.read_whole(refused)
    vectors = (b"[]", b"{}", b"null", b"[{}]", b"[5]", b'[{"embedding": []}]', b'[{"embedding": [1]}, {}]')
    for nothing in (
        b"<html>",
        b"[]",
        *(b'{"data": %s, "usage": {"prompt_tokens": 3}}' % one for one in vectors),
    ):
        with pytest.raises(BadAnswer):
            API.read_whole(nothing)
