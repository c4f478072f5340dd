"""A stream of Gemini's without ``alt=sse``: one JSON array, whose elements come as they are made.

Inside the relay such a stream is one of events, as it is at the provider. Here each event's data becomes an
element, byte by byte; what holds no data, such as a ping, becomes a blank line.
Protocol: https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent
"""

from __future__ import annotations

from relay.asgi import Message, Send
from relay.formats import sse
from relay.gateway.call import SSE_HEADERS

_ARRAY = (b"content-type", b"application/json; charset=UTF-8")


class ArraySend:
    """An ASGI ``send`` for one response: turns a stream of whole events into an array, lets all else pass."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_stream = self._begun = False

    async def __call__(self, message: Message) -> None:
        """Send a message on."""
        if message["type"] == "http.response.start":
            events = SSE_HEADERS[0]
            self._is_stream = events in message["headers"]
            headers = [_ARRAY if header == events else header for header in message["headers"]]
            message = {**message, "headers": headers}
        elif self._is_stream:
            last = not message.get("more_body", False)
            message = {**message, "body": self._array(message.get("body", b""), last)}
        await self._send(message)

    def _array(self, events: bytes, last: bool) -> bytes:
        pieces: list[bytes] = []
        for payload in sse.payloads(events):
            pieces += (b",\r\n" if self._begun else b"[", payload or b"")
            self._begun = True
        if last:
            pieces.append(b"]" if self._begun else b"[]")
        return b"".join(pieces) or b"\r\n"
