"""Google's ``Schema``, an older dialect, as JSON Schema: the meaning of every keyword stays.

Protocol: https://ai.google.dev/api/caching#Schema. Types are in capitals, null is a flag of its own, counts
may be texts.
"""

from __future__ import annotations

import re
from typing import Any

from relay.formats.reading import Object, items, mapping, one_of

_TYPES = ("string", "number", "integer", "boolean", "array", "object", "null", "type_unspecified")
_REFERENCE = re.compile(r"^#/(?:\$?defs)/")
_COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength")


def json_schema(schema: Any, place: str) -> Object:
    """As JSON Schema; raises Untranslatable."""
    given = dict(mapping(schema, place))
    nullable = bool(given.pop("nullable", False))
    # In which order a model writes properties: in JSON Schema it is that in which they stand.
    order = given.pop("propertyOrdering", None)
    made = _kind(given, nullable, place)
    for name, value in given.items():
        made |= _keyword(name, value, nullable, order, f"{place}.{name}")
    return made


def _keyword(name: str, value: Any, nullable: bool, order: Any, where: str) -> Object:
    if name in _COUNTS and isinstance(value, str) and value.isdigit():
        return {name: int(value)}
    if name == "items":
        return {name: json_schema(value, where)}
    if name == "anyOf":
        choices = [json_schema(one, where) for one in items(value, where)]
        return {name: [*choices, {"type": "null"}] if nullable else choices}
    if name in ("defs", "$defs"):
        return {"$defs": _properties(mapping(value, where), None, where)}
    if name in ("ref", "$ref"):
        return {"$ref": _REFERENCE.sub("#/$defs/", str(value))}
    if name == "additionalProperties" and isinstance(value, dict):
        return {name: json_schema(value, where)}
    if name == "properties":
        return {name: _properties(mapping(value, where), order, where)}
    if name == "enum" and nullable:
        return {name: [*items(value, where), None]}
    if name == "example":
        return {"examples": [value]}
    # That says no more than the keyword enum.
    return {} if (name, value) == ("format", "enum") else {name: value}


def _kind(given: Object, nullable: bool, place: str) -> Object:
    kind = one_of(str(given.pop("type", _TYPES[-1])).lower(), _TYPES, f"{place}.type")
    if kind == _TYPES[-1]:
        return {}
    return {"type": [kind, "null"] if nullable else kind}


def _properties(given: Object, order: Any, place: str) -> Object:
    made = {name: json_schema(one, f"{place}.{name}") for name, one in given.items()}
    first = [str(name) for name in order if str(name) in made] if isinstance(order, list) else []
    return {name: made[name] for name in dict.fromkeys((*first, *made))}
