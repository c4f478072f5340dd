"""Transcripts that are plain text: as it was said, or as subtitles with times.

They tell no usage. Of subtitles the last time says how long the sound is at least.
Formats: SubRip (https://www.matroska.org/technical/subtitles.html#srt-subtitles), WebVTT
(https://www.w3.org/TR/webvtt1/).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from relay.formats.answer import BadAnswer

# What an answer in each of these forms begins with; a text may begin with anything.
_BEGINS = {
    "text": re.compile(""),
    "srt": re.compile(r"\s*(?:\Z|\d+[ \t]*\r?\n[ \t]*[\d:]+,\d+[ \t]*-->)"),
    "vtt": re.compile(r"WEBVTT(?:\s|\Z)"),
}
SHAPES = frozenset(_BEGINS)
_ENDS = re.compile(r"-->[ \t]*(?:(\d{1,4}):)?(\d\d):(\d\d)[.,](\d{3})", re.ASCII)
# Lines of subtitles that nobody said.
_MARKS = re.compile(r"^(?:WEBVTT.*|\d+[ \t]*\r?|.*-->.*)$", re.M | re.ASCII)


@dataclass(frozen=True, slots=True)
class Transcript:
    """``whole``: as it came. ``said``: without times. ``until``: the last time in it, in milliseconds, or
    0."""

    whole: str
    said: str
    until: int = 0


def read_text(body: bytes, shape: str) -> Transcript:
    """A transcript of this shape (of SHAPES); raises BadAnswer where it is none."""
    if not body:
        raise BadAnswer("the answer is empty")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadAnswer("the answer is not UTF-8") from None
    return transcript_of(text, shape)


def transcript_of(text: str, shape: str) -> Transcript:
    """The same of what is decoded."""
    if not _BEGINS[shape].match(text):
        raise BadAnswer(f"the answer is no {shape}")
    if shape == "text":
        return Transcript(text, text.strip())
    return Transcript(text, _MARKS.sub("", text).strip(), _until(text))


def _until(text: str) -> int:
    return max(map(_milliseconds, _ENDS.finditer(text)), default=0)


def _milliseconds(end: re.Match[str]) -> int:
    hour, minute, second, rest = map(int, end.groups("0"))
    return ((hour * 60 + minute) * 60 + second) * 1000 + rest
