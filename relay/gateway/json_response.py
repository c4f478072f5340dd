"""Passing on an answer that arrives whole: read, settled, sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relay.errors import ApiError
from relay.formats.format import Whole
from relay.gateway.call import Call
from relay.providers.transport import Reply


class JsonAnswer:
    """An Answer in one piece. ``read_whole``: of the provider's format; ``shape`` makes the customer's answer
    of the provider's.

    ``redact`` cleans an answer in which none was found: it may be anything, a debug dump among it.
    """

    def __init__(
        self,
        call: Call,
        read_whole: Callable[[bytes], Whole],
        shape: Callable[[bytes], bytes],
        redact: Callable[[bytes], bytes],
    ) -> None:
        self._call, self._read_whole, self._shape, self._redact = call, read_whole, shape, redact
        self._body = b""
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
        body = await reply.read(call.services.settings.max_answer_bytes, call.room.take)
        self._whole = self._read_whole(body)
        self._body = self._shape(self._redact(body) if self._whole.empty else body)

    async def finish(self, error: ApiError | None) -> None:
        """See Answer."""
        if error is not None:
            raise error
        await self._call.send_whole(self._body, [(b"content-type", b"application/json")])
