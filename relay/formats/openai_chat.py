"""OpenAI's chat format, see ``relay.formats.format``.

Protocol: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Any

import orjson

from relay.errors import ApiError
from relay.formats.format import Meter, MeterOptions, Shown, Whole
from relay.formats.openai_chat_answer import USAGE_FORMAT, read_completion
from relay.formats.openai_chat_conversation import read_request, write_request
from relay.formats.openai_chat_events import PING, Decoder, Encoder, read_answer, write_answer
from relay.formats.openai_chat_stream import StreamMeter
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
PROVIDER: Provider = openai
NAME = "openai"
MODEL_FIELD = "model"


def read_whole(body: bytes) -> Whole:
    """See Format."""
    return read_completion(body)


def meter(options: MeterOptions) -> Meter:
    """See Format."""
    return StreamMeter(
        keep_usage_chunk=options.keep_usage_chunk,
        choices=options.choices,
        max_event_bytes=options.max_event_bytes,
        model=options.model,
        redact=options.redact,
    )


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
    return b"data: " + orjson.dumps(error.body()) + b"\n\n"
