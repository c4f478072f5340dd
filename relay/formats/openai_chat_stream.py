"""Reads an OpenAI event stream along while its bytes pass through.

Events are server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) that hold a
``chat.completion.chunk`` each; the last one is ``[DONE]``. What ends a stream (the usage chunk and what
follows) is kept back until the call is paid for.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from relay.formats.openai_chat_answer import Message, collect_texts
from relay.formats.text_estimate import split_text, text_estimate

MAX_EVENT_BYTES = 4 << 20
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class BadStream(Exception):
    """The provider's stream is not one of chat completion chunks."""


class _Choice(msgspec.Struct):
    delta: Message | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None
    error: Any = None


_chunk = msgspec.json.Decoder(_Chunk)


class StreamMeter:
    """Feed it blocks; it returns what may be sent on, and knows what was delivered."""

    def __init__(self, *, keep_usage_chunk: bool) -> None:
        self._keep_usage_chunk = keep_usage_chunk
        self._partial = b""
        self._tail: list[bytes] = []
        self._ending = False
        self._plain = 0
        self._other = 0
        self.usage: dict[str, Any] | None = None
        self.error: Any = None
        self.done = False

    def feed(self, block: bytes) -> bytes:
        """The bytes to send on now; raises BadStream."""
        data = self._partial + block if self._partial else block
        start = passed = 0
        for match in _END.finditer(data):
            event, end = data[start : match.start()], match.end()
            self._read(event)
            if self._ending:
                if not self._stripped(event):
                    self._tail.append(data[start:end])
            else:
                passed = end
            start = end
        self._partial = data[start:]
        if len(self._partial) > MAX_EVENT_BYTES:
            raise BadStream(f"an event is larger than {MAX_EVENT_BYTES} bytes")
        return data if passed == len(data) else data[:passed]

    def tail(self) -> bytes:
        """What ends the stream, to be sent once the call is settled."""
        return b"".join(self._tail)

    @property
    def complete(self) -> bool:
        """Whether the provider ended the stream by itself and without an error."""
        return self.error is None and (self.done or self.usage is not None)

    def estimate(self) -> int:
        """Counted tokens of what was read so far."""
        return text_estimate(self._plain, self._other)

    def _read(self, event: bytes) -> None:
        data = _data(event)
        if data is None:
            return
        if data == b"[DONE]":
            self.done = self._ending = True
            return
        try:
            chunk = _chunk.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadStream(f"an event is not a chunk: {error}") from None
        if chunk.error is not None:
            self.error = chunk.error
        if chunk.usage is not None:
            self.usage = chunk.usage
            self._ending = self._ending or not chunk.choices
        self._count(chunk.choices)

    def _count(self, choices: list[_Choice]) -> None:
        texts: list[str] = []
        for choice in choices:
            if choice.delta is not None:
                collect_texts(choice.delta, texts)
        for text in texts:
            plain, other = split_text(text)
            self._plain += plain
            self._other += other

    def _stripped(self, event: bytes) -> bool:
        """Whether an event of the stream's end is the usage chunk that only we asked for."""
        if self._keep_usage_chunk or self.done:
            return False
        return self.usage is not None and not self.error


def _data(event: bytes) -> bytes | None:
    """The data of one event (its lines joined by newlines), or None for a comment."""
    if event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
