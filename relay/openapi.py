"""The OpenAPI document of what customers call, ``GET /openapi.json``: made of the rows that route calls.

Specification: https://spec.openapis.org/oas/v3.1.1
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import orjson

from relay.api import pricing
from relay.asgi import Send, send_body
from relay.formats import anthropic, anthropic_fields, gemini, openai_chat
from relay.formats.description import (
    COUNT,
    NAME,
    OBJECT,
    PASSED_ON_MEANS,
    TEXT,
    Description,
    Schema,
    answer,
)
from relay.formats.format import Format
from relay.gateway import count_tokens, gemini_calls, health, limit_headers, models, not_offered
from relay.gateway.endpoints import ENDPOINTS, GEMINI_MODELS

PATH = "/openapi.json"
_JSON, _EVENTS, _FORM = "application/json", "text/event-stream", "multipart/form-data"
_ABOUT = """What customers' programs call: the APIs of OpenAI, Anthropic and Google, under their own paths.

A request may have any field of its API's reference. Listed here are those that are known, and those that are
refused, with what to do in their place; what becomes of others is a setting of the operator's. Every path
that has GET has HEAD, and all have OPTIONS. Slashes that repeat, or end a path, do not count. Parts of these
APIs that are not here answer 404, in the shape of their API: `x-not-offered` lists them with the reasons."""

# What an error's status means, whatever the API.
STATUSES = {
    400: "The request is wrong: the message names the field and the remedy.",
    401: "No API key was sent, or one that is not valid.",
    402: "The credit or a budget does not suffice: the message says how much is missing.",
    403: "The API key may not do this.",
    404: "There is no such model, or no such path; or it is not offered here, and the message says why.",
    405: "The path has other methods: `Allow` lists them.",
    408: "The body stopped coming.",
    409: "What is there already contradicts it.",
    413: "The body is too large: the message says how much may be sent.",
    415: "The body is not plain JSON, or where a form is wanted no form.",
    422: "The model's provider refused the request, in its own words.",
    426: "There is no WebSocket: send the request by POST.",
    429: "A limit is reached: `Retry-After` says when to come back.",
    431: "The URL and the headers are too large.",
    451: "The model's provider refused the content, in its own words.",
    500: "An error of the service's own. Nothing was charged.",
    502: "The model's provider failed. Nothing was charged.",
    503: "The service or the model is overloaded or away: `Retry-After` says when to come back.",
    504: "The model's provider did not answer in time. Nothing was charged.",
}
_FREE = (400, 401, 403, 404, 405, 429, 431, 500, 503)
_PAID = tuple(status for status in STATUSES if status not in (409, 426))
_QUOTE = (400, 401, 403, 404, 405, 408, 409, 413, 415, 431, 500, 503)
_UNKEYED = (405, 431, 500)

_HEADERS: dict[str, tuple[str, Schema]] = {
    "x-request-id": ("The call's name, by which support finds it.", TEXT),
    "request-id": ("The same, as Anthropic's SDK reads it.", TEXT),
    "retry-after": ("Seconds until another try makes sense.", COUNT),
    "allow": ("The methods that the path has.", TEXT),
    "www-authenticate": ("How to show the API key.", TEXT),
    "x-should-retry": ("Whether an SDK is to try again by itself: false where the wait is long.", TEXT),
    "x-relay-left-out": ("Fields of the request that the model's provider was not told.", TEXT),
    "x-relay-estimate": ("Where it is there, the tokens were counted here, by the text.", TEXT),
}
_LIMITS = {
    "limit": "What may be used in a minute.",
    "remaining": "What of it is left.",
    "reset": "When all of it is left again.",
}
_FORMATS: dict[str, Format] = {"OpenAI": openai_chat, "Anthropic": anthropic, "Gemini": gemini}
_OF_FORMAT = {"openai": "OpenAI", "openai-responses": "OpenAI", "anthropic": "Anthropic", "gemini": "Gemini"}
_NULLABLE = {"type": ["string", "null"]}
# Errors in each API's shape: relay.formats.format.Format.error_body.
_ERRORS: dict[str, Schema] = {
    "OpenAI": answer(error=answer(message=TEXT, type=TEXT, param=_NULLABLE, code=_NULLABLE)),
    "Anthropic": answer(type={"const": "error"}, error=answer(type=TEXT, message=TEXT), request_id=TEXT),
    "Gemini": answer(
        error=answer(
            code={"type": "integer"},
            message=TEXT,
            status=TEXT,
            details={"type": "array", "items": answer(**{"@type": TEXT})},
        )
    ),
}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "x-goog-api-key": {"type": "apiKey", "in": "header", "name": "x-goog-api-key"},
    "key": {"type": "apiKey", "in": "query", "name": "key"},
}
_ANTHROPIC_LIST = answer(
    data={"type": "array", "items": answer(id=TEXT, type={"const": "model"})},
    has_more={"type": "boolean"},
    first_id=_NULLABLE,
    last_id=_NULLABLE,
)
_OPENAI_LIST = answer(
    object={"const": "list"}, data={"type": "array", "items": answer(id=TEXT, object={"const": "model"})}
)
_GEMINI_LIST = answer(models={"type": "array", "items": answer(name=TEXT)})
_MODELS_PAGES = (
    (
        "limit",
        {"type": "integer", "minimum": 1, "maximum": models.MAX_LIMIT},
        "Anthropic's: models of a page.",
    ),
    ("after_id", TEXT, "Anthropic's: only models after this one."),
    ("before_id", TEXT, "Anthropic's: only models before this one."),
    (
        "pageSize",
        {"type": "integer", "minimum": 1, "maximum": models.MAX_LIMIT},
        "Gemini's: models of a page.",
    ),
    ("pageToken", TEXT, "Gemini's: the page that the one before names."),
)

Parts = dict[str, Any]


async def serve(send: Send) -> None:
    """Answer with the document."""
    head = [(b"content-type", b"application/json"), (b"cache-control", b"public, max-age=300")]
    await send_body(send, 200, _encoded(), head)


@cache
def _encoded() -> bytes:
    return orjson.dumps(document())


def document() -> Parts:
    """The document, as decoded JSON."""
    return {
        "openapi": "3.1.1",
        "info": {"title": "AI APIs", "version": "1", "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in _KEYS],
        "paths": _paths(),
        "x-not-offered": _not_offered(),
        "components": {
            "securitySchemes": _KEYS,
            "schemas": _schemas(),
            "headers": _headers(),
            "responses": _responses(),
        },
    }


def _not_offered() -> dict[str, str]:
    of_a_model = {
        f"{version}/{{model}}:{method}": reason
        for version in GEMINI_MODELS
        for method, reason in not_offered.OF_A_MODEL.items()
    }
    return not_offered.REASONS | not_offered.BELOW | of_a_model


def _paths() -> dict[str, Parts]:
    made = {row.path: {"post": _call(row.about, row.format, translated=row.api is None)} for row in ENDPOINTS}
    made[count_tokens.PATH] = {"post": _count(anthropic_fields.ABOUT_COUNTING, anthropic)}
    for version in GEMINI_MODELS:
        for name, method in gemini_calls.METHODS.items():
            operation = _of_a_model(name, method, version)
            made[f"{version}/{{model}}:{name}"] = {"post": operation}
    for path in models.PATHS:
        made[path] = {"get": _list(path)}
        made[f"{path}/{{model}}"] = {"get": _show(path)}
    made[f"{pricing.PREFIX}/quote"] = {"post": _quote()}
    made["/healthz"] = {"get": _health()}
    made[PATH] = {"get": _itself()}
    return made


def described() -> list[Description]:
    """The APIs that take a body."""
    methods = [method.about for method in gemini_calls.METHODS.values()]
    return [*(row.about for row in ENDPOINTS), anthropic_fields.ABOUT_COUNTING, *methods]


def _schemas() -> dict[str, Schema]:
    made: dict[str, Schema] = {"PassedOn": PASSED_ON_MEANS}
    for about in described():
        made[f"{about.name}Request"] = about.request
        made[about.name] = about.answer
    made |= {f"{name}Error": schema for name, schema in _ERRORS.items()}
    whole = _schema("GeminiError")
    made["GeminiStreamError"] = {"anyOf": [whole, {"type": "array", "items": whole}]}
    made["AnyError"] = {"anyOf": [_schema(f"{name}Error") for name in _ERRORS]}
    return made


def _schema(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _headers() -> dict[str, Parts]:
    made = {name: {"description": means, "schema": schema} for name, (means, schema) in _HEADERS.items()}
    for format in _FORMATS.values():
        for name in limit_headers.names(format):
            means = next(means for word, means in _LIMITS.items() if word in name.split("-"))
            made[name] = {"description": means, "schema": TEXT}
    return made


def _named_headers(names: Iterable[str]) -> dict[str, Parts]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _responses() -> dict[str, Parts]:
    """Each status in the shape of each API, and in those that its paths share."""
    shapes = {name: limit_headers.names(format) for name, format in _FORMATS.items()}
    shapes |= {"GeminiStream": [], "Any": []}
    return {
        f"{shape}{status}": {
            "description": means,
            "headers": _named_headers(_error_headers(shape, status, limits)),
            "content": {_JSON: {"schema": _schema(f"{shape}Error")}},
        }
        for shape, limits in shapes.items()
        for status, means in STATUSES.items()
    }


def _error_headers(shape: str, status: int, limits: list[str]) -> list[str]:
    own = {
        401: ["www-authenticate"],
        405: ["allow"],
        429: ["retry-after", "x-should-retry", *limits],
        503: ["retry-after"],
    }
    return [*_id_headers(shape), *own.get(status, [])]


def _id_headers(shape: str) -> list[str]:
    return ["x-request-id", "request-id"] if shape == "Anthropic" else ["x-request-id"]


def _errors(shape: str, statuses: Iterable[int]) -> Parts:
    return {str(status): {"$ref": f"#/components/responses/{shape}{status}"} for status in statuses}


def _operation(name: str, summary: str, reference: str, ok: Parts, errors: Parts) -> Parts:
    more = {"externalDocs": {"url": reference}} if reference else {}
    return {"operationId": name, "summary": summary, **more, "responses": {"200": ok} | errors}


def _ok(
    schema: Schema,
    headers: Iterable[str],
    *,
    means: str = "The answer.",
    streams: bool = False,
    types: Iterable[str] = (_JSON,),
    texts: Iterable[str] = (),
) -> Parts:
    content: Parts = {name: {"schema": schema} for name in types}
    content |= {name: {"schema": TEXT} for name in texts}
    if streams:
        content[_EVENTS] = {"schema": TEXT}
    return {"description": means, "headers": _named_headers(headers), "content": content}


def _call(
    about: Description, format: Format, *, translated: bool, shape: str = "", statuses: Iterable[int] = _PAID
) -> Parts:
    """An operation that has a model do something."""
    own = _OF_FORMAT[format.NAME]
    headers = [*_id_headers(own), *limit_headers.names(format), *(["x-relay-left-out"] if translated else [])]
    ok = _ok(
        _schema(about.name),
        headers,
        streams=about.streams,
        types=about.answer_types,
        texts=about.text_types,
    )
    made = _operation(_lower(about.name), about.summary, about.reference, ok, _errors(shape or own, statuses))
    return made | {"requestBody": _body(f"{about.name}Request", _FORM if about.form else _JSON)}


def _body(schema: str, content_type: str) -> Parts:
    return {"required": True, "content": {content_type: {"schema": _schema(schema)}}}


def _lower(name: str) -> str:
    return name[0].lower() + name[1:]


def _count(about: Description, format: Format) -> Parts:
    made = _call(about, format, translated=False, statuses=[*_PAID[:2], *_PAID[3:]])
    made["responses"]["200"]["headers"] = _named_headers(
        [*_id_headers(_OF_FORMAT[format.NAME]), "x-relay-estimate"]
    )
    return made


def _of_a_model(name: str, method: gemini_calls.Method, version: str) -> Parts:
    stream = method.about.streams
    if name == "countTokens":
        made = _count(method.about, gemini)
    else:
        made = _call(method.about, gemini, translated=True, shape="GeminiStream" if stream else "Gemini")
    if stream:
        array = {"type": "array", "items": _schema(method.about.name)}
        made["responses"]["200"]["content"][_JSON]["schema"] = array
    made["parameters"] = [_model_parameter()]
    if len(method.alt) > 1:
        means = "sse: as server-sent events; json: as one array."
        made["parameters"].append(_query("alt", {"enum": list(method.alt)}, means))
    return _in_version(made, version)


def _in_version(operation: Parts, version: str) -> Parts:
    """The same operation at a second path has another id."""
    if version != GEMINI_MODELS[0]:
        operation["operationId"] += "V1"
    return operation


def _model_parameter() -> Parts:
    return {"name": "model", "in": "path", "required": True, "schema": NAME}


def _query(name: str, schema: Schema, means: str) -> Parts:
    return {"name": name, "in": "query", "schema": schema, "description": means}


def _list(path: str) -> Parts:
    """Of the models; /v1 has three APIs' shapes."""
    gemini_only = path == GEMINI_MODELS[0]
    schema = _GEMINI_LIST if gemini_only else {"anyOf": [_OPENAI_LIST, _ANTHROPIC_LIST, _GEMINI_LIST]}
    ok = _ok(schema, ["x-request-id"], means="Those that the API key may use now.")
    errors = _errors("Gemini" if gemini_only else "Any", _FREE)
    made = _operation("listModels", "List the models", "", ok, errors)
    pages = [page for page in _MODELS_PAGES if not gemini_only or page[0].startswith("page")]
    return _in_version(made | {"parameters": [_query(*page) for page in pages]}, path) | _shapes(path)


