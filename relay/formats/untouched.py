"""Bodies that pass as they came, but for the model's name, and unknown fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from relay.errors import ApiError
from relay.formats.json_fields import SHOWN, encode
from relay.settings import UnknownFields

_any = msgspec.json.Decoder(dict[str, Any])
Span = tuple[int, int]


def with_model(body: bytes, span: Span, model: str) -> bytes:
    """``body`` with this name of the model; every other byte as it came."""
    return body[: span[0]] + encode(model) + body[span[1] :]


def check_unknown(
    body: bytes, unknown: frozenset[str], policy: UnknownFields, refusal: Callable[[str], ApiError]
) -> bytes:
    """``body`` with its ``unknown`` fields, without them, or ``refusal`` of the first of them is raised."""
    if not unknown or policy == "pass":
        return body
    if policy == "refuse":
        raise refusal(min(unknown)[:SHOWN])
    return encode({name: value for name, value in _any.decode(body).items() if name not in unknown})
