"""Passing on a sound or a text that arrives whole: read, settled, sent as it came, with its type."""

from __future__ import annotations

import re
from collections.abc import Callable

from relay.formats.answer import NOT_JSON, BadAnswer, loads
from relay.formats.format import Whole
from relay.formats.refusal import MAX_ERROR_BYTES
from relay.gateway.call import Call
from relay.gateway.whole_response import WholeAnswer
from relay.providers.transport import Reply

# By what an answer is: its media types, with parameters (RFC 9110, 8.3.1), such as audio/L16;rate=24000.
_PARAMETERS = r"(?:\s*;\s*[\w.+-]{1,40}=\"?[\w.,+-]{1,40}\"?){0,4}"
_TYPES = {
    "sound": re.compile(
        rf"(?:audio/[\w.+-]{{1,60}}|application/octet-stream){_PARAMETERS}", re.ASCII | re.IGNORECASE
    ),
    "text": re.compile(
        rf"(?:text/(?:plain|vtt|srt)|application/x-subrip){_PARAMETERS}", re.ASCII | re.IGNORECASE
    ),
}
# Of what an event stream begins with, see relay.formats.sse.
_EVENT_BYTES = 1024
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BEFORE_DATA = (b":", b"event:", b"id:", b"retry:")


class BytesAnswer(WholeAnswer):
    """An Answer that is one ``kind``: a sound or a text. ``read_whole`` raises BadAnswer where it is none."""

    def __init__(self, call: Call, read_whole: Callable[[bytes], Whole], kind: str) -> None:
        super().__init__(call, read_whole)
        self._kind = kind

    async def read(self, reply: Reply) -> None:
        """See Answer."""
        self._type = type_of(reply.headers.get("content-type", ""), self._kind)
        body = await self._received(reply)
        refuse_others(body, self._kind)
        self._whole = self._read_whole(body)
        self._body = body


def type_of(given: str, kind: str) -> bytes:
    """The content type of an answer of this kind; raises BadAnswer where it is that of anything else."""
    given = given.strip()
    if not _TYPES[kind].fullmatch(given):
        raise BadAnswer(f"the answer has the type '{given[:100]}', and is no {kind}")
    return given.encode()


def refuse_others(body: bytes, kind: str) -> None:
    """Raise BadAnswer for JSON and for events, whatever they are called: an error may come without its type,
    and events tell what is to be paid by themselves."""
    small = len(body) <= MAX_ERROR_BYTES
    if small and body.lstrip()[:1] in (b"{", b"[") and loads(body) is not NOT_JSON:
        raise BadAnswer(f"the answer is JSON, and no {kind}")
    if _begins_as_events(body[:_EVENT_BYTES], kind):
        raise BadAnswer(f"the answer is an event stream, and no {kind}")


def _begins_as_events(begin: bytes, kind: str) -> bool:
    *lines, rest = _LINE_END.split(begin.removeprefix(b"\xef\xbb\xbf"))
    for line in (*lines, rest):
        if line.startswith(b"data:"):
            data = line.removeprefix(b"data:").removeprefix(b" ")
            # Somebody may have said "data:", but not followed by JSON.
            return kind == "sound" or data[:1] in (b"{", b"[") or (not data and bool(lines))
        if line and not line.startswith(_BEFORE_DATA):
            return False
    return False
