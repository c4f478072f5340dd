"""Transcripts written as plain text: as OpenAI writes them, and so that subtitles read them back."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploys.sandbox.provider import media
from relay.formats.answer import BadAnswer
from relay.formats.transcript_text import transcript_of
from relay.formats.written_transcript import Segment, last_end, segments_of, srt, vtt, write

EAST = "The sun rises in the east and sets in the west."
YEARS = "This simple fact has been observed by humans for thousands of years."
# What whisper-1 told of OpenAI's example of a sound (alloy.wav); its SubRip has 184 bytes.
ALLOY: dict[str, Any] = {
    "text": f"{EAST} {YEARS}",
    "duration": 6.96,
    "segments": [
        {"id": 0, "start": 0.0, "end": 3.0, "text": f" {EAST}"},
        {"id": 1, "start": 3.0, "end": 7.0, "text": f" {YEARS}"},
    ],
}


def test_openais_example_is_written_as_openai_does() -> None:
    subrip = f"1\n00:00:00,000 --> 00:00:03,000\n{EAST}\n\n2\n00:00:03,000 --> 00:00:07,000\n{YEARS}\n\n\n"
    assert len(subrip) == 184
    assert write(ALLOY, "srt").decode() == subrip
    web = f"WEBVTT\n\n00:00:00.000 --> 00:00:03.000\n{EAST}\n\n00:00:03.000 --> 00:00:07.000\n{YEARS}\n\n"
    assert write(ALLOY, "vtt").decode() == web
    assert write(ALLOY, "text").decode() == f"{EAST} {YEARS}\n"


@pytest.mark.parametrize(
    ("seconds", "clock"),
    [
        *((0, "00:00:00,000"), (3.319999933242798, "00:00:03,320"), (59.9996, "00:01:00,000")),
        *((3599.999, "00:59:59,999"), (3600, "01:00:00,000"), (86_399.9995, "24:00:00,000")),
        *((360_000.5, "100:00:00,500"), (0.0005, "00:00:00,000"), (0.0015, "00:00:00,002")),
    ],
)
def test_times_roll_over(seconds: float, clock: str) -> None:
    told = {"text": "x", "segments": [{"start": 0, "end": seconds, "text": "x"}]}
    assert srt(segments_of(told)) == f"1\n00:00:00,000 --> {clock}\nx\n\n\n"
    assert vtt(segments_of(told)) == f"WEBVTT\n\n00:00:00.000 --> {clock.replace(',', '.')}\nx\n\n"


@pytest.mark.parametrize(
    ("said", "cue"),
    [
        *((" a\n\nb ", "a\nb"), ("a \r\n \t\r\n b", "a\nb"), ("\n\na\n", "a"), ("a\rb", "a\nb"), ("", "")),
        *(("a --> b", "a -> b"), ("-->", "->"), ("a ----> b -> c", "a -> b -> c"), ("-->-->", "->->")),
        *(("00:00:01,000 --> 00:00:02,000", "00:00:01,000 -> 00:00:02,000"), ("2", "2")),
    ],
)
def test_no_text_ends_its_cue_or_begins_another(said: str, cue: str) -> None:
    assert srt([Segment(0, 1, said)]) == f"1\n00:00:00,000 --> 00:00:00,001\n{cue}\n\n\n"


@pytest.mark.parametrize("rows", [" ", "-", " \t", "\n ", "\r"])
def test_a_long_row_of_the_same_takes_no_time(rows: str) -> None:
    began = time.process_time()
    srt([Segment(0, 1, f"a{rows * 200_000}b")])
    assert time.process_time() - began < 1


TIMES = st.integers(0, 10**10)
PIECES = [
    "\n",
    "\n\n",
    "\r\n\r\n",
    "\r",
    " ",
    "-->",
    "--",
    ">",
    "1\n",
    "00:00:01,000 --> 00:00:02,000",
    "Grüße",
    "猫",
]
SAID = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=6).map("".join)
SEGMENTS = st.lists(st.builds(Segment, TIMES, TIMES, SAID), max_size=5)
CLOCK = r"(\d{2,}):(\d\d):(\d\d)[.,](\d{3})"
CUE = re.compile(rf"(?:(\d+)\n)?{CLOCK} --> {CLOCK}\n(.*?)\n\n", re.S)


def told(segments: list[Segment]) -> dict[str, Any]:
    """An answer with these segments, as a provider sends it."""
    listed = [{"start": one.start / 1000, "end": one.end / 1000, "text": one.text} for one in segments]
    answer: dict[str, Any] = json.loads(json.dumps({"text": "x" if listed else "", "segments": listed}))
    return answer


def cues(written: str) -> list[tuple[str | None, Segment]]:
    """(number, segment) of subtitles; fails where something is between them."""
    found, at = [], 0
    while at < len(written):
        cue = CUE.match(written, at)
        assert cue is not None, written[at:]
        *times, said = cue.groups()[1:]
        hours, minutes, seconds, ms = ([int(one) for one in times[n::4]] for n in range(4))
        start, end = (
            ((h * 60 + m) * 60 + s) * 1000 + r for h, m, s, r in zip(hours, minutes, seconds, ms, strict=True)
        )
        found.append((cue[1], Segment(start, end, said)))
        at = cue.end()
    return found


def plain(said: str) -> str:
    """A text without what subtitles cannot hold."""
    lines = [line.strip() for line in re.split(r"[\r\n]", said)]
    return re.sub("--+>", "->", "\n".join(line for line in lines if line))


@given(SEGMENTS)
def test_subtitles_are_read_back_as_the_segments(segments: list[Segment]) -> None:
    expected = [Segment(one.start, one.end, plain(one.text)) for one in segments]
    subrip, web = (write(told(segments), shape).decode() for shape in ("srt", "vtt"))
    assert subrip.endswith("\n")
    assert web.startswith("WEBVTT\n\n")
    numbered = [(str(number), one) for number, one in enumerate(expected, 1)]
    assert [(n, Segment(s.start, s.end, plain(s.text))) for n, s in cues(subrip[:-1])] == numbered
    assert [
        Segment(s.start, s.end, plain(s.text)) for _, s in cues(web.removeprefix("WEBVTT\n\n"))
    ] == expected
    until = max((one.end for one in segments), default=0)
    assert last_end(told(segments)) == until
    assert transcript_of(subrip, "srt").until == transcript_of(web, "vtt").until == until


@given(st.text(), st.floats(0, 400_000))
def test_the_sandboxs_provider_writes_the_same(said: str, seconds: float) -> None:
    said = " ".join(said.split())
    answer = json.loads(media.transcript(said, seconds, "verbose_json", None))
    for shape in media.TEXTS:
        assert write(answer, shape) == media.transcript(said, seconds, shape, None)


UNTIMES: list[Any] = [None, [], float("inf"), -0.1]


@pytest.mark.parametrize(
    "segments",
    [
        *(None, {}, "x", [], ["x"], [None], [{}], [{"start": 0, "end": 1}], [{"text": "x"}]),
        *(
            [{"start": start, "end": 1, "text": "x"}]
            for start in (None, "0", True, -1, 1e99, float("nan"), 10**400)
        ),
        *([{"start": 0, "end": ended, "text": "x"}] for ended in UNTIMES),
        [{"start": 0, "end": 1, "text": "x"}, {"start": 1, "end": 2, "text": 5}],
    ],
)
def test_what_has_no_segments_has_no_subtitles(segments: Any) -> None:
    answer = {"text": "x", "segments": segments}
    for shape in ("srt", "vtt"):
        with pytest.raises(BadAnswer):
            write(answer, shape)
    assert last_end(answer) == 0
    assert write(answer, "text") == b"x\n"


def test_where_nothing_is_said_there_are_no_cues() -> None:
    answer: dict[str, Any] = {"text": "", "segments": []}
    assert [write(answer, shape) for shape in media.TEXTS] == [b"\n", b"\n", b"WEBVTT\n\n"]


def test_half_a_character_is_replaced() -> None:
    assert write({"text": "a\ud83d"}, "text") == b"a?\n"
