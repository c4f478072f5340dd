"""The schema of an answer as Anthropic's API takes it: it refuses keywords that bound a value.

Its own SDK says them in the description, where the model reads them, and closes objects. So does this, for
requests that came in another format.
Protocol: https://platform.claude.com/docs/en/build-with-claude/structured-outputs
"""

from __future__ import annotations

from typing import Any

from relay.formats.reading import Object, compact

_BOUNDS = frozenset(
    {
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minLength", "maxLength", "maxItems", "uniqueItems", "minProperties", "maxProperties"),
    }
)
_FORMATS = frozenset(
    {
        *("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"),
    }
)
# Where schemas stand in a schema: by names of the customer's, in a list, or alone.
_NAMED, _LISTED, _ALONE = ("properties", "$defs", "definitions"), ("anyOf", "allOf"), ("items",)


def answer_schema(schema: Any, said: list[str]) -> Any:
    """The schema as Anthropic takes it; ``said`` gets the keywords that are now said in descriptions."""
    if not isinstance(schema, dict):
        return schema
    given = dict(schema)
    if "oneOf" in given and "anyOf" not in given:
        given["anyOf"] = given.pop("oneOf")
    told = {name: value for name, value in given.items() if _is_refused(name, value)}
    made: Object = {name: _inner(name, value, said) for name, value in given.items() if name not in told}
    if told:
        said += [name for name in told if name not in said]
        words = ", ".join(f"{name}: {compact(value)}" for name, value in told.items())
        before = made.get("description")
        made["description"] = f"{before}\n\n{{{words}}}" if isinstance(before, str) else f"{{{words}}}"
    return made | {"additionalProperties": False} if _is_open(made) else made


def _is_refused(name: str, value: Any) -> bool:
    if name == "minItems":
        return value not in (0, 1)
    return name in _BOUNDS or (name == "format" and isinstance(value, str) and value not in _FORMATS)


def _is_open(schema: Object) -> bool:
    return schema.get("type") == "object" and "additionalProperties" not in schema


def _inner(name: str, value: Any, said: list[str]) -> Any:
    if name in _NAMED and isinstance(value, dict):
        return {own: answer_schema(one, said) for own, one in value.items()}
    if name in _LISTED and isinstance(value, list):
        return [answer_schema(one, said) for one in value]
    return answer_schema(value, said) if name in _ALONE else value
