"""How OpenAI's APIs refuse, and what its two text APIs have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checking import BadRequest, Path, image_bytes
from .formats import JSON

TYPES = {429: "rate_limit_exceeded"}
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
SHOWN = {str: "a string", bool: "a boolean", int: "an integer", float: "a decimal", list: "an array"}


def spelled(path: Path) -> str:
    """A field as OpenAI names it."""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return shown.removeprefix(".")


class Wording:
    """OpenAI's words. ``chat``: chat completions name an unknown field in another sentence."""

    nulls = True

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat

    def name(self, written: str) -> str:
        return written

    def unknown(self, path: Path) -> BadRequest:
        where = spelled(path)
        if self._chat and len(path) == 1:
            return BadRequest(f"Unrecognized request argument supplied: {where}")
        return BadRequest(f"Unknown parameter: '{where}'.", param=where, code="unknown_parameter")

    def missing(self, path: Path) -> BadRequest:
        where = spelled(path)
        return BadRequest(
            f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter"
        )

    def wrong_type(self, path: Path, expected: str, value: Any) -> BadRequest:
        shown = SHOWN.get(type(value), "null" if value is None else "an object")
        message = f"Invalid type for '{spelled(path)}': expected {expected}, but got {shown} instead."
        return BadRequest(message, param=spelled(path), code="invalid_type")

    def wrong_value(self, path: Path, supported: tuple[str, ...], value: Any) -> BadRequest:
        known = ", ".join(f"'{one}'" for one in supported)
        message = f"Invalid value: {value!r}. Supported values are: {known}."
        return BadRequest(message, param=spelled(path), code="invalid_value")

    def out_of_range(self, path: Path, low: float, high: float, value: Any) -> BadRequest:
        if isinstance(value, list):
            short = len(value) < low
            wanted = f"minimum length {low:g}" if short else f"maximum length {high:g}"
            message = f"Invalid '{spelled(path)}': expected an array with {wanted}, but got {len(value)}."
            code = "empty_array" if short and low == 1 else "array_above_max_length"
            return BadRequest(message, param=spelled(path), code=code)
        small = value < low
        wanted = f"a value >= {low:g}" if small else f"a value <= {high:g}"
        code = "integer_below_min_value" if small else "integer_above_max_value"
        message = f"Invalid '{spelled(path)}': expected {wanted}, but got {value} instead."
        return BadRequest(message, param=spelled(path), code=code)


def error(status: int, message: str, code: str | None = None, param: str | None = None) -> JSON:
    """An error's body."""
    kind = "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}}


def check_image(url: str, where: str) -> None:
    """An image's address, or its bytes in a data URL."""
    if url.startswith(("https://", "http://")):
        return
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise BadRequest(
            f"Invalid '{where}'. Expected a valid URL, but got a value with an invalid format.",
            param=where,
            code="invalid_value",
        )
    problem = image_bytes(head[len("data:") : -len(";base64")], data)
    if problem:
        raise BadRequest(f"Invalid image: {problem}.", param=where, code="invalid_image_format")


def check_strict(schema: Any, what: str, where: str) -> None:
    """What OpenAI asks of a schema that answers must follow strictly, in every object of it."""
    for inner in objects(schema):
        if inner.get("additionalProperties") is not False:
            raise BadRequest(
                f"Invalid schema for {what}: In context=(), 'additionalProperties' is required to be supplied"
                " and to be false.",
                param=where,
                code="invalid_schema",
            )
        missing = set(inner.get("properties", {})) - set(inner.get("required", []))
        if missing:
            raise BadRequest(
                f"Invalid schema for {what}: In context=(), 'required' is required to be supplied and to be"
                f" an array including every key in properties. Missing '{min(missing)}'.",
                param=where,
                code="invalid_schema",
            )


def objects(schema: Any) -> list[dict[str, Any]]:
    """Every schema of an object within a schema."""
    if isinstance(schema, list):
        return [found for inner in schema for found in objects(inner)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if schema.get("type") == "object" else []
    maps = [schema.get(name) for name in ("properties", "$defs", "definitions")]
    inner = [one for found in maps if isinstance(found, Mapping) for one in found.values()]
    inner += [schema.get(name) for name in ("items", "anyOf", "oneOf", "allOf")]
    return own + objects(inner)


def check_function(function: Mapping[str, Any], where: str) -> None:
    """A function's schema must be of an object; a strict one follows the strict rules."""
    schema = function.get("parameters")
    name = function["name"]
    if schema is not None and schema.get("type") != "object":
        found = schema.get("type")
        raise BadRequest(
            f"Invalid schema for function '{name}': schema must be a JSON Schema of 'type: \"object\"', got"
            f" 'type: \"{found}\"'.",
            param=where,
            code="invalid_function_parameters",
        )
    if function.get("strict") and schema is not None:
        check_strict(schema, f"function '{name}'", where)
