"""What a provider says when it refuses: in OpenAI's shape, which most took over, or a text in its place."""

from __future__ import annotations

import msgspec

MAX_ERROR_BYTES = 64 << 10


class _Detail(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: str | int | None = None


class _Body(msgspec.Struct):
    error: _Detail | str


_body = msgspec.json.Decoder(_Body)


def read_error(body: bytes) -> tuple[str, str | None]:
    """(message, field) of a provider's error; an empty message when it has another shape."""
    try:
        error = _body.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return "", None
    return (error, None) if isinstance(error, str) else (error.message, error.param)
