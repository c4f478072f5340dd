"""A provider's stream in the customer's format, metered as the provider's."""

from __future__ import annotations

from typing import Any

from relay.formats.format import Decoder, Encoder, Meter


class TranslatedMeter:
    """A Meter: the provider's own reads along and cuts the stream, what it lets pass is translated.

    What is kept back for the end is translated once the stream has ended: whether it can be said must be
    known before the call is paid for.
    """

    def __init__(self, meter: Meter, decoder: Decoder, encoder: Encoder) -> None:
        self._meter, self._decoder, self._encoder = meter, decoder, encoder
        self._last: bytes | None = None

    def _translated(self, events: bytes) -> bytes:
        if not events:
            return b""
        return b"".join(map(self._encoder.write, self._decoder.feed(events)))

    def feed(self, block: bytes) -> bytes:
        """See Meter; raises BadAnswer for what cannot be translated."""
        return self._translated(self._meter.feed(block))

    def release(self) -> bytes:
        """See Meter."""
        return self._translated(self._meter.release())

    def tail(self) -> bytes:
        """See Meter."""
        self._close()
        return self._last or b""

    def end(self) -> None:
        """See Meter; raises BadAnswer."""
        self._meter.end()
        self._close()

    def break_off(self) -> None:
        """See Meter; raises BadAnswer."""
        self._meter.break_off()
        self._close()

    def _close(self) -> None:
        if self._last is None:
            self._last = b""  # also where it cannot be translated
            last = self._translated(self._meter.tail())
            self._last = last + self._encoder.finish() if self._meter.complete else last

    @property
    def usage(self) -> Any:
        """See Meter."""
        return self._meter.usage

    @property
    def usage_is_last(self) -> bool:
        """See Meter."""
        return self._meter.usage_is_last

    @property
    def error(self) -> Any:
        """See Meter."""
        return self._meter.error

    @property
    def broken(self) -> str | None:
        """See Meter."""
        return self._meter.broken

    @property
    def events(self) -> int:
        """See Meter."""
        return self._meter.events

    @property
    def held(self) -> int:
        """See Meter."""
        return self._meter.held

    @property
    def ending(self) -> bool:
        """See Meter."""
        return self._meter.ending

    @property
    def generating(self) -> bool:
        """See Meter."""
        return self._meter.generating

    @property
    def finished(self) -> bool:
        """See Meter."""
        return self._meter.finished

    @property
    def complete(self) -> bool:
        """See Meter."""
        return self._meter.complete

    def estimate(self) -> int:
        """See Meter."""
        return self._meter.estimate()

    def partial_usage(self, delivered: int) -> Any:
        """See Meter."""
        return self._meter.partial_usage(delivered)

    def is_answer(self, value: Any) -> bool:
        """See Meter."""
        return self._meter.is_answer(value)
