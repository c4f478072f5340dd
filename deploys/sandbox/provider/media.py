"""Images and sounds: OpenAI's POST /v1/images/generations and /edits, /v1/audio/speech and /transcriptions,
whole or as the events that media_events writes.

The same request always gets the same picture (one colour) and the same sound. The books count images,
characters and tokens, so that a call can be paid by any of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from . import media_events, openai_words, subtitles
from .answers import count
from .books import Served, now
from .checking import BadRequest, anything, decimal, flag, matching, one_of, record, text, whole
from .control import Control
from .formats import JSON, figure
from .forms import Upload

WORDING = openai_words.Wording(chat=False)
# Tokens of an image by its quality, as OpenAI tells them of square ones.
TOKENS_OF_QUALITY = {"low": 272, "medium": 1056, "high": 4160}
USUAL_QUALITY = "medium"
MOST_IMAGES = 10
MOST_CHARACTERS = 4096
TOKENS_SEEN = 323  # of an image beside a prompt
BYTES_A_SECOND = 4_000  # of sounds that are heard: 32 kbit/s
SIDE = 8  # pixels
SAMPLES_A_CHARACTER = 20
RATE = 24_000  # samples a second
TEXTS = ("text", "srt", "vtt")
TYPES = {
    "mp3": b"audio/mpeg",
    "opus": b"audio/opus",
    "aac": b"audio/aac",
    "flac": b"audio/flac",
    "wav": b"audio/wav",
    "pcm": b"audio/pcm",
}
IMAGE = record(
    {"prompt": text},
    model=text,
    background=one_of("transparent", "opaque", "auto"),
    moderation=one_of("low", "auto"),
    n=whole(1, MOST_IMAGES),
    output_compression=whole(0, 100),
    output_format=one_of("png", "jpeg", "webp"),
    partial_images=whole(0, 3),
    quality=one_of("auto", "standard", "hd", *TOKENS_OF_QUALITY),
    response_format=one_of("url", "b64_json"),
    size=text,
    stream=flag,
    style=one_of("vivid", "natural"),
    user=text,
)
# Of forms, whose fields are texts.
EDIT = record(
    {"prompt": text},
    model=text,
    background=text,
    input_fidelity=one_of("high", "low"),
    moderation=text,
    n=matching(r"[1-9]|10"),
    output_compression=matching(r"\d{1,3}"),
    output_format=one_of("png", "jpeg", "webp"),
    partial_images=matching(r"[0-3]"),
    quality=one_of("auto", "standard", "hd", *TOKENS_OF_QUALITY),
    response_format=one_of("url", "b64_json"),
    size=text,
    stream=one_of("false", "true"),
    user=text,
    **{"image[]": anything},
)
HEARD = record(
    {"model": text},
    chunking_strategy=text,
    language=text,
    prompt=text,
    response_format=one_of("json", "verbose_json", "diarized_json", *TEXTS),
    stream=one_of("false", "true"),
    temperature=matching(r"[0-9.]+"),
    **{"include[]": anything, "timestamp_granularities[]": anything},
)
SPEECH = record(
    {"model": text, "input": text, "voice": anything},
    instructions=text,
    response_format=one_of(*TYPES),
    speed=decimal(0.25, 4),
    stream_format=one_of("audio", "sse"),
)


@dataclass(frozen=True, slots=True)
class Made:
    """An answer, and what it costs. ``pieces``: on the bill beside tokens; ``stream``: where it comes so."""

    model: str
    content_type: bytes
    body: bytes
    usage: JSON
    prompt: int = 0
    output: int = 0
    pieces: Mapping[str, int] = field(default_factory=dict)
    stream: media_events.Stream | None = None

    def served(self, request_id: str, *, usage_sent: bool, cut_at: int | None = None) -> Served:
        """Its line of the books. ``cut_at``: after how many tokens a stream was cut that was not complete."""
        output = self.output if cut_at is None else cut_at
        pieces = dict(self.pieces)
        if cut_at is not None and self.stream is not None and self.stream.images:
            pieces["images"] = self.stream.images[cut_at]
        bill = {"input": self.prompt, "output": output, **pieces}
        return Served(
            request_id=request_id,
            model=self.model,
            stream=self.stream is not None,
            prompt_tokens=self.prompt,
            completion_tokens=output,
            complete=cut_at is None,
            usage_sent=usage_sent,
            served_at=now(),
            format="openai_media",
            usage=json.dumps(self.usage),
            bill=json.dumps(bill),
        )


def images(body: JSON, control: Control) -> Made:
    """The answer of /v1/images/generations; raises BadRequest."""
    IMAGE(WORDING, body, ())
    wanted = body.get("n") or 1
    number = wanted if control.images < 0 else control.images
    prompt = body["prompt"]
    data = [one_image(body, f"{prompt}\n{index}", control.media_bytes) for index in range(number)]
    each = TOKENS_OF_QUALITY.get(body.get("quality") or "", TOKENS_OF_QUALITY[USUAL_QUALITY])
    each += media_events.PREVIEW_TOKENS * previews(body)
    usage = control.usage or image_usage(count(prompt), each * number)
    return image_answer(body, data, usage, control, streamed="image_generation" if body.get("stream") else "")


def previews(body: JSON) -> int:
    """How many previews of each image are wanted."""
    return int(body.get("partial_images") or 0) if body.get("stream") in (True, "true") else 0


def image_answer(body: JSON, data: list[JSON], usage: JSON, control: Control, *, streamed: str) -> Made:
    """An answer with images; ``streamed``: how the types of its events begin, where they are wanted."""
    answer: JSON = {"created": int(now()), "data": data}
    if not control.omit_usage:
        answer["usage"] = control.told_usage or usage
    stream = None
    if streamed:
        stream = media_events.images(body, streamed, data, previews(body), usage, answer.get("usage"))
    return Made(
        stream=stream,
        model=body.get("model") or "gpt-image-1",
        content_type=b"application/json",
        body=json.dumps(answer).encode(),
        usage=usage,
        prompt=figure(usage, "input_tokens"),
        output=figure(usage, "output_tokens"),
        pieces={"images": len(data)},
    )


def image_usage(prompt: int, output: int, seen: int = 0) -> JSON:
    """Usage in the shape of OpenAI's API of images."""
    return {
        "input_tokens": prompt + seen,
        "input_tokens_details": {"text_tokens": prompt, "image_tokens": seen},
        "output_tokens": output,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": output},
        "total_tokens": prompt + seen + output,
    }


