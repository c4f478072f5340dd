"""How the OpenAPI document describes an API: by JSON schemas, made of the tables that read its requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]

MAX_NAME = 200
NAME: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_NAME,
    "description": "A model, by a name that the list of models has.",
}
FLAG: Schema = {"type": ["boolean", "null"]}
TEXT: Schema = {"type": "string"}
TEXT_OR_NOTHING: Schema = {"type": ["string", "null"]}
OBJECT: Schema = {"type": "object"}
OBJECTS: Schema = {"type": ["array", "null"], "items": OBJECT}
FILE: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}
COUNT: Schema = {"type": "integer", "minimum": 0}
# A text, a list of texts, one of tokens, or a list of such.
TOKENS: Schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
INPUTS: Schema = {
    "anyOf": [TEXT, TOKENS, {"type": "array", "items": {"anyOf": [TEXT, TOKENS]}, "minItems": 1}]
}
# What the relay does not look at.
PASSED_ON: Schema = {"$ref": "#/components/schemas/PassedOn"}
PASSED_ON_MEANS: Schema = {
    "description": "It passes to the model's provider, who checks it. Null counts as absent."
}


@dataclass(frozen=True, slots=True)
class Description:
    """An API. ``name``: of its schemas; ``summary``: one line; ``reference``: the page of whoever made it.
    ``request`` and ``answer``: schemas of a body and of an answer that comes whole; ``streams``: whether it
    may come as events. ``answer_types``: of the answer; ``text_types``: of one that is plain text, where the
    request may ask for that; ``form``: the request is a form, and no JSON.
    """

    name: str
    summary: str
    reference: str
    request: Schema
    answer: Schema
    streams: bool = False
    answer_types: tuple[str, ...] = ("application/json",)
    text_types: tuple[str, ...] = ()
    form: bool = False


def whole(most: int) -> Schema:
    """A number from 1 to ``most``, or null."""
    return {"type": ["integer", "null"], "minimum": 1, "maximum": most}


def one_of(*allowed: str) -> Schema:
    """One of these texts, or null."""
    return {"enum": [*allowed, None]}


def body(
    known: Iterable[str],
    *,
    typed: Mapping[str, Schema],
    required: Iterable[str] = (),
    refused: Mapping[str, str] | None = None,
    dropped: Iterable[str] = (),
) -> Schema:
    """A request's schema: the fields that are known, among them those that are read here (``typed``); those
    that are refused, with the reason; and those that are accepted and sent to nobody.
    """
    properties = {name: typed.get(name, PASSED_ON) for name in known}
    for name in dropped:
        properties[name] = {"description": "Accepted, and not sent on."}
    for name, reason in (refused or {}).items():
        properties[name] = {"type": "null", "description": f"Not supported: {reason}."}
    made: Schema = {"type": "object", "properties": dict(sorted(properties.items()))}
    needed = sorted(required)
    return made | {"required": needed} if needed else made


def answer(**fields: Schema) -> Schema:
    """An answer's schema: an object that has these fields, and whatever else the provider sends."""
    return {"type": "object", "properties": fields, "required": list(fields)}
