"""Reading a provider's event stream along while its bytes pass through, in any format.

What is generated passes as it is made. Two parts are kept back, and both are bounded:

- the begin, until something was generated: so long another provider may still be asked;
- the end, until the call is paid for. What is generated afterwards releases what was kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relay.formats import sse
from relay.formats.text_estimate import split_text, text_estimate

# Above this nothing more is kept back: a begin passes on, and an end is not made longer.
MAX_KEPT_BYTES = 256 << 10

# What becomes of an event: END passes what was kept so far, and is kept itself.
PASS, KEEP, END, DROP = range(4)


class EventMeter:
    """Feed it blocks; it returns what may be sent on, and knows what was generated. See Meter.

    A format says by ``_read`` what an event is and what becomes of it, and by ``finished`` when all is there.
    """

    def __init__(self, max_event_bytes: int, redact: Callable[[bytes], bytes], model: str | None) -> None:
        self._model = model
        self._redact = redact
        self._buffer = sse.EventBuffer(max_event_bytes)
        self._opening = True
        self._keeping = True
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._altered: bytes | None = None
        self._plain = 0
        self._other = 0
        self.usage: dict[str, Any] | None = None
        self.usage_is_last = False
        self.error: Any = None
        self.broken: str | None = None
        self.events = 0

    def _read(self, event: bytes) -> int:
        raise NotImplementedError

    @property
    def finished(self) -> bool:
        """Whether everything that was asked for is there, however the connection ends now."""
        raise NotImplementedError

    def feed(self, block: bytes) -> bytes:
        """The bytes to send on now; raises EventTooLarge."""
        data = self._buffer.add(block)
        if not data:
            return b""
        if self._opening:
            data = data.removeprefix(sse.BOM)  # OpenAI's SDK would lose the first event
            self._opening = sse.BOM.startswith(data)
        pieces: list[bytes] = []
        start = clean = 0  # data[clean:start] passes as it came
        for stop, end in sse.event_ends(data):
            verdict = self._read(data[start:stop])
            if verdict or self._kept or self._altered is not None:
                pieces.append(data[clean:start])
                pieces += self._passed(verdict, data[start:end], data[stop:end])
                clean = end
            start = end
            if self.broken is not None:
                return b"".join(pieces)
        if start < len(data):
            self._buffer.keep(data[start:])
        if not pieces:
            return data if start == len(data) else data[:start]
        pieces.append(data[clean:start])
        return b"".join(pieces)

    def release(self) -> bytes:
        """What was kept back of the begin, which may wait no longer: from now on events pass as they come."""
        self._keeping = False
        return self._flush()

    @property
    def held(self) -> int:
        """See Meter."""
        return self._buffer.held + self._kept_bytes

    @property
    def generating(self) -> bool:
        """Whether anything was generated so far."""
        return bool(self._plain or self._other)

    def estimate(self) -> int:
        """Counted tokens of what was read so far."""
        return text_estimate(self._plain, self._other)

    def _passed(self, verdict: int, event: bytes, blank: bytes) -> list[bytes]:
        """What may pass after ``event`` was read, in its order."""
        if self._altered is not None:
            event, self._altered = self._altered + blank, None
        if verdict == DROP:
            return []
        if verdict == PASS:
            return [self._flush(), event]
        passed = [self._flush()] if verdict == END else []
        if self._kept_bytes <= MAX_KEPT_BYTES:
            self._kept.append(event)
            self._kept_bytes += len(event)
        elif not self.finished:
            passed += [self.release(), event]
        return passed

    def _flush(self) -> bytes:
        kept = b"".join(self._kept)
        self._kept.clear()
        self._kept_bytes = 0
        return kept

    def _not_json(self, payload: bytes) -> int:
        """What breaks a stream, unless it is whole already."""
        if not self.finished:
            self.broken = f"what came is not JSON: {payload[:40]!r}"
        return DROP

    def _other_event(self, event: bytes, payload: bytes | None) -> int:
        """A comment, or an event that is unknown here: it passes, cleaned."""
        if not sse.is_utf8(event):
            return DROP
        self._clean(event, payload)
        return KEEP if self._keeping else PASS

    def _clean(self, event: bytes, payload: bytes | None) -> None:
        before = event if payload is None else payload
        after = self._redact(before)
        if after != before:
            self._altered = after if payload is None else sse.with_data(event, after)

    def _add(self, texts: list[str]) -> None:
        """Count what was generated."""
        for text in texts:
            if text.isascii():
                self._plain += len(text)
            else:
                plain, other = split_text(text)
                self._plain += plain
                self._other += other
        if texts:
            self.usage_is_last = False

    def _add_units(self, units: int) -> None:
        """Count so many units of what is no text."""
        if units:
            self._other += units
            self.usage_is_last = False
