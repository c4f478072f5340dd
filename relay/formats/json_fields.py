"""Reading a request's JSON object field by field, so that each error names the field and the remedy.

A field that is null counts as absent. Values stay as they came until they are read.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from relay.errors import ApiError, bad_request
from relay.formats.json_depth import check_depth

Fields = dict[str, msgspec.Raw]

SHOWN = 100  # characters of a customer's value that an error repeats
QUOTE, LIST, NULL = b'"[n'  # how texts, lists and null begin
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A pair of surrogates, one alone (the group), or any other escape.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.S
)

# A name at the top level of an object, from behind what stands before it.
_KEY = re.compile(rb'[\s,]*+("(?:[^"\\]++|\\.)*+")\s*:\s*', re.S)

encode = msgspec.json.Encoder().encode
OBJECT = msgspec.json.Decoder(Fields)
OBJECTS = msgspec.json.Decoder(list[Fields])
NUMBER = msgspec.json.Decoder(int | float)
FLAG = msgspec.json.Decoder(bool)
TEXT = msgspec.json.Decoder(str)
TEXTS = msgspec.json.Decoder(list[str])


def read_fields(body: bytes, max_depth: int) -> Fields:
    """The fields of a body that are not null; raises ApiError 400."""
    return without_nulls(read_document(body, max_depth)[1])


def read_document(body: bytes, max_depth: int) -> tuple[bytes, Fields]:
    """The body as it was understood, and all its fields; raises ApiError 400.

    They differ from what came by a byte order mark and halves of surrogate pairs alone: these become U+FFFD,
    as browsers and most decoders have it; many clients cut a text within an emoji.
    """
    check_depth(body, max_depth)
    body = body.removeprefix(_BYTE_ORDER_MARK)
    try:
        body.decode()
    except UnicodeDecodeError as error:
        message = f"The body is not UTF-8 (byte {error.start}): send JSON in UTF-8."
        raise bad_request(None, message, "invalid_json") from None
    try:
        return _decode(body)
    except (msgspec.MsgspecError, UnicodeError) as error:
        message = f"The body is not a valid JSON object: {error}. Send an object with model and messages."
        raise bad_request(None, message, "invalid_json") from None


def _decode(body: bytes) -> tuple[bytes, Fields]:
    try:
        return body, OBJECT.decode(body)
    except msgspec.DecodeError:
        mended = _ESCAPE.sub(lambda escape: b"\\ufffd" if escape[1] else escape[0], body)
        if mended == body:
            raise
        return mended, OBJECT.decode(mended)


def without_nulls(fields: Fields) -> Fields:
    """The fields that are not null."""
    return {name: raw for name, raw in fields.items() if starts(raw) != NULL}


def spans_of(body: bytes, fields: Fields, where: str = "") -> dict[str, tuple[int, int]]:
    """(begin, end) of each field's value in ``body``, an object at ``where`` with these fields. Raises
    ApiError 400 for a name that occurs twice: who reads it next might take the other value."""
    at = body.index(b"{") + 1
    spans: dict[str, tuple[int, int]] = {}
    while (key := _KEY.match(body, at)) is not None:
        name: str = TEXT.decode(key[1])
        # The value that is known is the last one: where it stands not here, there is another one later.
        value = bytes(fields[name])
        at = key.end() + len(value)
        if name in spans or body[key.end() : at] != value:
            place = f"{where}.{name[:SHOWN]}" if where else name[:SHOWN]
            raise bad_request(place, f"{place}: it is there twice; send it once.")
        spans[name] = key.end(), at
    return spans


def starts(raw: msgspec.Raw) -> int:
    """The first byte of valid JSON, which tells its type."""
    return memoryview(raw)[0]


def bounded(fields: Fields, name: str, most: int) -> int | None:
    """A whole number from 1 to ``most``, which may be written like 100.0, as OpenAI takes it."""
    value = read(fields, name, NUMBER)
    if value is None:
        return None
    if isinstance(value, float) and not value.is_integer():
        raise bad_request(name, f"Invalid value for '{name}': Expected a whole number.", "invalid_type")
    if not 1 <= value <= most:
        raise bad_request(name, f"{name} must be between 1 and {most}, not {shown(fields[name])}.")
    fields[name] = msgspec.Raw(encode(int(value)))
    return int(value)


def require(fields: Fields, name: str, where: str) -> str:
    """A text field that an object at ``where`` must have."""
    value: str = read(fields, name, TEXT, required=True, where=where)
    return value


def read(
    fields: Fields, name: str, decoder: msgspec.json.Decoder[Any], *, required: bool = False, where: str = ""
) -> Any:
    """Field ``name`` of the object at ``where``; None where it is absent or null. Raises ApiError 400."""
    place = f"{where}.{name}" if where else name
    raw = fields.get(name)
    if raw is None or starts(raw) == NULL:
        if required:
            raise bad_request(place, f"You must provide the field '{place}'.", "missing_required_parameter")
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise wrong(place, str(error)) from None


def wrong(name: str, problem: str) -> ApiError:
    """400 for a value of another type. msgspec ends its messages with "- at `$[0].role`": that path names the
    field inside ``name``."""
    reason, _, path = problem.partition(" - at `$")
    where = name + path.rstrip("`")
    return bad_request(where, f"Invalid value for '{where}': {reason}.", "invalid_type")


def shown(raw: msgspec.Raw) -> str:
    """A value's begin, for an error that repeats it."""
    return bytes(memoryview(raw)[:SHOWN]).decode("ascii", "replace")


def text_of(raw: msgspec.Raw | None) -> str:
    """A text, or nothing where there is none."""
    if raw is None or starts(raw) != QUOTE:
        return ""
    return TEXT.decode(raw)
