"""Images, sounds and transcripts as the events of OpenAI's streams.

Protocols: https://platform.openai.com/docs/api-reference/images-streaming and
https://platform.openai.com/docs/api-reference/audio
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from .answers import count
from .formats import JSON, Chunk, event, figure

PREVIEW_TOKENS = 100  # of an image that is not ready (OpenAI's guide to image generation)
SOUND_BYTES = 400  # of a part of a sound


@dataclass(frozen=True, slots=True)
class Stream:
    """``parts``: all events but the last one, the ``tail``; and an empty one, so that a stream can be cut
    before its end. ``usage_sent``: whether the tail tells it. ``images``: how many were begun when so many
    tokens had been sent.
    """

    parts: list[Chunk]
    tail: bytes
    usage_sent: bool
    images: Mapping[int, int] = field(default_factory=dict)


def told(kind: str, fields: JSON, usage: JSON | None) -> bytes:
    """An event that may tell usage."""
    return event({"type": kind} | fields | ({} if usage is None else {"usage": usage}), kind)


def transcript(text: str, usage: JSON | None) -> Stream:
    """Words, and at last all of them."""
    parts: list[Chunk] = []
    sent = ""
    for number, word in enumerate(text.split(" ")):
        delta = f" {word}" if number else word
        before, sent = count(sent), sent + delta
        kind = "transcript.text.delta"
        parts.append((count(sent) - before, event({"type": kind, "delta": delta}, kind)))
    return Stream([*parts, (0, b"")], told("transcript.text.done", {"text": text}, usage), usage is not None)


def speech(sound: bytes, usage: JSON | None) -> Stream:
    """A sound in parts."""
    kind = "speech.audio.delta"
    pieces = [sound[start : start + SOUND_BYTES] for start in range(0, len(sound), SOUND_BYTES)]
    parts = [(1, event({"type": kind, "audio": base64.b64encode(piece).decode()}, kind)) for piece in pieces]
    return Stream([*parts, (0, b"")], told("speech.audio.done", {}, usage), usage is not None)


def images(
    body: JSON, begin: str, data: list[JSON], previews: int, usage: JSON, shown: JSON | None
) -> Stream:
    """Each image after its previews, which are the image itself.

    ``usage``: of them all; ``shown``: what is told in its place, of one image its own.
    """
    looks = {
        "created_at": 1_700_000_000,
        "size": body.get("size") or "1024x1024",
        "quality": body.get("quality") or "medium",
        "background": body.get("background") or "opaque",
        "output_format": body.get("output_format") or "png",
    }
    each = figure(usage, "output_tokens") // max(len(data), 1)
    parts: list[Chunk] = []
    begun = {0: 0}
    sent = 0

    def add(tokens: int, part: bytes, image: int) -> None:
        nonlocal sent
        parts.append((tokens, part))
        sent += tokens
        begun[sent] = image

    tail = b""
    for number, image in enumerate(data, 1):
        for index in range(previews):
            kind = f"{begin}.partial_image"
            fields = {"type": kind, "partial_image_index": index} | image | looks
            add(PREVIEW_TOKENS, event(fields, kind), number)
        tail = told(f"{begin}.completed", image | looks, of_one(shown, len(data)))
        if number < len(data):
            add(each - previews * PREVIEW_TOKENS, tail, number)
    return Stream([*parts, (0, b"")], tail, shown is not None, begun)


def of_one(usage: JSON | None, images: int) -> JSON | None:
    """The usage that an image tells beside others: its own answer, and the prompt that they share."""
    if usage is None or images < 2:
        return usage
    output = figure(usage, "output_tokens") // images
    own = {"text_tokens": 0, "image_tokens": output}
    total = figure(usage, "input_tokens") + output
    return usage | {"output_tokens": output, "output_tokens_details": own, "total_tokens": total}