def _show(path: str) -> Parts:
    gemini_only = path == GEMINI_MODELS[0]
    one = answer(name=TEXT) if gemini_only else {"anyOf": [answer(id=TEXT), answer(name=TEXT)]}
    errors = _errors("Gemini" if gemini_only else "Any", _FREE)
    made = _operation("showModel", "Show a model", "", _ok(one, ["x-request-id"]), errors)
    return _in_version(made | {"parameters": [_model_parameter()]}, path) | _shapes(path)


def _shapes(path: str) -> Parts:
    if path == GEMINI_MODELS[0]:
        return {}
    return {
        "description": "In OpenAI's shape; in Anthropic's where the request has `anthropic-version`, or its "
        "key in `x-api-key`; in Gemini's where its key is in `x-goog-api-key` or in the query."
    }


def _quote() -> Parts:
    ok = _ok(
        answer(charge_nanodollars={"type": "integer"}, exact=TEXT),
        ["x-request-id"],
        means="The charge and its derivation.",
    )
    request: Schema = {
        "type": "object",
        "properties": {
            "model": NAME,
            "request": OBJECT | {"description": "A request as for /v1/chat/completions."},
            "usage": OBJECT | {"description": "A provider's usage, in the format that `format` names."},
            "format": TEXT,
            "meters": OBJECT | {"description": "Units by meter."},
        },
        "required": ["model"],
    }
    made = _operation("quote", "What a call would cost", "", ok, _errors("OpenAI", _QUOTE))
    return made | {"requestBody": {"required": True, "content": {_JSON: {"schema": request}}}}


def _health() -> Parts:
    away = {
        "description": "Not now.",
        "headers": _named_headers(["x-request-id"]),
        "content": {_JSON: {"schema": health.ANSWER}},
    }
    ok = _ok(health.ANSWER, ["x-request-id"], means="Calls may come.")
    made = _operation("health", "May calls come here?", "", ok, _errors("OpenAI", _UNKEYED) | {"503": away})
    return made | {"security": []}


def _itself() -> Parts:
    ok = _ok(OBJECT, ["x-request-id"], means="This document.")
    return _operation("openapi", "This document", "", ok, _errors("OpenAI", _UNKEYED)) | {"security": []}
