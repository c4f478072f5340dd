"""``POST /v1/audio/transcriptions``, ``/v1/audio/translations``: what a sound says, the latter in English.

The form is passed on, and paid by the duration where the model's price has the meter ``ms``, else by tokens.
Plain text (``response_format`` text, srt, vtt) has no place for usage: a provider that can is asked for JSON
in its place (see Profile.transcript_format), of which the text is made here.

Where a provider tells neither, or what cannot be, the file decides: its header (relay.formats.sound_length),
else its size, see USUAL_BYTES_A_SECOND. Customers write these headers: a file is not taken for shorter than
its subtitles, nor than what is said in it takes, see CHARACTERS_A_SECOND.
Protocol: https://platform.openai.com/docs/api-reference/audio
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

from relay.formats.answer import NOT_JSON, BadAnswer, ErrorAnswer, loads
from relay.formats.description import FILE, NAME, Description, answer, body
from relay.formats.description import FLAG as A_FLAG
from relay.formats.description import TEXT as A_TEXT
from relay.formats.format import MeterOptions
from relay.formats.media import Measured, MediaRequest, checked_form, refuse_stream, streams, unread
from relay.formats.media_stream import MediaEvent, MediaMeter, written
from relay.formats.multipart import Form
from relay.formats.passed import PassedApi
from relay.formats.sound_length import milliseconds
from relay.formats.text_estimate import split_text, text_estimate
from relay.formats.transcript_text import SHAPES, Transcript, read_text, transcript_of
from relay.formats.written_transcript import last_end, write
from relay.pricing.bound import MaxUsage
from relay.pricing.errors import FieldError
from relay.pricing.tariff import Admission
from relay.pricing.usage import METERS_FORMAT, normalise
from relay.providers import openai
from relay.providers.profiles import Profile
from relay.settings import Settings

# Speech takes 6 kbit/s at least, in the thriftiest format that is in use (Opus): so long a file can last.
LEAST_BYTES_A_SECOND = 750
# What a file is taken for whose duration neither its header nor anybody tells: 128 kbit/s, at which most are
# made or more.
USUAL_BYTES_A_SECOND = 16_000
# Faster than anybody speaks: fast English has about 17.
CHARACTERS_A_SECOND = 30
# Of OpenAI's models, which hear a token in 100 ms; Gemini's have 32.
USUAL_TOKENS_A_SECOND, MAX_TOKENS_A_SECOND = 10, 32
MAX_TEXT_TOKENS = 16_384
USAGE_FORMAT = "audio"
DONE = "transcript.text.done"
_BOTH = frozenset({"file", "model", "prompt", "response_format", "stream", "temperature"})
# Of verbose_json alone: words have no place in plain text, and without segments there are no subtitles.
_GRANULARITIES = frozenset({"timestamp_granularities", "timestamp_granularities[]"})
_TRANSCRIPTION = _BOTH | {
    *("chunking_strategy", "include[]", "known_speaker_names[]", "known_speaker_references[]", "language"),
    "timestamp_granularities[]",
}


@dataclass(slots=True, kw_only=True)
class TranscriptionRequest(MediaRequest):
    """A request for the text of a file of so many ``file_bytes``. ``by_duration``: whether it is paid so.

    ``shape``: of SHAPES, where the customer wants plain text, else empty: JSON. ``usual``: the milliseconds
    that the file is taken for when nobody tells them. ``least``: those that it has at least, by the answer
    that is read.
    """

    OUTPUT_FIELD: ClassVar[str | None] = ""

    file_bytes: int
    usual: int
    shape: str = ""
    by_duration: bool = False
    least: int = 0

    def priced(self, admission: Admission) -> Self:
        """See Request. Where neither has a price, it is that of the duration which is missing."""
        return replace(self, by_duration=admission.has_price("ms") or not admission.has_price("out_text"))

    def max_usage(self) -> MaxUsage:
        """See Request."""
        if self.by_duration:
            return MaxUsage(others={"ms": self.longest})
        return MaxUsage(self.input_bound, self.max_output, ("audio", "text"))

    def asked_as(self, model: str, profile: Profile) -> str:
        """See MediaRequest."""
        known = profile.transcript_format(model)
        if not self.shape or known == "as_asked" or (known == "json" and self.shape != "text"):
            return ""
        return known

    def left_out(self, asked: str) -> tuple[str, ...]:
        """See MediaRequest."""
        names = self.form.names if asked and self.form is not None else frozenset()
        return tuple(sorted(_GRANULARITIES & names))

    def metered(self, api: PassedApi, asked: str = "") -> PassedApi:
        """See MediaRequest."""
        plain = bool(self.shape) and not asked
        return replace(
            self.reached(api),
            USAGE_FORMAT=METERS_FORMAT if self.by_duration else USAGE_FORMAT,
            read_whole=partial(read_plain if plain else read_transcript, request=self),
            meter=partial(TranscriptMeter, request=self),
            BYTES="text" if plain else "",
            write=self.written if asked else None,
        )

    def written(self, body: bytes) -> bytes:
        """An answer in JSON as the plain text that the customer wants; raises BadAnswer."""
        return write(loads(body), self.shape)

    def as_events(self, body: bytes, asked: str = "") -> bytes:
        """See MediaRequest."""
        if self.shape and not asked:
            return written(DONE, {"text": read_text(body, self.shape).whole})
        read_transcript(body, request=self)
        value: dict[str, Any] = loads(body)
        if asked:
            told = {name: value[name] for name in ("usage", "duration") if name in value}
            value = {"text": self.written(body).decode()} | told
        return written(DONE, value)

    def hear(self, characters: int, *until: int) -> None:
        """So many characters of the answer were read; ``until``: the ends that it tells, in milliseconds."""
        said = min(characters * 1000 // CHARACTERS_A_SECOND, self.longest)
        self.least = max(self.least, said, *(end for end in until if end <= self.longest))

    def counted_prompt(self, image_tokens: int) -> int:
        """See Request."""
        return max(self.counted, _tokens(self.least, USUAL_TOKENS_A_SECOND))

    def lasted(self, told: int | None, usage: Any) -> dict[str, Any]:
        """Usage by the duration: the milliseconds that were ``told``, where the file can last so long; else
        what it usually lasts, or ``least`` where that is longer."""
        if told is not None and 0 < told <= self.longest:
            return {"meters": {"ms": told}, "provider": usage}
        why = (
            "no duration was told"
            if told is None
            else f"{told} ms, where the file has at most {self.longest}"
        )
        return {
            "meters": {"ms": max(self.usual, self.least)},
            "estimated": True,
            "why": why,
            "provider": usage,
        }

    @property
    def longest(self) -> int:
        """The most milliseconds that the file can last."""
        return _longest(self.file_bytes)


def _longest(size: int) -> int:
    return -(-size * 1000 // LEAST_BYTES_A_SECOND)


def _usual(file: bytes | memoryview) -> int:
    """The milliseconds of a file: by its header, where that tells what can be, else by its size."""
    told = milliseconds(file)
    if told is not None and told <= _longest(len(file)):
        return told
    return -(-len(file) * 1000 // USUAL_BYTES_A_SECOND)


def _tokens(ms: int, tokens_a_second: int) -> int:
    return -(-ms * tokens_a_second // 1000)


def parse(form: Form, settings: Settings, *, known: frozenset[str], streamed: bool) -> TranscriptionRequest:
    """Check a form; raises ApiError 400 naming the field. ``streamed``: whether the API has streams."""
    checked = checked_form(form, known)
    file = form.file("file")
    stream = streams(form)
    refuse_stream(stream and not streamed, "leave it out, and read the whole answer")
    shape = form.text("response_format") or ""
    size, usual = len(file.content), _usual(file.content)
    return TranscriptionRequest(
        model=checked.model,
        stream=stream,
        max_output=settings.max_output.get(checked.model, MAX_TEXT_TOKENS),
        input_bound=_tokens(_longest(size), MAX_TOKENS_A_SECOND) + form.text_bytes,
        images=0,
        choices=1,
        include_usage=False,
        body=b"",
        model_at=(0, 0),
        unknown=checked.unknown,
        counted=_tokens(usual, USUAL_TOKENS_A_SECOND),
        form=form,
        file_bytes=size,
        usual=usual,
        shape=shape if shape in SHAPES else "",
    )


parse_transcription = partial(parse, known=_TRANSCRIPTION, streamed=True)
parse_translation = partial(parse, known=_BOTH, streamed=False)


def read_transcript(body: bytes, *, request: TranscriptionRequest) -> Measured:
    """A JSON answer with its text, empty where nothing is said; raises ErrorAnswer, and BadAnswer."""
    value = loads(body)
    if value is NOT_JSON or not isinstance(value, dict):
        raise BadAnswer("the answer is not a JSON object")
    text, usage = value.get("text"), value.get("usage")
    if value.get("error") or "text" not in value:
        raise ErrorAnswer(value.get("error") or value)
    if not isinstance(text, str):
        raise BadAnswer("the answer has no text")
    told = usage if isinstance(usage, dict) and usage else None
    duration = _duration(value, told)
    request.least = 0
    request.hear(len(text), last_end(value), duration or 0)
    if not request.by_duration:
        return Measured(told, text_estimate(*split_text(text)))
    return Measured(request.lasted(duration, told))


def read_plain(body: bytes, *, request: TranscriptionRequest) -> Measured:
    """An answer that came as plain text, and tells no usage: it is counted as JSON is that tells none. Raises
    BadAnswer."""
    found = read_text(body, request.shape)
    request.least = 0
    request.hear(len(found.said), found.until)
    if not request.by_duration:
        return Measured(None, text_estimate(*split_text(found.said)))
    return Measured(request.lasted(None, None))


class TranscriptMeter(MediaMeter):
    """Reads a transcript along; see Meter."""

    PARTS = frozenset({"transcript.text.delta", "transcript.text.segment"})
    ENDS = frozenset({DONE})

    def __init__(self, options: MeterOptions, *, request: TranscriptionRequest) -> None:
        super().__init__(options)
        self._request = request
        self._request.least = 0  # what another channel said was not delivered
        self._said = 0
        self._ends: tuple[int, ...] = ()  # that the last event tells
        self._beside: dict[str, Any] = {}  # what the last event tells beside the text
        self._deltas = False

    def _count_part(self, part: MediaEvent) -> None:
        if part.type == DONE:
            text = self._read_whole(part)
        elif part.type == "transcript.text.delta":
            text, self._deltas = part.delta, True
        else:
            text = None if self._deltas else part.text  # which its deltas have brought
        if isinstance(text, str) and text:
            self._said += len(text)
            self._add([text])
        self._request.hear(self._said, *self._ends)

    def _read_whole(self, end: MediaEvent) -> str | None:
        """What is said in the last event, which has the whole text, and nothing else came before. It is
        counted as an answer is that is no stream."""
        self._beside = {"duration": end.duration}
        told = end.usage if isinstance(end.usage, dict) else None
        duration = _duration(self._beside, told) or 0
        self._ends = (duration,)
        if not isinstance(end.text, str):
            return None
        found = _transcript(end.text, self._request.shape)
        self._ends = (duration, found.until)
        return None if self.generating else found.said

    def _usage_of(self, told: dict[str, Any] | None) -> Any:
        return (
            self._request.lasted(_duration(self._beside, told), told) if self._request.by_duration else told
        )

    def partial_usage(self, delivered: int) -> Any:
        """See Meter. The sound is the prompt: it is paid as soon as something of its text was delivered."""
        return self._request.lasted(None, None) if self._request.by_duration and delivered else None


def _transcript(text: str, shape: str) -> Transcript:
    try:
        return transcript_of(text, shape) if shape else Transcript(text, text)
    except BadAnswer:  # not all that stream have it in the shape that was asked for
        return Transcript(text, text)


def _duration(value: dict[str, Any], usage: dict[str, Any] | None) -> int | None:
    """Milliseconds that the provider tells: as usage, else beside the text."""
    for told in ((usage or {}).get("seconds"), value.get("duration")):
        if told is not None:
            try:
                return normalise(USAGE_FORMAT, {"seconds": told}).get("ms", 0)
            except FieldError:
                continue
    return None


def _about(name: str, summary: str, reference: str, known: frozenset[str], *, streamed: bool) -> Description:
    typed: dict[str, Any] = {"model": NAME, "file": FILE, "response_format": A_TEXT}
    return Description(
        name=name,
        summary=summary,
        reference=f"https://platform.openai.com/docs/api-reference/audio/{reference}",
        request=body(
            known if streamed else known - {"stream"},
            typed=typed | ({"stream": A_FLAG} if streamed else {}),
            required=("model", "file"),
        ),
        answer=answer(text=A_TEXT),
        streams=streamed,
        text_types=("text/plain", "text/vtt", "text/srt", "application/x-subrip"),
        form=True,
    )


ABOUT_TRANSCRIPTION = _about(
    "Transcription",
    "Have a model write down what is said in a sound",
    "createTranscription",
    _TRANSCRIPTION,
    streamed=True,
)
ABOUT_TRANSLATION = _about(
    "Translation",
    "Have a model write down in English what is said in a sound",
    "createTranslation",
    _BOTH,
    streamed=False,
)


TRANSCRIPTIONS = PassedApi(openai.At("/audio/transcriptions"), USAGE_FORMAT, unread)
TRANSLATIONS = PassedApi(openai.At("/audio/translations"), USAGE_FORMAT, unread)
