"""What was said when, as OpenAI's whisper-1 tells it: segments, words, and subtitles of them.

Speech flows evenly: a character takes as long as any other one. Protocol:
https://platform.openai.com/docs/api-reference/audio/verbose-json-object
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .formats import JSON

WORDS_A_SEGMENT = 4


def words(text: str, seconds: float) -> list[JSON]:
    """Each word of a text with its times, rounded as the API does."""
    pace = seconds / max(len(text), 1)
    return [
        {
            "word": found.group(),
            "start": round(found.start() * pace, 2),
            "end": round(found.end() * pace, 2),
        }
        for found in re.finditer(r"\S+", text)
    ]


def segments(text: str, seconds: float) -> list[JSON]:
    """A text in parts of some words, which begin with a blank."""
    timed = words(text, seconds)
    parts = [timed[start : start + WORDS_A_SEGMENT] for start in range(0, len(timed), WORDS_A_SEGMENT)]
    return [
        {
            "id": number,
            "seek": 0,
            "start": part[0]["start"],
            "end": part[-1]["end"],
            "text": "".join(f" {one['word']}" for one in part),
            "tokens": [50_364 + number, 50_365 + number],
            "temperature": 0.0,
            "avg_logprob": -0.28,
            "compression_ratio": 1.2,
            "no_speech_prob": 0.01,
        }
        for number, part in enumerate(parts)
    ]


def cues(text: str, seconds: float, point: str) -> list[str]:
    """Times and text of each segment. An arrow within it would be a time."""
    return [
        f"{clock(one['start'], point)} --> {clock(one['end'], point)}\n"
        f"{one['text'].strip().replace('-->', '->')}\n"
        for one in segments(text, seconds)
    ]


def clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and thousandths."""
    thousandths = round(seconds * 1000.0)
    hours, thousandths = divmod(thousandths, 3_600_000)
    minutes, thousandths = divmod(thousandths, 60_000)
    whole, thousandths = divmod(thousandths, 1_000)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}{point}{thousandths:03d}"


def srt(text: str, seconds: float) -> str:
    """SubRip; after the last empty line there is another one."""
    lines = [f"{number}\n{cue}\n" for number, cue in enumerate(cues(text, seconds, ","), 1)]
    return "".join([*lines, "\n"])


def vtt(text: str, seconds: float) -> str:
    """WebVTT."""
    return "\n".join(["WEBVTT\n", *cues(text, seconds, "."), ""])


WRITTEN: Mapping[str, Callable[[str, float], str]] = {
    "text": lambda text, _: f"{text}\n",
    "srt": srt,
    "vtt": vtt,
}
