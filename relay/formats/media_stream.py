"""Reads streams of images, sounds and transcripts along while their bytes pass through.

Each event names its type. The last one (``….completed``, ``….done``) tells the usage, and is kept back until
the call is paid for. Nothing passes that is not: before something is counted comments alone do, and an event
without a type, whose content would not be, ends the stream. Protocols:
https://platform.openai.com/docs/api-reference/images-streaming and
https://platform.openai.com/docs/api-reference/audio
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from relay.formats import sse
from relay.formats.answer import loads
from relay.formats.format import MeterOptions
from relay.formats.refusal import in_openais_shape
from relay.formats.stream_meter import DROP, END, KEEP, MAX_KEPT_BYTES, PASS
from relay.formats.top_level import replace_string
from relay.formats.typed_event import TypedEvent, decoder_of
from relay.formats.typed_meter import TypedMeter


class MediaEvent(TypedEvent):
    """What is read of an event."""

    delta: Any = None
    text: Any = None
    audio: Any = None
    b64_json: Any = None
    url: Any = None
    duration: Any = None
    usage: Any = None
    error: Any = None


_decode = decoder_of(MediaEvent)


class MediaMeter(TypedMeter):
    """See Meter. ``PARTS``: the types of events that bring something before the last one. ``error`` passes in
    OpenAI's shape, without secrets."""

    PARTS: ClassVar[frozenset[str]]

    def __init__(self, options: MeterOptions) -> None:
        super().__init__(options.max_event_bytes, options.redact, options.model)

    def _count_part(self, part: MediaEvent) -> None:
        """Count what an event of PARTS or ENDS brings."""
        raise NotImplementedError

    def _usage_of(self, told: dict[str, Any] | None) -> Any:
        """The usage of what has come, where an event of ENDS told this of it."""
        raise NotImplementedError

    @property
    def _wanting(self) -> str | None:
        """What a stream that ends now should have brought; None where nothing is wanting."""
        return None

    @property
    def _last(self) -> bool:
        """Whether the event of ENDS that has come is the last one that was asked for."""
        return True

    def is_answer(self, value: Any) -> bool:
        """See Meter: an answer that is no stream is made one before it is metered."""
        return False

    def _decode(self, payload: bytes) -> MediaEvent | None:
        return _decode(payload)

    def _read_event(self, decoded: MediaEvent, event: bytes, payload: bytes) -> int:
        kind = decoded.type
        if not kind:  # as vLLM streams transcripts, in chunks like chat's
            self.broken = f"an event without a type came: {payload[:40]!r}"
            return DROP
        if kind not in self.PARTS and kind not in self.ENDS:
            verdict = self._other_event(event, payload)
            return verdict if self.generating else self._begun(verdict)
        if self._model is not None:
            renamed = replace_string(payload, "model", self._model)
            if renamed != payload:
                self._altered = sse.with_data(event, renamed)
        self._count_part(decoded)
        if kind in self.ENDS:
            return self._read_end(decoded)
        if not self.generating:
            return self._begun(KEEP)
        self._keeping = False
        return PASS

    def _begun(self, verdict: int) -> int:
        """What becomes of an event before anything was counted: kept, while there is room, or dropped."""
        room = self._keeping and self._kept_bytes <= MAX_KEPT_BYTES
        if not room:
            self._altered = None
        return verdict if room else DROP

    def release(self) -> bytes:
        """See Meter: of what nothing was counted comments pass alone."""
        self._drop_uncounted()
        return super().release()

    def _drop_uncounted(self) -> None:
        if not self.generating:
            self._kept = [event for event in self._kept if not sse.data_of(event)]
            self._kept_bytes = sum(map(len, self._kept))

    def _read_end(self, decoded: MediaEvent) -> int:
        if self._wanting is not None:
            self.broken = f"the stream ended without {self._wanting}"
            return DROP
        self._drop_uncounted()
        told = decoded.usage if isinstance(decoded.usage, dict) and decoded.usage else None
        self.usage = self._usage_of(told)
        self.usage_is_last = self.usage is not None
        self.done, self._keeping = self._last, True
        return END

    def _read_error(self, decoded: MediaEvent, event: bytes, payload: bytes) -> int:
        self.error = decoded.error or loads(payload)
        self._keeping = False
        shaped = json.dumps({"type": "error", "error": in_openais_shape(self.error)}).encode()
        self._altered = sse.with_data(event, self._redact(shaped))
        return PASS


def written(kind: str, fields: dict[str, Any]) -> bytes:
    """An event of this type, whatever ``fields`` say of it."""
    return b"event: " + kind.encode() + b"\ndata: " + json.dumps(fields | {"type": kind}).encode() + b"\n\n"
