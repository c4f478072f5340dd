"""What passing on an answer that arrives whole has in common, whatever is in it: read, settled, sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relay.errors import ApiError
from relay.formats.format import Whole
from relay.gateway.call import Call
from relay.providers.transport import Reply

JSON = b"application/json"


async def received(call: Call, reply: Reply) -> bytes:
    """The provider's whole body, in the memory that answers share."""
    return await reply.read(call.services.settings.max_answer_bytes, call.room.take)


class WholeAnswer:
    """The part of an Answer in one piece that its kinds share: they read, and say ``_type``, its media type.

    ``read_whole``: of the provider's format.
    """

    _type = JSON

    def __init__(self, call: Call, read_whole: Callable[[bytes], Whole]) -> None:
        self._call, self._read_whole = call, read_whole
        self._body = b""
        self._whole: Whole | None = None

    @property
    def usage(self) -> Any:
        """See Answer."""
        return self._whole.usage if self._whole else None

    def counted(self) -> int:
        """See Answer."""
        return self._whole.estimate() if self._whole else 0

    async def _received(self, reply: Reply) -> bytes:
        return await received(self._call, reply)

    async def finish(self, error: ApiError | None) -> None:
        """See Answer."""
        if error is not None:
            raise error
        await self._call.send_whole(self._body, [(b"content-type", self._type)])
