"""Anthropic's messages format, see ``relay.formats.format``.

Protocol: https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

from typing import Any

from relay.errors import ApiError
from relay.formats.anthropic_answer import USAGE_FORMAT, read_message
from relay.formats.anthropic_conversation import read_request, write_request
from relay.formats.anthropic_events import Decoder, Encoder, event_of, read_answer, write_answer
from relay.formats.anthropic_stream import PING, AnthropicMeter
from relay.formats.format import Meter, MeterOptions, Shown, Whole
from relay.providers import anthropic
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
PROVIDER: Provider = anthropic
NAME = "anthropic"
MODEL_FIELD = "model"
# https://platform.claude.com/docs/en/api/errors
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def read_whole(body: bytes) -> Whole:
    """See Format."""
    return read_message(body)


def meter(options: MeterOptions) -> Meter:
    """See Format."""
    return AnthropicMeter(options.max_event_bytes, options.redact, options.model)


def decoder() -> Decoder:
    """See Format."""
    return Decoder()


def encoder(shown: Shown) -> Encoder:
    """See Format."""
    return Encoder(shown)


def error_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """See Format."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    shape = {"type": kind, "message": error.message} | error.extra
    return {"type": "error", "error": shape, "request_id": request_id}


def error_event(error: ApiError, request_id: str) -> bytes:
    """See Format."""
    return event_of("error", {name: value for name, value in error_body(error, request_id).items()})
