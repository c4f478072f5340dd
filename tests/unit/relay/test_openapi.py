"""The OpenAPI document says what is served, and nothing else."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast, get_type_hints

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from relay import errors, openapi
from relay.api import pricing
from relay.app import App
from relay.errors import ApiError
from relay.formats import (
    anthropic_fields,
    gemini_embeddings,
    gemini_fields,
    openai_chat_fields,
    openai_responses_fields,
    registry,
)
from relay.gateway import not_offered
from relay.gateway.endpoints import gemini_method
from relay.settings import Settings
from relay.telemetry.metrics import Metrics

DOCUMENT = openapi.document()
REQUEST_ID = "0192-4711"
# What the edge passes to nobody: for orchestrators and administrators inside the fleet.
INSIDE = {"/livez", pricing.PREFIX}
SHAPES = {"openai": "OpenAI", "openai-responses": "OpenAI", "anthropic": "Anthropic", "gemini": "Gemini"}


def app() -> App:
    services = cast(Any, SimpleNamespace(settings=Settings.read({}), metrics=Metrics()))
    return App(services, cast(Any, None), cast(Any, None))


def fits(name: str, value: Any) -> bool:
    """Whether ``value`` is as the schema called ``name`` says."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return bool(OAS31Validator(schema).is_valid(value))


def test_it_is_valid() -> None:
    assert list(OpenAPIV31SpecValidator(json.loads(json.dumps(DOCUMENT))).iter_errors()) == []


def test_what_is_routed_is_described() -> None:
    served = dict(app().exact_paths())
    offered = served.keys() - INSIDE - not_offered.REASONS.keys()
    described = DOCUMENT["paths"]
    assert {path for path in described if "{" not in path} == offered | {f"{pricing.PREFIX}/quote"}
    for path in offered:
        assert set(described[path]) == {method.lower() for method in served[path]}, path
    below = set(app().prefixes()) - {
        f"{path}{end}" for path in [*INSIDE, *not_offered.REASONS, *not_offered.BELOW] for end in "/:"
    }
    assert below == {path.partition("{")[0] for path in described if "{" in path}


def test_what_is_described_is_routed() -> None:
    serving = app()
    for path, operations in DOCUMENT["paths"].items():
        route = serving.find(path.replace("{model}", "org/model-1"))
        assert route is not None, path
        assert {method.lower() for method in route.methods} >= set(operations), path


def test_each_method_of_a_model_is_one_of_gemini() -> None:
    methods = [path for path in DOCUMENT["paths"] if ":" in path]
    assert len(methods) >= 6
    assert all(gemini_method(path.replace("{model}", "m"))[1] == path.rpartition(":")[2] for path in methods)


@given(st.text(min_size=1), st.sampled_from(["/v1", "/v1beta"]))
@example("two\nlines", "/v1")
def test_a_models_method_is_found_whatever_the_model_is_called(model: str, version: str) -> None:
    path = f"{version}/models/{model.lstrip('/')}:streamGenerateContent"
    assert gemini_method(path) == (model.lstrip("/"), "streamGenerateContent")


def test_what_is_not_offered_is_listed() -> None:
    listed = DOCUMENT["x-not-offered"]
    assert {"/v1/batches", "/v1/files", "/v1/realtime", "/v1/videos", "/v1/responses"} <= set(listed)
    assert "/v1beta/models/{model}:predict" in listed
    assert all(reason and not reason.endswith(".") for reason in listed.values())


def made_errors() -> Iterator[ApiError]:
    """One by each function that makes errors, with values of its parameters' types."""
    values: dict[Any, Any] = {str: "text", int: 5, float: 2.5, datetime: datetime.now(UTC)}
    for name, make in vars(errors).items():
        if name.startswith("_") or not inspect.isfunction(make):
            continue
        hints = get_type_hints(make)
        if hints.pop("return", None) is ApiError:
            yield call(make, {name: values.get(hint, "text") for name, hint in hints.items()})


def call(make: Callable[..., ApiError], arguments: dict[str, Any]) -> ApiError:
    return make(**arguments)


@pytest.mark.parametrize("error", list(made_errors()), ids=lambda error: error.reason)
def test_errors_are_as_described_in_each_shape(error: ApiError) -> None:
    assert error.status in openapi.STATUSES
    for name, format in registry.FORMATS.items():
        shape = SHAPES[name]
        body = json.loads(json.dumps(format.error_body(error, REQUEST_ID)))
        fitting = {f"{other}Error" for other in {*SHAPES.values(), "Any"} if fits(f"{other}Error", body)}
        assert fitting == {f"{shape}Error", "AnyError"}
        headers = DOCUMENT["components"]["responses"][f"{shape}{error.status}"]["headers"]
        sent = error.headers.keys() - {"connection", "upgrade", "accept-encoding"}
        assert sent <= headers.keys(), error.reason


def test_each_call_has_each_status_that_a_call_can_end_with() -> None:
    possible = {error.status for error in made_errors()} - {426}
    for path, operations in DOCUMENT["paths"].items():
        if path.startswith("/v1") and "post" in operations and "ount" not in path:
            assert possible <= {int(status) for status in operations["post"]["responses"]}, path


REFUSED: list[tuple[str, str, str]] = [
    *(
        ("ChatCompletionRequest", name, rule.reason)
        for name, rule in openai_chat_fields.FIELDS.items()
        if rule.handling == "refuse"
    ),
    *(("ResponseRequest", *item) for item in openai_responses_fields.REFUSED.items()),
    *(("MessageRequest", *item) for item in anthropic_fields.REFUSED.items()),
    *(("GenerateContentRequest", *item) for item in gemini_fields.REFUSED.items()),
    *(("EmbedContentRequest", *item) for item in gemini_embeddings.REFUSED.items()),
]


@pytest.mark.parametrize(("schema", "name", "reason"), REFUSED, ids=lambda value: value)
def test_what_is_refused_is_described_so(schema: str, name: str, reason: str) -> None:
    field = DOCUMENT["components"]["schemas"][schema]["properties"][name]
    assert field["type"] == "null"
    assert reason in field["description"]


def test_each_known_field_is_described() -> None:
    known = {
        "ChatCompletionRequest": openai_chat_fields.FIELDS.keys(),
        "ResponseRequest": openai_responses_fields.PASSED,
        "MessageRequest": anthropic_fields.PASSED,
        "GenerateContentRequest": gemini_fields.PASSED,
        "EmbedContentRequest": gemini_embeddings.KNOWN,
    }
    for schema, names in known.items():
        described = DOCUMENT["components"]["schemas"][schema]["properties"]
        assert set(names) <= set(described), schema
    config = DOCUMENT["components"]["schemas"]["GenerateContentRequest"]["properties"]["generationConfig"]
    assert set(config["properties"]) == gemini_fields.CONFIG_PASSED | gemini_fields.CONFIG_REFUSED.keys()


@pytest.mark.parametrize("about", openapi.described(), ids=lambda about: about.name)
def test_each_api_says_whose_it_is(about: Any) -> None:
    assert about.reference.startswith("https://")
    assert about.summary
    assert not about.summary.endswith(".")
    assert about.request["properties"].keys() >= set(about.request.get("required", ()))
