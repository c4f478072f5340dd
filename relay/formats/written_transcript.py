"""Transcripts that a provider tells as JSON, written as the plain text that a customer wants.

JSON alone tells usage. The text is OpenAI's byte for byte, as whisper-1 writes it
(https://platform.openai.com/docs/api-reference/audio; https://github.com/openai/whisper has the rules of
its subtitles):

- ``text``: what is said, and a line feed;
- ``srt``: cues with a number, their times (``HH:MM:SS,mmm --> HH:MM:SS,mmm``), their text and an empty line;
  at the end one more line feed;
- ``vtt``: ``WEBVTT``, an empty line, and the same cues without numbers, with a point in times.

An arrow in a text would be read as a time: it becomes ``->``. An empty line would end its cue: it is left
out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relay.formats.answer import BadAnswer

TYPE = b"text/plain; charset=utf-8"  # OpenAI's, of all three
_MOST_SECONDS = 10**7  # longer than any sound
_LINE_END = re.compile(r"[\r\n]")
_ARROW = re.compile(r"(?<!-)-{2,}>")  # looked for once in each row of dashes, however long


@dataclass(frozen=True, slots=True)
class Segment:
    """What is said from ``start`` to ``end``, in milliseconds."""

    start: int
    end: int
    text: str


def segments_of(answer: Mapping[str, Any]) -> list[Segment]:
    """Of an answer as ``verbose_json``; raises BadAnswer where it has none that can be, though a text."""
    given = answer.get("segments")
    if not isinstance(given, list) or (not given and str(answer.get("text")).strip()):
        raise BadAnswer("the answer has no segments")
    return [_segment(one) for one in given]


def last_end(answer: Mapping[str, Any]) -> int:
    """When the last segment of an answer ends, in milliseconds; 0 where none tells it."""
    try:
        return max((segment.end for segment in segments_of(answer)), default=0)
    except BadAnswer:
        return 0


def _segment(given: Any) -> Segment:
    if not isinstance(given, dict) or not isinstance(given.get("text"), str):
        raise BadAnswer("a segment has no text")
    return Segment(_milliseconds(given.get("start")), _milliseconds(given.get("end")), given["text"])


def _milliseconds(seconds: Any) -> int:
    """The nearest whole number, of two the even one."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise BadAnswer("a segment has no time")
    if not 0 <= seconds <= _MOST_SECONDS:
        raise BadAnswer("a segment has a time that cannot be")
    return round(seconds * 1000)


def write(answer: Mapping[str, Any], shape: str) -> bytes:
    """An answer, which has a text, in a shape (text, srt or vtt); raises BadAnswer where its segments are
    wanted and missing."""
    if shape == "text":
        text = f"{answer['text']}\n"
    elif shape == "srt":
        text = srt(segments_of(answer))
    else:
        text = vtt(segments_of(answer))
    return text.encode("utf-8", "replace")  # JSON may have halves of characters


def srt(segments: list[Segment]) -> str:
    """Subtitles as SubRip has them."""
    return "".join(f"{number}\n{_cue(one, ',')}" for number, one in enumerate(segments, 1)) + "\n"


def vtt(segments: list[Segment]) -> str:
    """Subtitles as WebVTT has them."""
    return "WEBVTT\n\n" + "".join(_cue(one, ".") for one in segments)


def _cue(segment: Segment, mark: str) -> str:
    lines = (line.strip() for line in _LINE_END.split(segment.text))
    said = _ARROW.sub("->", "\n".join(line for line in lines if line))
    return f"{_clock(segment.start, mark)} --> {_clock(segment.end, mark)}\n{said}\n\n"


def _clock(ms: int, mark: str) -> str:
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"