def one_image(body: JSON, seed: str, size: int) -> JSON:
    """An entry of ``data``."""
    if body.get("response_format") == "url":
        return {"url": f"https://images.example.com/{hashlib.sha256(seed.encode()).hexdigest()}.png"}
    return {"b64_json": base64.b64encode(picture(seed, size)).decode()}


def picture(seed: str, size: int = 0) -> bytes:
    """A PNG of the seed's colour (https://www.w3.org/TR/png-3/), of at least ``size`` bytes."""
    colour = hashlib.sha256(seed.encode()).digest()[:3]
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + colour * SIDE) * SIDE)
    padding = [png_chunk(b"paDd", colour * (size // len(colour) + 1))] if size else []
    chunks = [png_chunk(b"IHDR", head), *padding, png_chunk(b"IDAT", rows), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def speech(body: JSON, control: Control) -> Made:
    """The answer of /v1/audio/speech, which tells no usage; raises BadRequest."""
    SPEECH(WORDING, body, ())
    said = body["input"]
    if not 1 <= len(said) <= MOST_CHARACTERS:
        message = f"'input' must have 1 to {MOST_CHARACTERS} characters."
        raise BadRequest(message, param="input", code="string_above_max_length")
    characters = len(said) + len(body.get("instructions") or "")
    kind = body.get("response_format") or "mp3"
    made, stream = sound(said, kind, control.media_bytes), None
    usage = control.usage or spoken_usage(said, made)
    if body.get("stream_format") == "sse":
        stream = media_events.speech(made, None if control.omit_usage else control.told_usage or usage)
    return Made(
        stream=stream,
        model=body["model"],
        content_type=TYPES[kind],
        body=made,
        usage=usage | {"characters": characters},
        prompt=figure(usage, "input_tokens"),
        output=figure(usage, "output_tokens"),
        pieces={"characters": characters},
    )


def spoken_usage(said: str, made: bytes) -> JSON:
    """Usage in the shape of a stream of sound, each part of which is a token."""
    prompt, output = count(said), -(-len(made) // media_events.SOUND_BYTES)
    return {"input_tokens": prompt, "output_tokens": output, "total_tokens": prompt + output}


def sound(said: str, kind: str, size: int = 0) -> bytes:
    """Samples that the text decides: in a WAV where that is asked for, else behind a word for the kind; this
    provider has no encoders."""
    length = size or 2 * SAMPLES_A_CHARACTER * len(said)
    digest = hashlib.sha256(said.encode()).digest()
    samples = (digest * (length // len(digest) + 1))[:length]
    if kind == "wav":
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
        data = form + struct.pack("<4sI", b"data", len(samples)) + samples
        return struct.pack("<4sI", b"RIFF", len(data) + 4) + b"WAVE" + data
    return samples if kind == "pcm" else kind.encode() + samples


def edits(body: JSON, control: Control) -> Made:
    """The answer of /v1/images/edits: other pictures for other images; raises BadRequest."""
    EDIT(WORDING, {name: value for name, value in body.items() if not isinstance(value, Upload)}, ())
    seen = uploads(body, "image", "image[]", "mask")
    if not uploads(body, "image", "image[]"):
        raise WORDING.missing(("image",))
    for one in seen:
        if not one.content.startswith(b"\x89PNG"):
            raise BadRequest("Invalid image file.", param="image", code="invalid_image_file")
    number = int(body.get("n") or 1) if control.images < 0 else control.images
    shown = hashlib.sha256(b"".join(one.content for one in seen)).hexdigest()
    prompt = body["prompt"]
    data = [one_image(body, f"{prompt}\n{shown}\n{index}", control.media_bytes) for index in range(number)]
    each = TOKENS_OF_QUALITY.get(body.get("quality") or "", TOKENS_OF_QUALITY[USUAL_QUALITY])
    each += media_events.PREVIEW_TOKENS * previews(body)
    usage = control.usage or image_usage(count(prompt), each * number, TOKENS_SEEN * len(seen))
    streamed = "image_edit" if body.get("stream") == "true" else ""
    return image_answer(body, data, usage, control, streamed=streamed)


def uploads(body: JSON, *names: str) -> list[Upload]:
    """Files of these names."""
    found = [body.get(name) for name in names]
    listed = [one for value in found for one in (value if isinstance(value, list) else [value])]
    return [one for one in listed if isinstance(one, Upload)]


def transcription(body: JSON, control: Control, *, task: str = "transcribe") -> Made:
    """The answer of /v1/audio/transcriptions and /v1/audio/translations; raises BadRequest.

    A second of sound is BYTES_A_SECOND of its file. ``gpt-…`` tells tokens and writes no times, any other
    model tells the duration; ``whisper-…`` passes over ``stream``, as OpenAI's whisper-1 does.
    """
    HEARD(WORDING, {name: value for name, value in body.items() if not isinstance(value, Upload)}, ())
    found = uploads(body, "file")
    if not found:
        raise WORDING.missing(("file",))
    file = found[0].content
    seconds = len(file) / BYTES_A_SECOND
    text = control.text or f"{len(file)} bytes: {hashlib.sha256(file).hexdigest()}"
    by_tokens = body["model"].startswith("gpt-")
    shape = body.get("response_format") or "json"
    if by_tokens and shape in ("srt", "vtt", "verbose_json"):
        message = f"response_format '{shape}' is not compatible with model '{body['model']}'."
        message += " Use 'json' or 'text' instead."
        raise BadRequest(message, param="response_format", code="unsupported_value")
    wanted = granularities(body, shape)
    prompt, output = 10 * math.ceil(seconds), count(text)
    usage = heard_usage(prompt, output) if by_tokens else {"type": "duration", "seconds": math.ceil(seconds)}
    usage = control.usage or usage
    told = None if control.omit_usage else control.told_usage or usage
    streamed = body.get("stream") == "true" and not body["model"].startswith("whisper-")
    return Made(
        model=body["model"],
        content_type=b"text/plain; charset=utf-8" if shape in TEXTS else b"application/json",
        body=transcript(text, seconds, shape, told, wanted, task),
        usage=usage,
        prompt=prompt if by_tokens else 0,
        output=output if by_tokens else 0,
        pieces={"ms": math.ceil(seconds * 1000), "seconds": math.ceil(seconds)},
        stream=media_events.transcript(text, told) if streamed else None,
    )


def granularities(body: JSON, shape: str) -> list[str]:
    """Which times are wanted, of segments and of words; raises BadRequest."""
    name = "timestamp_granularities[]"
    given = body.get(name, [])
    listed = given if isinstance(given, list) else [given]
    if listed and shape != "verbose_json":
        raise BadRequest(f"'{name}' needs response_format 'verbose_json'.", param=name, code="invalid_value")
    for one in listed:
        if one not in ("segment", "word"):
            raise WORDING.wrong_value((name,), ("segment", "word"), one)
    return listed or ["segment"]


def transcript(
    text: str,
    seconds: float,
    shape: str,
    told: JSON | None,
    wanted: list[str] | None = None,
    task: str = "transcribe",
) -> bytes:
    """A transcript of this shape; plain text has no place for usage. ``wanted``: see granularities()."""
    if shape in TEXTS:
        return subtitles.WRITTEN[shape](text, seconds).encode()
    answer: JSON = {"text": text}
    if shape == "verbose_json":
        answer = {"task": task, "language": "english", "duration": seconds} | answer
        if wanted is None or "segment" in wanted:
            answer["segments"] = subtitles.segments(text, seconds)
        if wanted is not None and "word" in wanted:
            answer["words"] = subtitles.words(text, seconds)
    return json.dumps(answer if told is None else answer | {"usage": told}).encode()


def heard_usage(prompt: int, output: int) -> JSON:
    """Usage of a transcription that is paid by tokens."""
    return {
        "type": "tokens",
        "input_tokens": prompt,
        "input_token_details": {"text_tokens": 0, "audio_tokens": prompt},
        "output_tokens": output,
        "total_tokens": prompt + output,
    }


# By path: the field in whose text an order may stand, and what answers.
MAKING: dict[str, tuple[str, Callable[[JSON, Control], Made]]] = {
    "/v1/images/generations": ("prompt", images),
    "/v1/images/edits": ("prompt", edits),
    "/v1/audio/speech": ("input", speech),
    "/v1/audio/transcriptions": ("prompt", transcription),
    "/v1/audio/translations": ("prompt", partial(transcription, task="translate")),
}
