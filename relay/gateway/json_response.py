"""Passing on an answer that arrives whole: read, settled, sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relay.asgi import send_body
from relay.errors import ApiError
from relay.formats.openai_chat_answer import Completion, read_completion
from relay.formats.top_level import replace_string
from relay.gateway.call import Call
from relay.providers.transport import Reply


class JsonAnswer:
    """An Answer in one piece. ``model``: the name that it gets in place of the provider's, if any.

    ``redact`` cleans an answer in which no choice was found: it may be anything, a debug dump among it.
    """

    def __init__(self, call: Call, model: str | None, redact: Callable[[bytes], bytes]) -> None:
        self._call, self._model, self._redact = call, model, redact
        self._body = b""
        self._completion = Completion()

    @property
    def usage(self) -> Any:
        """See Answer."""
        return self._completion.usage

    def counted(self) -> int:
        """See Answer."""
        return self._completion.estimate()

    async def read(self, reply: Reply) -> None:
        """See Answer."""
        body = await reply.read(self._call.services.settings.max_answer_bytes)
        self._completion = read_completion(body)
        if not self._completion.choices:
            body = self._redact(body)
        self._body = body if self._model is None else replace_string(body, "model", self._model)

    async def finish(self, error: ApiError | None) -> None:
        """See Answer."""
        if error is not None:
            raise error
        headers = [(b"content-type", b"application/json"), self._call.id_header()]
        await send_body(self._call.send, 200, self._body, headers)
