"""Events of streams that name their type, decoded no further than they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

import msgspec

from relay.formats.answer import loads


class TypedEvent(msgspec.Struct):
    """What is read of an event; formats add their fields, each of any type."""

    type: str = ""

    @classmethod
    def of(cls, value: dict[str, Any]) -> Self:
        """From decoded JSON."""
        kind = value.get("type")
        names = cls.__struct_fields__[1:]
        return cls(kind if isinstance(kind, str) else "", *(value.get(name) for name in names))


Kind = TypeVar("Kind", bound=TypedEvent)


def decoder_of(kind: type[Kind]) -> Callable[[bytes], Kind | None]:
    """A function that decodes an event's data; it returns None for what is no JSON object."""
    event = msgspec.json.Decoder(kind)

    def decode(payload: bytes) -> Kind | None:
        try:
            if not payload.isascii():
                payload.decode()
            return event.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            value = loads(payload)
            return kind.of(value) if isinstance(value, dict) else None

    return decode
