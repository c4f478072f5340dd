"""What a provider says when it refuses, whatever the shape, and what kind of failure that is.

Shapes: OpenAI's ``{"error": {"message", "type", "param", "code"}}``, which most took over; Anthropic's
``{"type": "error", "error": {"type", "message"}}``; Google's ``{"error": {"code": 400, "message",
"status"}}``, also in a list; ``{"error": "text"}``; ``{"message": …}``; FastAPI's ``{"detail": …}``
(https://fastapi.tiangolo.com/tutorial/handling-errors); ``{"errors": […]}``; plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from relay.formats.answer import NOT_JSON, loads

MAX_ERROR_BYTES = 64 << 10
MAX_MESSAGE = 2_000
# Where a shape may hold the error or its text; the first that says something counts.
_INNER = ("error", "errors", "detail", "details", "message", "msg", "error_msg", "error_message", "title")
_DEPTH = 4

# Classes of failures. REQUEST and CONTENT blame the request: another channel would say the same.
REQUEST, CONTENT, AUTH, QUOTA, RATE, SERVER, TIMEOUT, BAD_ANSWER = (
    "request",
    "content",
    "auth",
    "quota",
    "rate",
    "server",
    "timeout",
    "bad_answer",
)
_REQUEST_STATUSES = frozenset({400, 413, 415, 422})
_OF_STATUS = {
    401: AUTH,
    402: QUOTA,
    403: AUTH,
    408: TIMEOUT,
    429: RATE,
    451: CONTENT,
    504: TIMEOUT,
    524: TIMEOUT,
}


def _any_of(*words: str) -> re.Pattern[str]:
    return re.compile("|".join(words), re.I)


_CONTENT = _any_of(
    r"content[_ ]?(?:filter|policy|management)|content[_ ]moderation|data_inspection_failed",
    r"moderation|flagged|inappropriate|sensitive[_ ](?:content|information|words)|responsible ai",
    r"safety[_ ](?:system|filter)",
)
_AUTH = _any_of(
    r"(?:invalid|incorrect|expired|missing|no)[_ ](?:x-)?api[_ -]?key",
    r"api[_ ]key[_ ](?:is )?(?:not[_ ]valid|invalid|expired)",
    r"authentication_error|unauthorized|account_deactivated",
)
_QUOTA = _any_of(
    r"insufficient[_ ](?:quota|balance|credit|funds)|credit balance|account .{0,20}(?:arrears|overdue)",
    r"quota[_ ]exceeded|exceeded your current quota|billing[_ ](?:hard[_ ]limit|not[_ ]active)",
)
# The channel is set up for a model that its provider does not have: another channel may have it.
_MODEL = _any_of(
    r"model[_ ]not[_ ](?:found|exist)|no such model|unknown model",
    r"model .{0,200}(?:does not exist|not found|not supported)",
)
# Codes that blame the request whatever the status is.
_REQUEST_CODE = _any_of(r"context[_ ]length|string_above_max_length|max_tokens_exceeded|request_too_large")
_REQUEST = _any_of(
    r"context[_ ]length|context window|maximum context|prompt is too long|string_above_max_length",
    r"too many tokens|invalid[_ ]request|invalid[_ ]argument|bad[_ ]request",
    r"unsupported[_ ](?:parameter|value)|unknown[_ ]parameter",
)


# (statuses, words, class), in this order; status 0: none. What no row knows is decided by its status.
_BY_WORDS = (
    ({0, 400, 403, 422}, _CONTENT, CONTENT),
    ({0, 400, 403, 429}, _QUOTA, QUOTA),
    ({0, 400}, _AUTH, AUTH),
    ({0, 400}, _MODEL, SERVER),
    ({0}, _REQUEST, REQUEST),
)


class Said(NamedTuple):
    """A provider's words. ``status``: an HTTP status that the body names itself, if any."""

    message: str = ""
    param: str | None = None
    code: str | None = None
    kind: str | None = None
    status: int | None = None


def read_refusal(body: bytes) -> Said:
    """What an error's body says; nothing where it is a web page or is not text."""
    text = body.decode("utf-8", "replace").removeprefix("\ufeff").strip()
    value = loads(text.encode())
    if value is not NOT_JSON:
        return said_of(value)
    return Said() if text.startswith("<") or "\x00" in text else Said(text[:MAX_MESSAGE])


def said_of(error: Any, depth: int = _DEPTH) -> Said:
    """What a decoded error says."""
    if isinstance(error, str):
        return Said(_sendable(error.strip()[:MAX_MESSAGE]))
    if isinstance(error, list) and depth:
        said = [said for said in (said_of(part, depth - 1) for part in error[:20]) if said.message]
        joined = "; ".join(part.message for part in said)[:MAX_MESSAGE]
        return said[0]._replace(message=joined) if said else Said()
    if isinstance(error, Mapping) and depth:
        return _of_object(error, depth)
    return Said()


def _of_object(error: Mapping[str, Any], depth: int) -> Said:
    found = Said()
    for name in _INNER:
        found = said_of(error.get(name), depth - 1)
        if found.message or found.code:
            break
    code, status = error.get("code"), error.get("status")
    location = error.get("loc")
    return Said(
        message=_located(found.message, location),
        param=found.param or _text(error.get("param")) or _path(location),
        code=found.code or _text(code) or _text(status) or _text(error.get("error_code")),
        kind=found.kind or _text(error.get("type")),
        status=found.status or _status(code) or _status(status),
    )


def _located(message: str, location: Any) -> str:
    path = _path(location)
    return f"{path}: {message}" if path and message else message


def _path(location: Any) -> str | None:
    """FastAPI's place of an error: ["body", "messages", 0, "content"]."""
    if not isinstance(location, list) or not location:
        return None
    return ".".join(str(step) for step in location if step != "body") or None


def _text(value: Any) -> str | None:
    return _sendable(value[:200]) if isinstance(value, str) and value and not value.isdigit() else None


def _sendable(text: str) -> str:
    """``text`` without halves of surrogate pairs: UTF-8 has none."""
    return text.encode("utf-8", "replace").decode()


def _status(value: Any) -> int | None:
    number = int(value) if isinstance(value, str) and value.isdigit() and len(value) == 3 else value
    return number if isinstance(number, int) and 400 <= number <= 599 else None


def in_openais_shape(error: Any) -> dict[str, Any]:
    """A decoded error as OpenAI's clients expect it, with whatever else it says."""
    said = said_of(error)
    given = error if isinstance(error, dict) else {}
    code = given.get("code")
    return {
        **given,
        "message": said.message or "The model's provider reported an error without a word.",
        "type": said.kind or "server_error",
        "param": said.param,
        "code": code if isinstance(code, int) else said.code,
    }


def class_of(status: int, said: Said) -> str:
    """The class of a refusal. ``status``: of HTTP; 2xx where the body alone says that it is an error."""
    words = " ".join(filter(None, (said.code, said.kind, said.message)))
    if status < 300:
        status = said.status or 0
    if _REQUEST_CODE.search(said.code or ""):
        return REQUEST
    for statuses, pattern, kind in _BY_WORDS:
        if status in statuses and pattern.search(words):
            return kind
    if status in _REQUEST_STATUSES:
        return REQUEST
    return _OF_STATUS.get(status, SERVER)


def is_the_requests_fault(kind: str) -> bool:
    """Whether the request is to blame, so that another channel would say the same."""
    return kind in (REQUEST, CONTENT)
