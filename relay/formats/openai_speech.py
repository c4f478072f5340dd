"""``POST /v1/audio/speech``: a text as sound, whole or in events. It is passed on, and paid by the character.

The price is that of the meter ``char``, for each character (Unicode code point) of ``input`` and of
``instructions``: providers tell no usage beside a sound that comes whole. The text is the prompt: it
is paid as soon as a part of its sound was delivered.
Protocol: https://platform.openai.com/docs/api-reference/audio/createSpeech
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from relay.errors import bad_request
from relay.formats.answer import BadAnswer
from relay.formats.description import NAME, TEXT_OR_NOTHING, Description, body
from relay.formats.description import TEXT as A_TEXT
from relay.formats.format import MeterOptions
from relay.formats.json_fields import FLAG, TEXT, read
from relay.formats.media import Measured, MediaRequest, refuse_stream, unread
from relay.formats.media_stream import MediaEvent, MediaMeter, written
from relay.formats.passed import PassedApi, check
from relay.pricing.bound import MaxUsage
from relay.pricing.usage import METERS_FORMAT
from relay.providers import openai
from relay.settings import Settings

DELTA, DONE = "speech.audio.delta", "speech.audio.done"
_KNOWN = frozenset(
    {"model", "input", "instructions", "response_format", "speed", "stream", "stream_format", "voice"}
)


@dataclass(slots=True, kw_only=True)
class SpeechRequest(MediaRequest):
    """A request for a sound of so many ``characters``."""

    characters: int

    def max_usage(self) -> MaxUsage:
        """See Request."""
        return MaxUsage(others={"char": self.characters})

    def metered(self, api: PassedApi, asked: str = "") -> PassedApi:
        """See MediaRequest."""
        read_whole = partial(read_sound, request=self)
        return replace(api, read_whole=read_whole, meter=partial(SpeechMeter, request=self))

    def as_events(self, body: bytes, asked: str = "") -> bytes:
        """See MediaRequest: the sound in one event, and the end."""
        read_sound(body, request=self)
        sound = base64.b64encode(body).decode()
        return written(DELTA, {"audio": sound}) + written(DONE, {})

    def spoken(self, told: Any) -> dict[str, Any]:
        """Its usage; ``told``: the provider's own."""
        return {"meters": {"char": self.characters}, "provider": told}


def parse(body: bytes, settings: Settings) -> SpeechRequest:
    """Check a body; raises ApiError 400 naming the field."""
    checked = check(body, settings, _KNOWN)
    refuse_stream(bool(read(checked.fields, "stream", FLAG)), 'send stream_format: "sse" in its place')
    text: str = read(checked.fields, "input", TEXT, required=True)
    if not text:
        raise bad_request("input", "input must not be empty.")
    instructions: str = read(checked.fields, "instructions", TEXT) or ""
    return SpeechRequest(
        model=checked.model,
        stream=read(checked.fields, "stream_format", TEXT) == "sse",
        max_output=0,
        input_bound=0,
        images=0,
        choices=1,
        include_usage=False,
        body=checked.body,
        model_at=checked.model_at,
        unknown=checked.unknown,
        counted=0,
        characters=len(text) + len(instructions),
    )


def read_sound(body: bytes, *, request: SpeechRequest) -> Measured:
    """A sound; raises BadAnswer where there is none."""
    if not body:
        raise BadAnswer("the answer is empty")
    return Measured(request.spoken(None))


class SpeechMeter(MediaMeter):
    """Reads a sound along; see Meter. It counts whether there is one, not how long it is."""

    PARTS = frozenset({DELTA})
    ENDS = frozenset({DONE})

    def __init__(self, options: MeterOptions, *, request: SpeechRequest) -> None:
        super().__init__(options)
        self._request = request

    def _count_part(self, part: MediaEvent) -> None:
        if isinstance(part.audio, str) and part.audio and not self.generating:
            self._add_units(1)

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
