"""Passing on a sound that arrives whole: read, settled, sent as the provider's bytes with their type."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from relay.errors import ApiError
from relay.formats.answer import NOT_JSON, BadAnswer, loads
from relay.formats.format import Whole
from relay.formats.refusal import MAX_ERROR_BYTES
from relay.gateway.call import Call
from relay.providers.transport import Reply

# A media type with parameters (RFC 9110, 8.3.1), such as audio/L16;rate=24000, and nothing else.
_TYPE = re.compile(
    r"(?:audio/[\w.+-]{1,60}|application/octet-stream)(?:\s*;\s*[\w.+-]{1,40}=\"?[\w.,+-]{1,40}\"?){0,4}",
    re.ASCII | re.IGNORECASE,
)


class AudioAnswer:
    """An Answer that is one sound. ``read_whole``: raises BadAnswer where it is none."""

    def __init__(self, call: Call, read_whole: Callable[[bytes], Whole]) -> None:
        self._call, self._read_whole = call, read_whole
        self._type = self._body = b""
        self._whole: Whole | None = None

    @property
    def usage(self) -> Any:
        """See Answer."""
        return self._whole.usage if self._whole else None

    def counted(self) -> int:
        """See Answer."""
        return self._whole.estimate() if self._whole else 0

    async def read(self, reply: Reply) -> None:
        """See Answer."""
        call = self._call
        self._type = type_of(reply.headers.get("content-type", ""))
        body = await reply.read(call.services.settings.max_answer_bytes, call.room.take)
        if _is_json(body):
            raise BadAnswer("the answer is JSON, and no sound")
        self._whole = self._read_whole(body)
        self._body = body

    async def finish(self, error: ApiError | None) -> None:
        """See Answer."""
        if error is not None:
            raise error
        await self._call.send_whole(self._body, [(b"content-type", self._type)])


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
