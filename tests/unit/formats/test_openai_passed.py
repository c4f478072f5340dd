"""Completions, moderations and rerankings: what is read of them, what passes, what they can cost at most."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ApiError
from relay.formats import openai_completions, openai_moderations, openai_rerank
from relay.formats.answer import ErrorAnswer
from relay.formats.openai_chat_stream import StreamMeter
from relay.providers.profiles import Profile
from relay.settings import Settings

SETTINGS = Settings.read({})
PASS = Profile("max_tokens", "pass")


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m"} | fields).encode()


def completion(**fields: Any) -> openai_completions.CompletionRequest:
    return openai_completions.parse(body(prompt="Hi?", **fields), SETTINGS)


def test_a_completion_passes_as_it_came_where_it_says_its_limit() -> None:
    sent = b'{ "prompt":"Hi?", "model" : "m", "max_tokens":7,"new":[1.50] }'
    request = openai_completions.parse(sent, SETTINGS)
    assert request.native("m", PASS) == sent
    assert request.native("theirs", PASS) == sent.replace(b'"m"', b'"theirs"')


def test_a_completion_gets_openais_limit_and_tells_its_usage() -> None:
    sent = json.loads(completion(stream=True, max_tokens=None).native("m", PASS))
    assert (sent["max_tokens"], sent["stream_options"]) == (16, {"include_usage": True})
    asked = completion(stream=True, stream_options={"include_usage": True, "x": 1})
    assert json.loads(asked.native("m", PASS))["stream_options"] == {"include_usage": True, "x": 1}
    assert (asked.include_usage, completion(stream=True).include_usage) == (True, False)
    refused = completion(stream=True, stream_options={"include_usage": False, "x": 1})
    assert json.loads(refused.native("m", PASS))["stream_options"] == {"include_usage": True, "x": 1}


@given(st.integers(1, 128), st.integers(1, 20), st.integers(1, 5), st.integers(1, 1000))
def test_a_completions_output_is_that_of_all_it_makes(n: int, best: int, prompts: int, limit: int) -> None:
    given = body(prompt=["x"] * prompts, n=n, best_of=best, max_tokens=limit)
    request = openai_completions.parse(given, SETTINGS)
    assert request.max_output == limit * max(n, best) * prompts
    assert request.choices == n * prompts


def test_completions_are_counted_by_their_texts() -> None:
    chunk = {"choices": [{"index": 0, "text": "abcd ü", "finish_reason": None}]}
    end = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": None}
    meter = StreamMeter(keep_usage_chunk=False)
    sent = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in (chunk, end)]
    assert meter.feed(b"".join(sent)) == sent[0]
    assert (meter.estimate(), meter.finished) == (2 + 1, True)
    whole = {"choices": [{"index": 0, "text": "abcd ü", "finish_reason": "length"}]}
    assert openai_completions.API.read_whole(json.dumps(whole).encode()).estimate() == 2 + 1


def test_a_moderation_is_one_call_whatever_it_holds() -> None:
    request = openai_moderations.parse(body(input=["x" * 1000, {"type": "image_url"}]), SETTINGS)
    most = request.max_usage()
    assert (most.input_units, most.max_output, most.others) == (0, 0, {"call": 1})
    answer = openai_moderations.API.read_whole(b'{"results": [{"flagged": false}]}')
    assert answer.usage == {"meters": {"call": 1}}
    with pytest.raises(ErrorAnswer):
        openai_moderations.API.read_whole(b'{"error": {"message": "no"}}')


@given(st.text(), st.lists(st.text() | st.builds(lambda text: {"text": text}, st.text()), min_size=1))
def test_a_reranking_is_held_with_its_query_for_each_document(query: str, documents: list[Any]) -> None:
    request = openai_rerank.parse(body(query=query, documents=documents), SETTINGS)
    texts = [one if isinstance(one, str) else one["text"] for one in documents]
    assert request.input_bound >= sum(len(text.encode()) + len(query.encode()) for text in texts)
    assert request.counted <= request.input_bound


@pytest.mark.parametrize(
    ("module", "fields", "place"),
    [
        (openai_completions, {"prompt": ["a", 7]}, "prompt[1]"),
        (openai_completions, {"prompt": "x", "n": 0}, "n"),
        (openai_completions, {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        (openai_rerank, {"query": 5, "documents": ["x"]}, "query"),
        (openai_rerank, {"query": "x", "documents": "x"}, "documents"),
        (openai_moderations, {"input": None}, "input"),
    ],
)
def test_errors_name_the_field(module: Any, fields: dict[str, Any], place: str) -> None:
    with pytest.raises(ApiError) as caught:
        module.parse(body(**fields), SETTINGS)
    assert (caught.value.status, caught.value.param) == (400, place)
