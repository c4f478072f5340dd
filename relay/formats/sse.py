"""Server-sent events as bytes: where an event ends, and what data it holds.

Protocol: https://html.spec.whatwg.org/multipage/server-sent-events.html. Lines end with LF, CRLF or CR, mixed
as they come and wherever blocks are cut; a byte order mark may open the stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

BOM = b"\xef\xbb\xbf"
# Two line ends in a row, of three kinds each; CR with LF is one line end.
_EVENT_END = re.compile(rb"\n\n|\r\n\r\n|\n\r\n?|\r\n\n|\r\n\r|\r\r\n?")
# The longest line end: so much of what was searched before may belong to an event's end.
_SEAM = 2
_FIELDS = (b":", b"data", b"event", b"id", b"retry")
# Up to here searching again is cheaper than remembering what was searched.
_SHORT = 1024


class EventTooLarge(Exception):
    """An event has more bytes than it may have."""


class EventBuffer:
    """Collects blocks until an event ends, in time linear in their bytes; keeps at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest: bytes | bytearray = b""

    def add(self, block: bytes) -> bytes:
        """What waited and ``block``; nothing where no event can end in it. Raises EventTooLarge.

        The caller gives back what follows the last event by ``keep``.
        """
        rest = self._rest
        if not rest:
            return block
        if len(rest) <= _SHORT:
            self._rest = b""
            return bytes(rest) + block
        start = len(rest) - _SEAM
        self._rest = rest = rest if isinstance(rest, bytearray) else bytearray(rest)
        rest += block
        if _EVENT_END.search(rest, start) is None:
            self._check()
            return b""
        self._rest = b""
        return bytes(rest)

    def keep(self, rest: bytes) -> None:
        """Let the begin of an event wait for its end; raises EventTooLarge."""
        self._rest = rest
        self._check()

    @property
    def held(self) -> int:
        """Bytes of the event that was begun and has no end."""
        return len(self._rest)

    @property
    def short_rest(self) -> bytes:
        """The event that was begun and has no end, if it is short; else nothing."""
        return bytes(self._rest) if len(self._rest) <= _SHORT else b""

    def take_rest(self) -> bytes:
        """The event that was begun and has no end."""
        rest, self._rest = bytes(self._rest), b""
        return rest

    def _check(self) -> None:
        if len(self._rest) > self._limit:
            raise EventTooLarge(f"an event is larger than {self._limit} bytes")


def event_ends(data: bytes) -> list[tuple[int, int]]:
    """(begin, end) of the blank line after each event. The last one waits while it lacks its line feed."""
    if b"\r" in data:
        ends = [match.span() for match in _EVENT_END.finditer(data)]
        cut = data.endswith(b"\r\n\r") and ends and ends[-1] == (len(data) - 3, len(data))
        return ends[:-1] if cut else ends
    ends = []
    found = data.find(b"\n\n")
    while found >= 0:
        ends.append((found, found + 2))
        found = data.find(b"\n\n", found + 2)
    return ends


def data_of(event: bytes) -> bytes | None:
    """The data of one event (its lines joined by newlines), or None when it has none (a comment)."""
    if event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if _is_data(line)]
    return b"\n".join(lines) if lines else None


def payloads(events: bytes, comments: bool = False) -> Iterator[bytes | None]:
    """The data of whole events; with ``comments``: None for each that is comments alone."""
    start = 0
    for stop, end in event_ends(events):
        event = events[start:stop]
        start = end
        payload = data_of(event)
        if payload:
            yield payload
        elif comments and event.startswith(b":"):
            yield None


def unended(rest: bytes) -> tuple[bytes, bytes | None]:
    """An event whose blank line is missing, and its data."""
    event = rest.strip(b"\r\n")
    return event, data_of(event)


def is_comment(event: bytes) -> bool:
    """Whether there is nothing but comments, in UTF-8, in it."""
    return is_utf8(event) and all(not line or line.startswith(b":") for line in event.splitlines())


def is_utf8(text: bytes) -> bool:
    """Whether it is what an event stream must be written in."""
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def may_begin(begin: bytes) -> bool:
    """Whether an event stream may begin like that: with a comment or one of the standard's fields, after any
    number of fields that the standard does not know and wants ignored.
    """
    lines = [line for line in begin.removeprefix(BOM).splitlines() if line]
    return not lines or any(line.startswith(word[: len(line)]) for line in lines for word in _FIELDS)


def with_data(event: bytes, data: bytes) -> bytes:
    """``event`` with other data; its other fields stay, where they are UTF-8, and its blank line is left to
    the caller.
    """
    others = [line for line in event.splitlines() if line and is_utf8(line) and not _is_data(line)]
    return b"\n".join([*others, *(b"data: " + line for line in data.split(b"\n"))])


def _is_data(line: bytes) -> bool:
    return line.startswith(b"data:") or line == b"data"
