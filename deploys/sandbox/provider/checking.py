"""What a request may hold, told as data: each format says its fields, and refuses in its API's own words."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

Path = tuple[str | int, ...]
JSON = dict[str, Any]

IMAGE_STARTS: Mapping[str, tuple[bytes, ...]] = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}


class BadRequest(Exception):
    """The request cannot be served. ``param``: its field; ``code``: OpenAI's word for the kind of error."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class Wording(Protocol):
    """How an API refuses. ``names``: which names of a field it takes as the same."""

    nulls: bool  # null is the same as nothing

    def name(self, written: str) -> str: ...
    def unknown(self, path: Path) -> BadRequest: ...
    def missing(self, path: Path) -> BadRequest: ...
    def wrong_type(self, path: Path, expected: str, value: Any) -> BadRequest: ...
    def wrong_value(self, path: Path, supported: tuple[str, ...], value: Any) -> BadRequest: ...
    def out_of_range(self, path: Path, low: float, high: float, value: Any) -> BadRequest: ...


Kind = Callable[[Wording, Any, Path], None]


def anything(_wording: Wording, _value: Any, _path: Path) -> None:
    """Any JSON."""


def text(wording: Wording, value: Any, path: Path) -> None:
    """A string."""
    if not isinstance(value, str):
        raise wording.wrong_type(path, "a string", value)


def flag(wording: Wording, value: Any, path: Path) -> None:
    """A boolean."""
    if not isinstance(value, bool):
        raise wording.wrong_type(path, "a boolean", value)


def mapping(wording: Wording, value: Any, path: Path) -> None:
    """An object of any fields."""
    if not isinstance(value, dict):
        raise wording.wrong_type(path, "an object", value)


def whole(low: int = -(2**63), high: int = 2**63) -> Kind:
    """A whole number within bounds."""

    def kind(wording: Wording, value: Any, path: Path) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wording.wrong_type(path, "an integer", value)
        if not low <= value <= high:
            raise wording.out_of_range(path, low, high, value)

    return kind


def decimal(low: float = -1e308, high: float = 1e308) -> Kind:
    """A number within bounds."""

    def kind(wording: Wording, value: Any, path: Path) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wording.wrong_type(path, "a decimal", value)
        if not low <= value <= high:
            raise wording.out_of_range(path, low, high, value)

    return kind


def one_of(*values: str) -> Kind:
    """One of these strings."""

    def kind(wording: Wording, value: Any, path: Path) -> None:
        text(wording, value, path)
        if value not in values:
            raise wording.wrong_value(path, values, value)

    return kind


def matching(pattern: str) -> Kind:
    """A string of this pattern."""
    compiled = re.compile(pattern)

    def kind(wording: Wording, value: Any, path: Path) -> None:
        text(wording, value, path)
        if not compiled.fullmatch(value):
            raise wording.wrong_value(path, (f"strings that match '{pattern}'",), value)

    return kind


def listed(item: Kind, low: int = 0, high: int = 100_000) -> Kind:
    """A list of so many."""

    def kind(wording: Wording, value: Any, path: Path) -> None:
        if not isinstance(value, list):
            raise wording.wrong_type(path, "an array", value)
        if not low <= len(value) <= high:
            raise wording.out_of_range(path, low, high, value)
        for index, member in enumerate(value):
            item(wording, member, (*path, index))

    return kind


def either(first: type, one: Kind, other: Kind) -> Kind:
    """``one`` for values of type ``first``, else ``other``."""

    def kind(wording: Wording, value: Any, path: Path) -> None:
        (one if isinstance(value, first) else other)(wording, value, path)

    return kind


def nullable(inner: Kind) -> Kind:
    """Null, or ``inner``."""

    def kind(wording: Wording, value: Any, path: Path) -> None:
        if value is not None:
            inner(wording, value, path)

    return kind


def record(required: Mapping[str, Kind] | None = None, /, **optional: Kind) -> Kind:
    """An object of these fields and no others."""
    needed = dict(required or {})
    fields = needed | optional

    def kind(wording: Wording, value: Any, path: Path) -> None:
        mapping(wording, value, path)
        present = set()
        for written, member in value.items():
            name = wording.name(written)
            if name not in fields:
                raise wording.unknown((*path, written))
            if member is None and wording.nulls:
                continue
            present.add(name)
            fields[name](wording, member, (*path, written))
        for name in needed:
            if name not in present:
                raise wording.missing((*path, name))

    return kind


def tagged(tag: str, kinds: Mapping[str, Kind], default: str | None = None) -> Kind:
    """An object whose field ``tag`` says which of these it is."""

    def kind(wording: Wording, value: Any, path: Path) -> None:
        mapping(wording, value, path)
        told = value.get(tag, default)
        if told is None:
            raise wording.missing((*path, tag))
        text(wording, told, (*path, tag))
        if told not in kinds:
            raise wording.wrong_value((*path, tag), tuple(kinds), told)
        kinds[told](wording, value, path)

    return kind


def image_bytes(media_type: str, data: str) -> str | None:
    """What is wrong with an image in base64, or None."""
    if media_type not in IMAGE_STARTS:
        return f"unsupported media type {media_type!r}; use one of {', '.join(IMAGE_STARTS)}"
    try:
        start = base64.b64decode(data, validate=True)[:8]
    except (binascii.Error, ValueError):
        return "invalid base64 data"
    if not start.startswith(IMAGE_STARTS[media_type]):
        return f"the image was specified as {media_type}, but its bytes are of another kind"
    return None
