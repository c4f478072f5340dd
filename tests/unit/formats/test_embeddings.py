"""Embeddings between OpenAI's format and Gemini's: what is asked, what comes back, what is refused."""

from __future__ import annotations

import base64
import copy
import json
import struct
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ApiError
from relay.formats import gemini_embeddings, openai_embeddings
from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.conversation import Untranslatable
from relay.formats.embeddings import Embedder, EmbeddingRequest, Vectors
from relay.settings import Settings
from tests.unit.formats.test_translation_fuzz import ODD, mutated, replaced

SETTINGS = Settings.read({})
ITEM: dict[str, Any] = {
    "model": "models/m",
    "content": {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
    "outputDimensionality": 16,
    "taskType": "TASK_TYPE_UNSPECIFIED",
}
REQUESTS: dict[str, Any] = {
    "openai": {"model": "m", "input": ["a", "b"], "dimensions": 4, "encoding_format": "float", "user": "u"},
    "one": ITEM,
    "batch": {"requests": [ITEM, ITEM]},
}
ANSWERS: dict[str, Any] = {
    "openai": {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": [0.5, -1]} for index in range(2)],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    },
    "batch": {"embeddings": [{"values": [0.5, -1]}] * 2, "usageMetadata": {"promptTokenCount": 3}},
}
EMBEDDERS: dict[str, Embedder] = {"openai": openai_embeddings, "batch": gemini_embeddings}
PARSERS: dict[str, Any] = {
    "openai": openai_embeddings.parse,
    "one": partial(gemini_embeddings.parse, model="m", batch=False),
    "batch": partial(gemini_embeddings.parse, model="m", batch=True),
}


def read(name: str, body: Any) -> EmbeddingRequest:
    request: EmbeddingRequest = PARSERS[name](json.dumps(body).encode(), SETTINGS)
    return request


def written(name: str, changes: dict[str, Any], drop: bool = False) -> tuple[Any, list[str]]:
    """What the provider of the other format is asked, and what is left out."""
    asked = read(name, REQUESTS[name] | changes).embedding(drop)
    other = gemini_embeddings if name == "openai" else openai_embeddings
    return json.loads(other.write_request(asked, "theirs")), asked.left_out


def gemini_request(text: str, **more: Any) -> Any:
    return {"model": "models/theirs", "content": {"parts": [{"text": text}]}} | more


def test_a_request_of_openais_is_written_for_gemini() -> None:
    body, left_out = written("openai", {})
    sized = {"outputDimensionality": 4}
    assert body == {"requests": [gemini_request(text, **sized) for text in "ab"]}
    assert left_out == ["user"]
    assert written("openai", {"input": "x", "dimensions": None, "user": None}) == (
        {"requests": [gemini_request("x")]},
        [],
    )
    assert written("openai", {"new": 1}, drop=True)[1] == ["new", "user"]


@pytest.mark.parametrize("name", ["one", "batch"])
def test_a_request_of_geminis_is_written_for_openai(name: str) -> None:
    wanted: Any = {"model": "theirs", "input": ["ab"] * (1 + (name == "batch")), "encoding_format": "float"}
    assert written(name, {}) == (wanted | {"dimensions": 16}, [])
    assert written(name, {"new": 1}, drop=True) == (wanted | {"dimensions": 16}, ["new"])


@pytest.mark.parametrize("size", [None, 5, 5.0, "5"])
def test_a_size_is_a_number_or_left_to_the_model(size: Any) -> None:
    assert written("one", {"outputDimensionality": size})[0].get("dimensions") == (size and 5)
    assert written("batch", {"requests": [{"content": ITEM["content"]}]})[0].keys().isdisjoint({"dimensions"})


NO_ENCODINGS: list[Any] = ["ubinary", 5, [], {"a": 1}]
NO_SIZES: list[Any] = ["4", 1.5, True, [], {}]
NO_FIELD = "the provider of this model has no such field; leave it out"


@pytest.mark.parametrize(
    ("name", "changes", "place", "remedy"),
    [
        ("openai", {"new": 1}, "new", NO_FIELD),
        ("openai", {"input": [1, 2]}, "input", "the provider of this model takes texts, and no tokens"),
        ("openai", {"input": ["x", [1]]}, "input", "the provider of this model takes texts, and no tokens"),
        ("openai", {"input": ["x"] * 101}, "input", "the provider of this model takes 100 texts at a time"),
        *(
            ("openai", {"encoding_format": odd}, "encoding_format", "use one of float, base64")
            for odd in NO_ENCODINGS
        ),
        *(("openai", {"dimensions": odd}, "dimensions", "expected a whole number") for odd in NO_SIZES),
        ("one", {"taskType": "CLUSTERING"}, "taskType", NO_FIELD),
        ("one", {"taskType": {}}, "taskType", NO_FIELD),
        ("one", {"title": "T"}, "title", NO_FIELD),
        ("one", {"new": 1}, "new", NO_FIELD),
        ("one", {"content": ITEM["content"] | {"new": 1}}, "content.new", NO_FIELD),
        ("batch", {"requests": [ITEM, ITEM | {"title": "T"}]}, "requests[1].title", NO_FIELD),
        (
            "batch",
            {"requests": [ITEM, ITEM | {"taskType": "CLUSTERING"}]},
            "requests[1].taskType",
            NO_FIELD,
        ),
        (
            "batch",
            {"requests": [ITEM, ITEM | {"outputDimensionality": 8}]},
            "requests[1].outputDimensionality",
            "the provider of this model takes the same for all texts",
        ),
        ("batch", {"newer": 1}, "newer", NO_FIELD),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_other_format_cannot_say_is_refused_by_name(
    name: str, changes: dict[str, Any], place: str, remedy: str
) -> None:
    with pytest.raises(Untranslatable) as caught:
        written(name, changes)
    assert (caught.value.place, str(caught.value)) == (place, f"{place}: {remedy}")


MADE = Vectors([[0.5, -1.0], [0.25, 2]], 3)


def test_an_answer_for_openais_customer() -> None:
    told = json.loads(read("openai", REQUESTS["openai"]).write_answer(MADE))
    assert told == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]},
            {"object": "embedding", "index": 1, "embedding": [0.25, 2]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    packed = read("openai", REQUESTS["openai"] | {"encoding_format": "base64", "input": ["x" * 40, "y" * 4]})
    answer = json.loads(packed.write_answer(Vectors(MADE.vectors, None)))
    data = base64.b64decode(answer["data"][1]["embedding"])
    assert struct.unpack("<2f", data) == (0.25, 2.0)
    assert answer["usage"] == {"prompt_tokens": 11, "total_tokens": 11}  # counted, as they are charged


def test_an_answer_for_geminis_customer() -> None:
    usage = {"usageMetadata": {"promptTokenCount": 3}}
    one = json.loads(read("one", ITEM).write_answer(Vectors([[0.5]], 3)))
    assert one == {"embedding": {"values": [0.5]}} | usage
    shown: Any = {"embeddings": [{"values": vector} for vector in MADE.vectors]}
    batch = read("batch", REQUESTS["batch"])
    assert json.loads(batch.write_answer(MADE)) == shown | usage
    assert json.loads(batch.write_answer(Vectors(MADE.vectors, None))) == shown


@pytest.mark.parametrize("name", ANSWERS)
def test_vectors_of_a_provider(name: str) -> None:
    made = EMBEDDERS[name].read_vectors(json.dumps(ANSWERS[name]).encode())
    assert made == Vectors([[0.5, -1.0]] * 2, 3)


def test_openais_vectors_go_by_their_index() -> None:
    data = [{"index": 1, "embedding": [1]}, {"index": 0, "embedding": [0.5]}]
    body = json.dumps({"data": data, "usage": {"total_tokens": 7}}).encode()
    assert openai_embeddings.read_vectors(body) == Vectors([[0.5], [1.0]], 7)


@pytest.mark.parametrize("usage", [None, {}, [], 5, {"prompt_tokens": "x", "promptTokenCount": -1}])
@pytest.mark.parametrize("name", ANSWERS)
def test_usage_that_cannot_be_read_is_none(name: str, usage: Any) -> None:
    field = "usage" if name == "openai" else "usageMetadata"
    body = json.dumps(ANSWERS[name] | {field: usage}).encode()
    assert EMBEDDERS[name].read_vectors(body).prompt_tokens is None


@pytest.mark.parametrize(
    "vector",
    [
        *("[]", "null", "{}", '"AAAA"', "[null]", '["1"]', "[true]", "[NaN]", "[1e39]", "[-1e39]", "[1e400]"),
        "[[1]]",
    ],
)
@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_no_vector_is_a_bad_answer(name: str, vector: str) -> None:
    body = json.dumps(ANSWERS[name]).replace("[0.5, -1]", vector, 1).encode()
    with pytest.raises(BadAnswer):
        EMBEDDERS[name].read_vectors(body)


def answered(name: str, answer: Any) -> None:
    """Read as in a call, first for the bill, then for the customer; only what is expected is raised."""
    body = json.dumps(answer).encode()
    embedder = EMBEDDERS[name]
    request = read(
        "batch" if name == "openai" else "openai", REQUESTS["batch" if name == "openai" else "openai"]
    )
    try:
        whole = embedder.api_of(request).read_whole(body)
        assert whole.estimate() > 0
        made = embedder.read_vectors(body)
        assert json.loads(request.write_answer(made))
    except (BadAnswer, ErrorAnswer):
        pass


def asked(name: str, body: Any, drop: bool) -> None:
    """Read and written as in a call; only what is expected is raised."""
    try:
        request = read(name, body)
        assert request.counted_prompt(0) >= 0
        assert json.loads(request.document())
        made = request.embedding(drop)
        for embedder in EMBEDDERS.values():
            assert json.loads(embedder.write_request(made, "theirs"))
        assert request.count == len(made.texts)
        assert json.loads(request.write_answer(Vectors([[0.5]] * request.count, None)))
    except (ApiError, Untranslatable) as refusal:
        assert str(refusal)  # noqa: PT017


@pytest.mark.parametrize("name", REQUESTS)
@given(st.data(), st.booleans())
def test_any_request_is_read_or_refused(name: str, data: st.DataObject, drop: bool) -> None:
    asked(name, data.draw(mutated(REQUESTS[name])), drop)


@pytest.mark.parametrize("name", ANSWERS)
@given(st.data())
def test_any_answer_is_read_or_bad(name: str, data: st.DataObject) -> None:
    answered(name, data.draw(mutated(ANSWERS[name])))


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_each_value_may_be_of_another_type(value: Any) -> None:
    for name, request in REQUESTS.items():
        for changed in replaced(copy.deepcopy(request), value):
            for drop in (False, True):
                asked(name, changed, drop)
    for name, answer in ANSWERS.items():
        for changed in replaced(copy.deepcopy(answer), value):
            answered(name, changed)


@pytest.mark.parametrize("raw", [b"1e999", b"-1e999", b"9" * 5000, b"[" * 40 + b"]" * 40])
@pytest.mark.parametrize("field", ["dimensions", "encoding_format", "user", "input", "new"])
def test_numbers_that_are_too_large_are_refused(field: str, raw: bytes) -> None:
    fields = {name: json.dumps(value).encode() for name, value in REQUESTS["openai"].items()}
    body = b",".join(b'"%s":%s' % (name.encode(), value) for name, value in (fields | {field: raw}).items())
    try:
        openai_embeddings.parse(b"{" + body + b"}", SETTINGS).embedding(drop_unknown=True)
    except (ApiError, Untranslatable) as refusal:
        assert field in str(refusal)  # noqa: PT017
