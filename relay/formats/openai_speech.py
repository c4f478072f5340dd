"""``POST /v1/audio/speech``: a text as sound, whole or in events. It is passed on.

It is paid by the character where the model's price has the meter ``char``: each (Unicode code point) of
``input`` and of ``instructions``. The text is the prompt: it is paid as soon as a part of its sound was
delivered. Else it is paid by tokens, text in and sound out: those that the last event of a stream tells
(``speech.audio.done``). A sound that comes whole tells none, nor does a stream that breaks off: then the
length of the sound counts, by the header that the provider wrote, else by its size.
Protocol: https://platform.openai.com/docs/api-reference/audio/createSpeech
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

from relay.errors import bad_request
from relay.formats.answer import BadAnswer
from relay.formats.description import NAME, TEXT_OR_NOTHING, Description, body
from relay.formats.description import TEXT as A_TEXT
from relay.formats.format import MeterOptions
from relay.formats.json_fields import FLAG, TEXT, read
from relay.formats.media import Measured, MediaRequest, refuse_stream, unread
from relay.formats.media_stream import MediaEvent, MediaMeter, written
from relay.formats.passed import PassedApi, check
from relay.formats.sound_length import milliseconds
from relay.formats.text_estimate import split_text, text_estimate
from relay.pricing.bound import MaxUsage
from relay.pricing.tariff import Admission
from relay.pricing.usage import METERS_FORMAT
from relay.providers import openai
from relay.settings import Settings

# OpenAI's models speak a token in 50 ms (https://platform.openai.com/docs/guides/realtime-costs).
TOKENS_A_SECOND = 20
# At most so many for a character, and for a sound: slowly, with pauses. Fast English has 17 characters a
# second.
TOKENS_A_CHARACTER, LEAST_MOST_TOKENS = 10, 1_000
# By response_format, what OpenAI's sounds have: samples of 24 kHz and 16 bits, and MP3 of 160 kbit/s.
BYTES_A_SECOND = {"mp3": 20_000, "wav": 48_000, "pcm": 48_000}
USUAL_BYTES_A_SECOND = 16_000
USAGE_FORMAT = "audio"
DELTA, DONE = "speech.audio.delta", "speech.audio.done"
USUAL_KIND, BARE_KIND = "mp3", "pcm"
_KNOWN = frozenset(
    {"model", "input", "instructions", "response_format", "speed", "stream", "stream_format", "voice"}
)


@dataclass(slots=True, kw_only=True)
class SpeechRequest(MediaRequest):
    """A request for a sound of so many ``characters``, as a ``kind`` of file. ``by_character``: whether it is
    paid so."""

    OUTPUT_FIELD: ClassVar[str | None] = ""

    characters: int
    kind: str
    by_character: bool = True

    def priced(self, admission: Admission) -> Self:
        """See Request. Where neither has a price, it is that of the character which is missing."""
        by_character = admission.has_price("char") or not admission.has_price("out_audio")
        return replace(self, by_character=by_character)

    def max_usage(self) -> MaxUsage:
        """See Request."""
        if self.by_character:
            return MaxUsage(others={"char": self.characters})
        return MaxUsage(self.input_bound, self.max_output, ("text",), ("audio",))

    def metered(self, api: PassedApi, asked: str = "") -> PassedApi:
        """See MediaRequest."""
        return replace(
            api,
            USAGE_FORMAT=METERS_FORMAT if self.by_character else USAGE_FORMAT,
            read_whole=partial(read_sound, request=self),
            meter=partial(SpeechMeter, request=self),
        )

    def as_events(self, body: bytes, asked: str = "") -> bytes:
        """See MediaRequest: the sound in one event, and the end."""
        read_sound(body, request=self)
        sound = base64.b64encode(body).decode()
        return written(DELTA, {"audio": sound}) + written(DONE, {})

    def spoken(self, told: dict[str, Any] | None) -> dict[str, Any] | None:
        """Its usage; ``told``: the provider's own."""
        return {"meters": {"char": self.characters}, "provider": told} if self.by_character else told

    def tokens(self, size: int) -> int:
        """Counted, of a sound of so many bytes."""
        return -(-size * TOKENS_A_SECOND // BYTES_A_SECOND.get(self.kind, USUAL_BYTES_A_SECOND))


def parse(body: bytes, settings: Settings) -> SpeechRequest:
    """Check a body; raises ApiError 400 naming the field."""
    checked = check(body, settings, _KNOWN)
    refuse_stream(bool(read(checked.fields, "stream", FLAG)), 'send stream_format: "sse" in its place')
    text: str = read(checked.fields, "input", TEXT, required=True)
    if not text:
        raise bad_request("input", "input must not be empty.")
    instructions: str = read(checked.fields, "instructions", TEXT) or ""
    characters = len(text) + len(instructions)
    most = max(LEAST_MOST_TOKENS, characters * TOKENS_A_CHARACTER)
    return SpeechRequest(
        model=checked.model,
        stream=read(checked.fields, "stream_format", TEXT) == "sse",
        max_output=settings.max_output.get(checked.model, most),
        # A token is at least one byte of its text.
        input_bound=len(checked.body),
        images=0,
        choices=1,
        include_usage=False,
        body=checked.body,
        model_at=checked.model_at,
        unknown=checked.unknown,
        counted=text_estimate(*split_text(text + instructions)),
        characters=characters,
        kind=read(checked.fields, "response_format", TEXT) or USUAL_KIND,
    )


def read_sound(body: bytes, *, request: SpeechRequest) -> Measured:
    """A sound; raises BadAnswer where there is none."""
    if not body:
        raise BadAnswer("the answer is empty")
    # Bare samples have no header, but some look like one.
    length = None if request.kind == BARE_KIND else milliseconds(body)
    counted = request.tokens(len(body)) if length is None else -(-length * TOKENS_A_SECOND // 1000)
    return Measured(request.spoken(None), counted)


class SpeechMeter(MediaMeter):
    """Reads a sound along; see Meter. It counts the tokens of its bytes."""

    PARTS = frozenset({DELTA})
    ENDS = frozenset({DONE})

    def __init__(self, options: MeterOptions, *, request: SpeechRequest) -> None:
        super().__init__(options)
        self._request = request
        self._encoded = 0  # characters of base64 so far, of which four are three bytes

    def _count_part(self, part: MediaEvent) -> None:
        if isinstance(part.audio, str) and part.audio:
            before = self._request.tokens(self._encoded * 3 // 4)
            self._encoded += len(part.audio)
            after = self._request.tokens(self._encoded * 3 // 4)
            self._add_units(after - before if self.generating else max(after, 1))

    @property
    def _wanting(self) -> str | None:
        return None if self.generating else "a sound"

    def _usage_of(self, told: dict[str, Any] | None) -> Any:
        return self._request.spoken(told)

    def partial_usage(self, delivered: int) -> Any:
        """See Meter."""
        return self._request.spoken(None) if delivered else None


ABOUT = Description(
    name="Speech",
    summary="Have a model speak a text, in OpenAI's format",
    reference="https://platform.openai.com/docs/api-reference/audio/createSpeech",
    request=body(
        _KNOWN - {"stream"},
        typed={
            "model": NAME,
            "input": A_TEXT | {"minLength": 1},
            "instructions": TEXT_OR_NOTHING,
            "response_format": TEXT_OR_NOTHING,
            "stream_format": TEXT_OR_NOTHING,
        },
        required=("model", "input"),
        refused={"stream": 'send stream_format: "sse" in its place'},
    ),
    answer={"description": "The sound, in the provider's format."},
    answer_types=("audio/*", "application/octet-stream"),
    streams=True,
)
API = PassedApi(openai.At("/audio/speech"), METERS_FORMAT, unread, BYTES="sound")
