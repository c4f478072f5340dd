"""``POST /v1/audio/speech``: a text as sound. It is passed on, comes whole, and is paid by the character.

The price is that of the meter ``char``, for each character (Unicode code point) of ``input`` and of
``instructions``: providers tell no usage beside the sound.
Protocol: https://platform.openai.com/docs/api-reference/audio/createSpeech
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from relay.errors import bad_request
from relay.formats.answer import BadAnswer
from relay.formats.description import NAME, TEXT_OR_NOTHING, Description, body
from relay.formats.description import TEXT as A_TEXT
from relay.formats.json_fields import TEXT, Fields, read
from relay.formats.media import Measured, MediaRequest, refuse_stream, unread
from relay.formats.passed import PassedApi, check
from relay.pricing.bound import MaxUsage
from relay.pricing.usage import METERS_FORMAT
from relay.providers import openai
from relay.settings import Settings

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

    def metered(self, api: PassedApi) -> PassedApi:
        """See MediaRequest."""
        return replace(api, read_whole=partial(read_sound, characters=self.characters))


def parse(body: bytes, settings: Settings) -> SpeechRequest:
    """Check a body; raises ApiError 400 naming the field."""
    checked = check(body, settings, _KNOWN)
    refuse_stream(checked.fields)
    _refuse_events(checked.fields)
    text: str = read(checked.fields, "input", TEXT, required=True)
    if not text:
        raise bad_request("input", "input must not be empty.")
    instructions: str = read(checked.fields, "instructions", TEXT) or ""
    return SpeechRequest(
        model=checked.model,
        stream=False,
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


def _refuse_events(fields: Fields) -> None:
    if read(fields, "stream_format", TEXT) == "sse":
        message = "stream_format: sse is not supported here: leave it out, and read the sound as it comes."
        raise bad_request("stream_format", message, "unsupported_parameter")


def read_sound(body: bytes, *, characters: int) -> Measured:
    """A sound; raises BadAnswer where there is none."""
    if not body:
        raise BadAnswer("the answer is empty")
    return Measured({"meters": {"char": characters}})


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
            "stream_format": TEXT_OR_NOTHING | {"not": {"const": "sse"}},
        },
        required=("model", "input"),
        refused={"stream": "a sound comes whole; leave it out"},
    ),
    answer={"description": "The sound, in the provider's format."},
    answer_types=("audio/*", "application/octet-stream"),
)
API = PassedApi(openai.At("/audio/speech"), METERS_FORMAT, unread, AUDIO=True)
