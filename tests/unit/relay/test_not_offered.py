"""Each path that the official SDKs know is served, or refused with a reason and in its API's shape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from relay import errors
from relay.errors import ApiError
from relay.gateway import not_offered
from relay.gateway.endpoints import error_body
from relay.gateway.gemini_calls import METHODS
from tests.unit.relay.test_openapi import app

_CALLED = re.compile(r'(?:_(?:get|post|delete|put|patch|get_api_list)|path_template)\(\s*f?"(/[^"?]*)')
_GOOGLES = re.compile(r"path = '([a-z_A-Z{][^']*)'|\"(/\{api_version\}/[^\"]*)\"")
# Vertex AI has them, or they are built on the path that is refused.
_OF_VERTEX = ("batchPredictionJobs", "files/", "test/")


def sources(package: str, below: str = "") -> Iterator[str]:
    """The package's files, without an import of it or of what is above it: the SDKs take seconds."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    for place in spec.submodule_search_locations:
        for file in (Path(place) / below).rglob("*.py"):
            yield file.read_text()


def filled(path: str) -> str:
    return re.sub(r"\{[^{}]*\}", "x-1", path)


def openais() -> set[str]:
    return {f"/v1{filled(path)}" for text in sources("openai", "resources") for path in _CALLED.findall(text)}


def anthropics() -> set[str]:
    return {filled(path) for text in sources("anthropic", "resources") for path in _CALLED.findall(text)}


def googles() -> set[str]:
    """Of the Gemini API. What begins with a name that is given whole has no begin of its own here."""
    made = set()
    for text in sources("google.genai"):
        for older, newer in _GOOGLES.findall(text):
            path = newer.removeprefix("/{api_version}/") or older
            path = path.replace("{{", "{").replace("}}", "}")
            if path.startswith("{model}:"):
                made.add(f"/v1beta/models/x-1:{path.partition(':')[2].partition('?')[0]}")
            elif not path.startswith(("{", *_OF_VERTEX)):
                made.add("/" + filled(path.replace("upload/{api_version}", "upload/v1beta", 1)))
    return {path if path.startswith(("/v1beta/", "/upload/")) else f"/v1beta{path}" for path in made}


@pytest.fixture(scope="module")
def paths() -> list[str]:
    return sorted(openais() | anthropics() | googles())


def test_the_sdks_were_read(paths: list[str]) -> None:
    assert len(paths) > 300
    assert {"/v1/messages/batches", "/v1/audio/speech", "/v1beta/cachedContents", "/v1/skills/x-1"} <= {
        *paths
    }
    assert {"/v1beta/interactions", "/v1beta/models/x-1:predictLongRunning", "/upload/v1beta/files"} <= {
        *paths
    }


def test_each_path_is_served_or_refused_with_a_reason(paths: list[str]) -> None:
    serving = app()
    assert [path for path in paths if serving.find(path) is None] == []
    assert serving.find("/v1/coffee") is None


@pytest.mark.parametrize("path", [*not_offered.REASONS, *(f"{path}/x" for path in not_offered.BELOW)])
def test_a_refusal_names_the_path_and_what_to_do(path: str) -> None:
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    with pytest.raises(ApiError) as refused:
        not_offered.refuse(scope)
    body = error_body(scope, refused.value, "id")
    message = body["error"]["message"]
    assert (refused.value.status, refused.value.code) == (404, "not_offered")
    assert f"POST {path} is not offered: " in message
    assert ("status" in body["error"]) == ("v1beta" in path), "not in the shape of this API"
    assert ("type" in body) == path.startswith("/v1/messages"), "not in the shape of this API"


@pytest.mark.parametrize("method", not_offered.OF_A_MODEL)
def test_a_method_of_a_model_is_refused_with_a_reason(method: str) -> None:
    path = f"/v1beta/models/x-1:{method}"
    with pytest.raises(ApiError, match="is not offered: "):
        not_offered.refuse_of_a_model({"method": "POST", "path": path}, method)
    assert method not in METHODS


def test_a_method_that_nobody_knows_is_unknown() -> None:
    scope = {"method": "POST", "path": "/v1beta/models/x-1:makeCoffee"}
    with pytest.raises(ApiError) as refused:
        not_offered.refuse_of_a_model(scope, "makeCoffee")
    assert refused.value.code == errors.unknown_url("POST", "/").code
