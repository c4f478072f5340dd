"""Reads streams along whose events name their type, and whose last event is known by it."""

from __future__ import annotations

from typing import Any, ClassVar

from relay.formats import sse
from relay.formats.stream_meter import DROP, KEEP, EventMeter
from relay.formats.typed_event import TypedEvent


class TypedMeter(EventMeter):
    """See Meter. ``ENDS``: the types of last events. A format says how events are decoded, which of them are
    errors, and what becomes of each."""

    ENDS: ClassVar[frozenset[str]]
    ERRORS: ClassVar[frozenset[str]] = frozenset({"error"})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.done = False

    def _decode(self, payload: bytes) -> Any:
        """An event, which has the field ``error``; None where it is no JSON object."""
        raise NotImplementedError

    def _read_event(self, decoded: Any, event: bytes, payload: bytes) -> int:
        raise NotImplementedError

    def _read_error(self, decoded: Any, event: bytes, payload: bytes) -> int:
        raise NotImplementedError

    def end(self) -> None:
        """The provider closed the stream: an event whose blank line is missing counts, unless it was cut."""
        event, payload = sse.unended(self._buffer.take_rest())
        if payload and self._decode(payload) is not None:
            self._kept[:0] = self._passed(self._read(event), event + b"\n\n", b"\n\n")

    def break_off(self) -> None:
        """The provider fell silent or cut the stream: without its blank line only the last event counts."""
        event, payload = sse.unended(self._buffer.take_rest())
        decoded: TypedEvent | None = self._decode(payload) if payload else None
        if decoded is not None and decoded.type in self.ENDS:
            self._kept[:0] = self._passed(self._read(event), event + b"\n\n", b"\n\n")

    def tail(self) -> bytes:
        """What ends the stream, to be sent once the call is settled."""
        return b"".join(self._kept)

    @property
    def ending(self) -> bool:
        """Whether the last event has come."""
        return self.done

    @property
    def finished(self) -> bool:
        """Whether the answer is whole, however the connection ends now."""
        return self.error is None and self.broken is None and self.done

    @property
    def complete(self) -> bool:
        """Whether a provider that closes now has ended the stream by itself."""
        return self.finished

    def partial_usage(self, delivered: int) -> Any:
        """See Meter: usage is told at the end only."""
        return None

    def _read(self, event: bytes) -> int:
        if self.error is not None:
            return DROP  # customers' SDKs stop at an error
        payload = sse.data_of(event)
        if not payload:
            return self._other_event(event, None)
        if payload.strip() == b"[DONE]":  # some compatible providers end like chat
            return self._read_done()
        decoded = self._decode(payload)
        if decoded is None:
            return self._not_json(payload)
        self.events += 1
        if self.done:
            return DROP
        if decoded.type in self.ERRORS or (decoded.error and not decoded.type):
            return self._read_error(decoded, event, payload)
        return self._read_event(decoded, event, payload)

    def _read_done(self) -> int:
        return KEEP if self.done else DROP

    def _other_event(self, event: bytes, payload: bytes | None) -> int:
        """A comment, or an event that is unknown here."""
        return DROP if self.done else super()._other_event(event, payload)
