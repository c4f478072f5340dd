"""OpenAI's Responses format, see ``relay.formats.format``.

Protocol: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from typing import Any

from relay.errors import ApiError
from relay.formats.format import Meter, MeterOptions, Shown, Whole
from relay.formats.openai_responses_answer import USAGE_FORMAT, read_response
from relay.formats.openai_responses_conversation import read_request, write_request
from relay.formats.openai_responses_events import (
    PING,
    Decoder,
    Encoder,
    error_event_of,
    read_answer,
    write_answer,
)
from relay.formats.openai_responses_stream import ResponsesMeter
from relay.providers import openai
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
PROVIDER: Provider = openai.At("/responses")
NAME = "openai-responses"
MODEL_FIELD = "model"


def read_whole(body: bytes) -> Whole:
    """See Format."""
    return read_response(body)


def meter(options: MeterOptions) -> Meter:
    """See Format."""
    return ResponsesMeter(options.max_event_bytes, options.redact, options.model)


def decoder() -> Decoder:
    """See Format."""
    return Decoder()


def encoder(shown: Shown) -> Encoder:
    """See Format."""
    return Encoder(shown)


def error_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """See Format."""
    return error.body()


def error_event(error: ApiError, request_id: str) -> bytes:
    """See Format."""
    return error_event_of(error.code, error.message, error.param)
