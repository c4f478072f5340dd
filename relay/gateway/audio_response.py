"""Passing on a sound that arrives whole: read, settled, sent as the provider's bytes with their type."""

from __future__ import annotations

import re

from relay.formats.answer import NOT_JSON, BadAnswer, loads
from relay.formats.refusal import MAX_ERROR_BYTES
from relay.gateway.whole_response import WholeAnswer
from relay.providers.transport import Reply

# A media type with parameters (RFC 9110, 8.3.1), such as audio/L16;rate=24000, and nothing else.
_TYPE = re.compile(
    r"(?:audio/[\w.+-]{1,60}|application/octet-stream)(?:\s*;\s*[\w.+-]{1,40}=\"?[\w.,+-]{1,40}\"?){0,4}",
    re.ASCII | re.IGNORECASE,
)


class AudioAnswer(WholeAnswer):
    """An Answer that is one sound. ``read_whole`` raises BadAnswer where it is none."""

    async def read(self, reply: Reply) -> None:
        """See Answer."""
        self._type = type_of(reply.headers.get("content-type", ""))
        body = await self._received(reply)
        if _is_json(body):
            raise BadAnswer("the answer is JSON, and no sound")
        self._whole = self._read_whole(body)
        self._body = body


def type_of(given: str) -> bytes:
    """The content type of a sound; raises BadAnswer where it is that of anything else."""
    given = given.strip()
    if not _TYPE.fullmatch(given):
        raise BadAnswer(f"the answer has the type '{given[:100]}', and is no sound")
    return given.encode()


def _is_json(body: bytes) -> bool:
    """Whether it is an object or a list, whatever it is called: an error may come as bytes without a type."""
    small = len(body) <= MAX_ERROR_BYTES
    return small and body.lstrip()[:1] in (b"{", b"[") and loads(body) is not NOT_JSON
