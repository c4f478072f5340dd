"""Forms with files, multipart/form-data: read of a customer, and written anew for a provider.

python-multipart reads them. How many parts there are, and how large their headers and texts may be, is
bounded here. The bytes of files are not copied before they are written.
Protocol: RFC 7578.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from relay.errors import ApiError, bad_request
from relay.formats.json_fields import SHOWN, encode
from relay.settings import UnknownFields

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 64
MAX_TEXT_BYTES = 256 << 10
MAX_NAME_BYTES = 200
# Of each part.
MAX_HEADERS, MAX_HEADER_BYTES = 4, 2048
_UNNAMEABLE = re.compile(r'[\x00-\x1f\x7f"\\]')
_TYPE = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}(?:;[ !#-~]{1,100})?", re.ASCII)
NOTHING: Mapping[str, str] = MappingProxyType({})
_PLAIN_ENCODINGS = frozenset({b"", b"binary", b"8bit", b"7bit"})


@dataclass(frozen=True, slots=True)
class Part:
    """A field. ``filename``: of a file, None: it is a text; ``type``: of its content, or ""."""

    name: str
    content: bytes | memoryview
    filename: str | None = None
    type: str = ""

    def text(self) -> str:
        """Of a text; raises ApiError 400."""
        if self.filename is not None:
            raise bad_request(self.name, f"{self.name}: send it as a text, not as a file.", "invalid_type")
        try:
            return str(self.content, "utf-8")
        except UnicodeDecodeError:
            raise bad_request(self.name, f"{self.name} is not UTF-8.", "invalid_type") from None

    def head(self) -> bytes:
        """Its headers, for a provider. In a file's name what would end it is replaced."""
        named = f'Content-Disposition: form-data; name="{self.name}"'
        if self.filename is not None:
            named += f'; filename="{_UNNAMEABLE.sub("_", self.filename)}"'
        typed = f"\r\nContent-Type: {self.type}" if self.type else ""
        return f"{named}{typed}\r\n\r\n".encode()


@dataclass(frozen=True, slots=True)
class Form:
    """A form. ``boundary``: of what is written of it, which is in no content: it is drawn by lot."""

    parts: list[Part]
    boundary: str = field(default_factory=lambda: secrets.token_hex(24))

    @property
    def content_type(self) -> str:
        """Of what is written."""
        return f"multipart/form-data; boundary={self.boundary}"

    @property
    def names(self) -> frozenset[str]:
        """Of its fields."""
        return frozenset(part.name for part in self.parts)

    @property
    def text_bytes(self) -> int:
        """Of all texts together."""
        return sum(len(part.content) for part in self.parts if part.filename is None)

    def text(self, name: str) -> str | None:
        """A text that there is once at most, None where it is absent or empty; raises ApiError 400."""
        found = self._once(name)
        return (found.text() or None) if found is not None else None

    def require(self, name: str) -> str:
        """A text that there must be; raises ApiError 400."""
        value = self.text(name)
        if value is None:
            raise missing(name)
        return value

    def file(self, name: str) -> Part:
        """A file that there must be, once, and not empty; raises ApiError 400."""
        found = self._once(name)
        if found is None:
            raise missing(name)
        return _checked_file(found)

    def files(self, names: Iterable[str]) -> list[Part]:
        """Of these names, any number; raises ApiError 400."""
        wanted = frozenset(names)
        return [_checked_file(part) for part in self.parts if part.name in wanted]

    def _once(self, name: str) -> Part | None:
        found = [part for part in self.parts if part.name == name]
        if len(found) > 1:
            raise bad_request(name, f"{name}: it is there {len(found)} times; send it once.")
        return found[0] if found else None

    def document(self) -> bytes:
        """Its texts as a JSON object."""
        texts = [part for part in self.parts if part.filename is None]
        return encode({part.name: str(part.content, "utf-8", "replace") for part in texts})

    def written(
        self,
        model: str,
        unknown: frozenset[str],
        policy: UnknownFields,
        *,
        changed: Mapping[str, str] = NOTHING,
        left_out: frozenset[str] = frozenset(),
    ) -> bytes:
        """The form for a provider that calls the model ``model``, without ``unknown`` fields where the policy
        is to drop them; raises ApiError 400 where it is to refuse them. ``changed``: texts in the place of
        those that came; ``left_out``: names of other fields that it is not sent."""
        if unknown and policy == "refuse":
            name = min(unknown)[:SHOWN]
            raise bad_request(name, f"Unrecognized request argument supplied: {name}", "unknown_parameter")
        left_out = left_out | unknown if policy == "drop" else left_out
        texts = {**changed, "model": model}
        pieces: list[bytes | memoryview] = []
        opening = f"--{self.boundary}\r\n".encode()
        for part in self.parts:
            if part.name not in left_out:
                content = texts[part.name].encode() if part.name in texts else part.content
                pieces += opening, part.head(), content, b"\r\n"
        return b"".join([*pieces, f"--{self.boundary}--\r\n".encode()])


