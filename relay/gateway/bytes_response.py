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


class BytesAnswer(WholeAnswer):
    """An Answer that is one ``kind``: a sound or a text. ``read_whole`` raises BadAnswer where it is none."""

    def __init__(self, call: Call, read_whole: Callable[[bytes], Whole], kind: str) -> None:
        super().__init__(call, read_whole)
        self._kind = kind

    async def read(self, reply: Reply) -> None:
        """See Answer."""
        self._type = type_of(reply.headers.get("content-type", ""), self._kind)
        body = await self._received(reply)
        refuse_json(body, self._kind)
        self._whole = self._read_whole(body)
        self._body = body


def type_of(given: str, kind: str) -> bytes:
    """The content type of an answer of this kind; raises BadAnswer where it is that of anything else."""
    given = given.strip()
    if not _TYPES[kind].fullmatch(given):
        raise BadAnswer(f"the answer has the type '{given[:100]}', and is no {kind}")
    return given.encode()


def refuse_json(body: bytes, kind: str) -> None:
    """Raise BadAnswer for an object or a list, whatever it is called: an error may come without its type."""
    small = len(body) <= MAX_ERROR_BYTES
    if small and body.lstrip()[:1] in (b"{", b"[") and loads(body) is not NOT_JSON:
        raise BadAnswer(f"the answer is JSON, and no {kind}")
