"""Gemini's requests for embeddings: what is read of them, what is refused, what they can cost at most."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ApiError
from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.gemini_embeddings import BATCH, SINGLE, EmbedRequest, api_of, parse
from relay.providers.profiles import Profile
from relay.settings import Settings

SETTINGS = Settings.read({})
PASS, DROP, REFUSE = (Profile("max_tokens", policy) for policy in ("pass", "drop", "refuse"))
HI: dict[str, Any] = {"content": {"parts": [{"text": "Hi?"}]}}


def read(body: Any, *, batch: bool = False, model: str = "m") -> EmbedRequest:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse(sent, SETTINGS, model=model, batch=batch)


def refusal(body: Any, *, batch: bool = False, model: str = "m") -> tuple[str | None, str]:
    with pytest.raises(ApiError) as caught:
        read(body, batch=batch, model=model)
    assert caught.value.status == 400
    return caught.value.param, caught.value.message


@given(st.lists(st.lists(st.text(), min_size=1), min_size=1))
def test_what_is_held_covers_every_token(contents: list[list[str]]) -> None:
    items = [{"content": {"parts": [{"text": text} for text in texts]}} for texts in contents]
    request = read({"requests": items}, batch=True)
    assert request.input_bound >= sum(len(text.encode()) for texts in contents for text in texts)
    assert 0 <= request.counted_prompt(0) <= request.input_bound
    assert (request.count, request.max_usage().max_output) == (len(contents), 0)


def test_a_title_is_counted() -> None:
    title = {"title": "x" * 40}
    assert read(HI | title).counted_prompt(0) == read(HI).counted_prompt(0) + 10
    assert read(HI | {"title": 5}).counted_prompt(0) == read(HI).counted_prompt(0)


@pytest.mark.parametrize("policy", [PASS, DROP, REFUSE], ids=lambda policy: policy.unknown_fields)
@pytest.mark.parametrize("batch", [False, True], ids=["one", "batch"])
def test_bytes_pass_as_they_came_but_for_the_model(policy: Profile, batch: bool) -> None:
    item = b'{ "model": "models/m","task_type" :"CLUSTERING", "output_dimensionality":"16",\n"title":"T",'
    item += b'"content":{"role":"user", "parts":[{"text":"\\u00fc \\"model\\": \\"m\\""}]}}'
    sent = b'{"requests" : [' + item + b", " + item + b"] }" if batch else item
    request = read(sent, batch=batch)
    assert request.native("m", policy) == sent
    assert request.native("theirs", policy) == sent.replace(b'"models/m"', b'"models/theirs"')
    assert api_of(request) is (BATCH if batch else SINGLE)


@pytest.mark.parametrize("batch", [False, True], ids=["one", "batch"])
def test_unknown_fields_go_by_the_channels_setting(batch: bool) -> None:
    item = HI | {"model": "m", "new": 1, "taskType": "CLUSTERING"}
    body = {"requests": [item], "newer": 2} if batch else item
    request = read(body, batch=batch)
    assert json.loads(request.native("m", PASS)) == body
    known = HI | {"model": "models/theirs", "taskType": "CLUSTERING"}
    assert json.loads(request.native("theirs", DROP)) == ({"requests": [known]} if batch else known)
    with pytest.raises(ApiError) as caught:
        request.native("m", REFUSE)
    assert caught.value.message == 'Invalid JSON payload received. Unknown name "new": Cannot find field.'
    assert (caught.value.param, caught.value.code) == ("new", "unknown_parameter")


LONG = "x" * 150
NO_SIZES: list[Any] = [0, -1, 1.5, True, "many", [], {}, 2**31, 10**30]
ERRORS: list[tuple[Any, str, str]] = [
    ({}, "content.parts", "content.parts: give the text here."),
    ({"content": {"parts": []}}, "content.parts", "content.parts: give the text here."),
    ({"content": "Hi?"}, "content", "Invalid value at 'content': expected an object."),
    ({"content": {"parts": "Hi?"}}, "content.parts", "Invalid value at 'content.parts': expected a list."),
    (
        {"content": {"parts": ["Hi?"]}},
        "content.parts[0]",
        "Invalid value at 'content.parts[0]': expected an object.",
    ),
    (
        {"content": {"parts": [{}]}},
        "content.parts[0].text",
        "Invalid value at 'content.parts[0].text': expected a string.",
    ),
    (
        {"content": {"parts": [{"text": 5}]}},
        "content.parts[0].text",
        "Invalid value at 'content.parts[0].text': expected a string.",
    ),
    (
        {"content": {"parts": [{"text": "x"}, {"inline_data": {"mimeType": "image/png", "data": "aa"}}]}},
        "content.parts[1].inlineData",
        "content.parts[1].inlineData: it has no price here; send its text.",
    ),
    (
        {"content": {"parts": [{LONG: 1}]}},
        f"content.parts[0].{LONG[:100]}",
        f"content.parts[0].{LONG[:100]}: it has no price here; send its text.",
    ),
    (HI | {"model": "other"}, "model", "model: it is another one than the URL names; leave it out."),
    (HI | {"model": {"m": 1}}, "model", "model: it is another one than the URL names; leave it out."),
    *(
        (
            HI | {"outputDimensionality": size},
            "outputDimensionality",
            "outputDimensionality: use a whole number from 1 to 2147483647.",
        )
        for size in NO_SIZES
    ),
    (
        HI | {"embed_content_config": {"taskType": "CLUSTERING"}},
        "embedContentConfig",
        "embedContentConfig: not supported: put outputDimensionality, taskType and title beside content.",
    ),
    (
        HI | {"taskType": "CLUSTERING", "task_type": "CLUSTERING"},
        "taskType",
        "taskType: it is there in two notations; send it once.",
    ),
]


@pytest.mark.parametrize(("body", "place", "message"), ERRORS, ids=lambda value: str(value)[:50])
def test_errors_name_the_field(body: Any, place: str, message: str) -> None:
    assert refusal(body) == (place, message)


@pytest.mark.parametrize(("body", "place", "message"), ERRORS[:-1], ids=lambda value: str(value)[:50])
def test_errors_of_a_batch_name_its_request(body: Any, place: str, message: str) -> None:
    told = refusal({"requests": [HI, body]}, batch=True)
    assert told == (f"requests[1].{place}", message.replace(place, f"requests[1].{place}"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        *(({}, "requests: give at least one."), ({"requests": []}, "requests: give at least one.")),
        ({"requests": None}, "requests: give at least one."),
        ({"requests": {"0": HI}}, "Invalid value at 'requests': expected a list."),
        ({"requests": "Hi?"}, "Invalid value at 'requests': expected a list."),
    ],
)
def test_a_batch_without_requests(body: Any, message: str) -> None:
    assert refusal(body, batch=True) == ("requests", message)


def test_a_request_of_a_batch_is_an_object() -> None:
    place = "requests[1]"
    assert refusal({"requests": [HI, 5]}, batch=True) == (
        place,
        f"Invalid value at '{place}': expected an object.",
    )


def test_a_name_that_occurs_twice_is_refused() -> None:
    body = b'{"content": {"parts": [{"text": "cheap"}]}, "content": {"parts": [{"text": "dear"}]}}'
    assert refusal(body) == ("content", "content: it is there twice; send it once.")
    assert refusal(HI, model="m" * 201)[0] == "model"


def test_answers() -> None:
    usage = {"promptTokenCount": 3}
    one = SINGLE.read_whole(b'{"embedding": {"values": [0.5]}, "usageMetadata": {"promptTokenCount": 3}}')
    assert (one.usage, one.empty, one.estimate()) == (usage, False, 1)
    two = BATCH.read_whole(b'{"embeddings": [{"values": [0.5]}, {"values": [1]}]}')
    assert (two.usage, two.empty, two.estimate()) == (None, False, 2)


@pytest.mark.parametrize("found", [None, {}, [], 5, "x", {"values": []}, {"values": None}, {"values": {}}])
def test_an_answer_without_vectors_is_none(found: Any) -> None:
    with pytest.raises(BadAnswer, match="no vectors"):
        SINGLE.read_whole(json.dumps({"embedding": found}).encode())
    batches = ([found], [{"values": [0.5]}, found], found)
    for batch in batches:
        with pytest.raises(BadAnswer, match="no vectors"):
            BATCH.read_whole(json.dumps({"embeddings": batch}).encode())


@pytest.mark.parametrize("api", [SINGLE, BATCH])
def test_what_is_no_answer(api: Any) -> None:
    for refused in (b'{"error": {"message": "no"}}', b"{}", b'{"candidates": []}'):
        with pytest.raises(ErrorAnswer):
            api.read_whole(refused)
    for nothing in (b"<html>", b"[]", b"null", b""):
        with pytest.raises(BadAnswer):
            api.read_whole(nothing)