def missing(name: str) -> ApiError:
    """400: a field that there must be."""
    return bad_request(name, f"You must provide the field '{name}'.", "missing_required_parameter")


def _checked_file(part: Part) -> Part:
    if part.filename is None:
        raise bad_request(part.name, f"{part.name}: send it as a file, with a filename.", "invalid_type")
    if not len(part.content):
        raise bad_request(part.name, f"{part.name}: the file is empty.")
    return part


def form_of(content_type: bytes, body: bytes) -> Form:
    """The form of a request with this header; raises ApiError 400."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise _malformed("its Content-Type has no boundary")
    reader = _Reader()
    try:
        parser = MultipartParser(
            boundary,
            reader.callbacks(),
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )
        _check_delimiters(body, b"--" + boundary)
        parser.write(body)
    except FormParserError as error:
        raise _malformed(str(error)[:SHOWN]) from None
    if not reader.ended:
        raise _malformed("its end is missing")
    return Form(reader.parts)


def _check_delimiters(body: bytes, delimiter: bytes) -> None:
    """Raise ApiError 400 unless parts begin and end as every client writes them: what else may stand there
    the parser reads byte by byte, and megabytes of it would take it seconds."""
    at = 0 if body.startswith(delimiter) else -1
    for _ in range(MAX_PARTS + 1):
        if at < 0:
            raise _malformed("a boundary is missing")
        end = at + len(delimiter)
        follows = body[end : end + 2]
        if follows == b"--":
            return
        if follows != b"\r\n":
            raise _malformed("a boundary stands within a line")
        found = body.find(b"\r\n" + delimiter, end)
        at = found + 2 if found >= 0 else -1
    raise bad_request(None, f"The form has more than {MAX_PARTS} fields: send fewer.", "invalid_form")


def _malformed(problem: str) -> ApiError:
    message = f"The body is not a form: {problem}. Send multipart/form-data (RFC 7578)."
    return bad_request(None, message, "invalid_form")


class _Reader:
    """Takes what the parser finds in a body that is given to it in one piece."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._found: list[memoryview] = []
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""

    def callbacks(self) -> MultipartCallbacks:
        """See MultipartParser."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._found, self._headers = [], {}

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._found.append(memoryview(data)[start:end])

    def _part_end(self) -> None:
        name, filename = _disposition(self._headers.get(b"content-disposition", b""))
        content = self._found[0] if len(self._found) == 1 else b"".join(self._found)
        if filename is None and len(content) > MAX_TEXT_BYTES:
            raise bad_request(name, f"{name} is too long: a text has at most {MAX_TEXT_BYTES} bytes.")
        if self._headers.get(b"content-transfer-encoding", b"").strip().lower() not in _PLAIN_ENCODINGS:
            raise bad_request(name, f"{name}: send its bytes as they are, without Content-Transfer-Encoding.")
        given = self._headers.get(b"content-type", b"").decode("latin-1").strip()
        self.parts.append(Part(name, content, filename, given if _TYPE.fullmatch(given) else ""))

    def _end(self) -> None:
        self.ended = True


def _disposition(given: bytes) -> tuple[str, str | None]:
    """(name, filename) of a part."""
    kind, options = parse_options_header(given)
    try:
        name = options.get(b"name", b"").decode()
        filename = options[b"filename"].decode() if b"filename" in options else None
    except UnicodeDecodeError:
        raise _malformed("a name in it is not UTF-8") from None
    if kind != b"form-data" or not name:
        raise _malformed("a part of it has no name")
    if len(name.encode()) > MAX_NAME_BYTES or _UNNAMEABLE.search(name):
        raise _malformed(f"a field's name is longer than {MAX_NAME_BYTES} bytes, or not of plain characters")
    return name, filename
