"""Forms with files (RFC 7578), multipart/form-data."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .checking import BadRequest
from .formats import JSON

PATHS = frozenset({"/v1/images/edits", "/v1/audio/transcriptions", "/v1/audio/translations"})
BOUNDARY = re.compile(rb"multipart/form-data; boundary=([\w'()+,./:=?-]{1,70})")
NAMED = re.compile(rb'Content-Disposition: form-data; name="([^"]*)"(?:; filename="([^"]*)")?', re.I)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file."""

    name: str
    content: bytes


def read(content_type: bytes, body: bytes) -> JSON:
    """Its texts, files, and lists of those that are there several times; raises BadRequest."""
    found = BOUNDARY.fullmatch(content_type)
    if found is None:
        raise BadRequest("Could not parse multipart form: send it with a boundary.", status=415)
    first, *parts, last = (b"\r\n" + body).split(b"\r\n--" + found[1])
    if first or last != b"--\r\n":
        raise BadRequest("Could not parse multipart form: it does not begin and end with its boundary.")
    fields: dict[str, list[str | Upload]] = {}
    for part in parts:
        head, _, content = part.partition(b"\r\n\r\n")
        named = NAMED.search(head)
        if named is None:
            raise BadRequest("Could not parse multipart form: a part has no name.")
        value = content.decode() if named[2] is None else Upload(named[2].decode(), content)
        fields.setdefault(named[1].decode(), []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}
