"""Passing on JSON that arrives whole."""

from __future__ import annotations

from collections.abc import Callable

from relay.formats.format import Whole
from relay.gateway.call import Call
from relay.gateway.whole_response import JSON, WholeAnswer
from relay.providers.transport import Reply


class JsonAnswer(WholeAnswer):
    """An Answer in one piece. ``shape`` makes the customer's answer of the provider's.

    ``redact`` cleans an answer in which none was found: it may be anything, a debug dump among it. ``type``:
    of what ``shape`` makes.
    """

    def __init__(
        self,
        call: Call,
        read_whole: Callable[[bytes], Whole],
        shape: Callable[[bytes], bytes],
        redact: Callable[[bytes], bytes],
        type: bytes = JSON,
    ) -> None:
        super().__init__(call, read_whole)
        self._shape, self._redact, self._type = shape, redact, type

    async def read(self, reply: Reply) -> None:
        """See Answer."""
        body = await self._received(reply)
        self._whole = self._read_whole(body)
        self._body = self._shape(self._redact(body) if self._whole.empty else body)
