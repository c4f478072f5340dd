"""``POST /v1/audio/transcriptions``, ``/v1/audio/translations``: what a sound says, the latter in English.

The form is passed on, and paid by the duration where the model's price has the meter ``ms``, else by tokens.
Where a provider tells neither, or what cannot be, the size of the file decides, see USUAL_BYTES_A_SECOND.
Protocol: https://platform.openai.com/docs/api-reference/audio
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

from relay.errors import bad_request
from relay.formats.answer import NOT_JSON, BadAnswer, ErrorAnswer, loads
from relay.formats.description import FILE, NAME, Description, answer, body
from relay.formats.description import TEXT as A_TEXT
from relay.formats.media import Measured, MediaRequest, checked_form, refuse_stream_of, unread
from relay.formats.multipart import Form
from relay.formats.passed import PassedApi
from relay.formats.text_estimate import split_text, text_estimate
from relay.pricing.bound import MaxUsage
from relay.pricing.errors import FieldError
from relay.pricing.tariff import Admission
from relay.pricing.usage import METERS_FORMAT, normalise
from relay.providers import openai
from relay.settings import Settings

# Speech takes 6 kbit/s at least, in the thriftiest format that is in use (Opus): so long a file can last.
LEAST_BYTES_A_SECOND = 750
# What a file is taken for whose duration nobody tells: 128 kbit/s, at which most are made or more.
USUAL_BYTES_A_SECOND = 16_000
# Of OpenAI's models, which hear a token in 100 ms; Gemini's have 32.
USUAL_TOKENS_A_SECOND, MAX_TOKENS_A_SECOND = 10, 32
MAX_TEXT_TOKENS = 16_384
USAGE_FORMAT = "audio"
# In these forms an answer says neither how long the sound is nor what its tokens are.
_UNMEASURED = frozenset({"text", "srt", "vtt"})
_BOTH = frozenset({"file", "model", "prompt", "response_format", "stream", "temperature"})
_TRANSCRIPTION = _BOTH | {
    *("chunking_strategy", "include[]", "known_speaker_names[]", "known_speaker_references[]", "language"),
    "timestamp_granularities[]",
}


@dataclass(slots=True, kw_only=True)
class TranscriptionRequest(MediaRequest):
    """A request for the text of a file of so many ``file_bytes``. ``by_duration``: whether it is paid so."""

    OUTPUT_FIELD: ClassVar[str | None] = ""

    file_bytes: int
    by_duration: bool = False

    def priced(self, admission: Admission) -> Self:
        """See Request. Where neither has a price, it is that of the duration which is missing."""
        return replace(self, by_duration=admission.has_price("ms") or not admission.has_price("out_text"))

    def max_usage(self) -> MaxUsage:
        """See Request."""
        if self.by_duration:
            return MaxUsage(others={"ms": self.longest})
        return MaxUsage(self.input_bound, self.max_output, ("audio", "text"))

    def metered(self, api: PassedApi) -> PassedApi:
        """See MediaRequest."""
        usage_format = METERS_FORMAT if self.by_duration else USAGE_FORMAT
        read_whole = partial(read_transcript, request=self)
        return replace(self.reached(api), USAGE_FORMAT=usage_format, read_whole=read_whole)

    @property
    def longest(self) -> int:
        """The most milliseconds that the file can last."""
        return _milliseconds(self.file_bytes, LEAST_BYTES_A_SECOND)

    @property
    def usual(self) -> int:
        """The milliseconds that it is taken for when nobody tells them."""
        return _milliseconds(self.file_bytes, USUAL_BYTES_A_SECOND)


def _milliseconds(size: int, bytes_a_second: int) -> int:
    return -(-size * 1000 // bytes_a_second)


def _tokens(size: int, bytes_a_second: int, tokens_a_second: int) -> int:
    return -(-size * tokens_a_second // bytes_a_second)


def parse(form: Form, settings: Settings, *, known: frozenset[str]) -> TranscriptionRequest:
    """Check a form; raises ApiError 400 naming the field."""
    checked = checked_form(form, known)
    file = form.file("file")
    refuse_stream_of(form)
    shape = form.text("response_format")
    if shape in _UNMEASURED:
        message = (
            f"response_format: {shape} is not supported: ask for json or verbose_json, and take its text."
        )
        raise bad_request("response_format", message, "unsupported_parameter")
    size = len(file.content)
    return TranscriptionRequest(
        model=checked.model,
        stream=False,
        max_output=settings.max_output.get(checked.model, MAX_TEXT_TOKENS),
        input_bound=_tokens(size, LEAST_BYTES_A_SECOND, MAX_TOKENS_A_SECOND) + form.text_bytes,
        images=0,
        choices=1,
        include_usage=False,
        body=b"",
        model_at=(0, 0),
        unknown=checked.unknown,
        counted=_tokens(size, USUAL_BYTES_A_SECOND, USUAL_TOKENS_A_SECOND),
        form=form,
        file_bytes=size,
    )


parse_transcription = partial(parse, known=_TRANSCRIPTION)
parse_translation = partial(parse, known=_BOTH)


def read_transcript(body: bytes, *, request: TranscriptionRequest) -> Measured:
    """An answer with its text, which is empty where nothing is said; raises ErrorAnswer, and BadAnswer."""
    value = loads(body)
    if value is NOT_JSON or not isinstance(value, dict):
        raise BadAnswer("the answer is not a JSON object")
    text, usage = value.get("text"), value.get("usage")
    if value.get("error") or "text" not in value:
        raise ErrorAnswer(value.get("error") or value)
    if not isinstance(text, str):
        raise BadAnswer("the answer has no text")
    told = usage if isinstance(usage, dict) and usage else None
    if not request.by_duration:
        return Measured(told, text_estimate(*split_text(text)))
    lasted = _duration(value, told)
    if lasted is not None and 0 < lasted <= request.longest:
        return Measured({"meters": {"ms": lasted}, "provider": told})
    why = (
        "no duration was told"
        if lasted is None
        else f"{lasted} ms, where the file has at most {request.longest}"
    )
    return Measured({"meters": {"ms": request.usual}, "estimated": True, "why": why, "provider": told})


def _duration(value: dict[str, Any], usage: dict[str, Any] | None) -> int | None:
    """Milliseconds that the provider tells: as usage, else beside the text."""
    for told in ((usage or {}).get("seconds"), value.get("duration")):
        if told is not None:
            try:
                return normalise(USAGE_FORMAT, {"seconds": told}).get("ms", 0)
            except FieldError:
                continue
    return None


def _about(name: str, summary: str, reference: str, known: frozenset[str]) -> Description:
    return Description(
        name=name,
        summary=summary,
        reference=f"https://platform.openai.com/docs/api-reference/audio/{reference}",
        request=body(
            known - {"stream"},
            typed={
                "model": NAME,
                "file": FILE,
                "response_format": A_TEXT | {"not": {"enum": sorted(_UNMEASURED)}},
            },
            required=("model", "file"),
        ),
        answer=answer(text=A_TEXT),
        form=True,
    )


ABOUT_TRANSCRIPTION = _about(
    "Transcription", "Have a model write down what is said in a sound", "createTranscription", _TRANSCRIPTION
)
ABOUT_TRANSLATION = _about(
    "Translation", "Have a model write down in English what is said in a sound", "createTranslation", _BOTH
)


TRANSCRIPTIONS = PassedApi(openai.At("/audio/transcriptions"), USAGE_FORMAT, unread)
TRANSLATIONS = PassedApi(openai.At("/audio/translations"), USAGE_FORMAT, unread)
