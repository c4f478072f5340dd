"""Google's Gemini format (``generateContent``), see ``relay.formats.format``.

Protocol: https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

from typing import Any

from relay.errors import ApiError
from relay.formats.format import Meter, MeterOptions, Shown, Whole
from relay.formats.gemini_answer import USAGE_FORMAT, read_generated
from relay.formats.gemini_conversation import read_request, write_request
from relay.formats.gemini_events import (
    PING,
    Decoder,
    Encoder,
    event_of,
    read_answer,
    status_word,
    write_answer,
)
from relay.formats.gemini_stream import MODEL_FIELD, GeminiMeter
from relay.providers import gemini
from relay.providers.provider import Provider

__all__ = [
    "MODEL_FIELD",
    "NAME",
    "PING",
    "PROVIDER",
    "USAGE_FORMAT",
    "decoder",
    "encoder",
    "error_body",
    "error_event",
    "meter",
    "read_answer",
    "read_request",
    "read_whole",
    "write_answer",
    "write_request",
]
PROVIDER: Provider = gemini
NAME = "gemini"
_DETAIL = "type.googleapis.com/google.rpc."


def read_whole(body: bytes) -> Whole:
    """See Format."""
    return read_generated(body)


def meter(options: MeterOptions) -> Meter:
    """See Format."""
    return GeminiMeter(options.max_event_bytes, options.redact, options.model, options.choices)


def decoder() -> Decoder:
    """See Format."""
    return Decoder()


def encoder(shown: Shown) -> Encoder:
    """See Format."""
    return Encoder(shown)


def error_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """See Format. Details: https://cloud.google.com/apis/design/errors#error_details."""
    reason = {"reason": error.reason, "domain": "relay"}
    more = {"metadata": {name: str(value) for name, value in error.extra.items()}} if error.extra else {}
    details: list[dict[str, Any]] = [
        {"@type": f"{_DETAIL}RequestInfo", "requestId": request_id},
        {"@type": f"{_DETAIL}ErrorInfo", **reason, **more},
    ]
    if error.param is not None:
        violation = {"field": error.param, "description": error.message}
        details.append({"@type": f"{_DETAIL}BadRequest", "fieldViolations": [violation]})
    if "retry-after" in error.headers:
        details.append({"@type": f"{_DETAIL}RetryInfo", "retryDelay": f"{error.headers['retry-after']}s"})
    shape = {"code": error.status, "message": error.message, "status": status_word(error.status)}
    return {"error": shape | {"details": details}}


def error_event(error: ApiError, request_id: str) -> bytes:
    """See Format."""
    return event_of(error_body(error, request_id))
