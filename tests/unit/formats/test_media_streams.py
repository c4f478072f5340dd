"""Streams of images, sounds and transcripts: bytes pass untouched, the end waits, what is counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats import openai_image_edits, openai_images, openai_speech, openai_transcriptions
from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.format import Meter, MeterOptions
from relay.formats.media import MediaRequest
from relay.formats.passed import PassedApi
from relay.formats.stream_meter import MAX_KEPT_BYTES
from relay.formats.written_transcript import write
from relay.pricing.plausibility import billed_usage
from relay.pricing.tariff import Admission
from tests.unit.formats.test_forms import (
    SOUND,
    SRT,
    USUAL,
    VERBOSE,
    VTT,
    billed_asked,
    edit,
    transcription,
)
from tests.unit.formats.test_forms import billed as billed_whole
from tests.unit.formats.test_media import images, priced, speech

SAID = "Grüße 👋"


def sse(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields, ensure_ascii=False)}\n\n".encode()


HEARD = {
    "type": "tokens",
    "input_tokens": 14,
    "output_tokens": 45,
    "input_token_details": {"audio_tokens": 10},
}
DRAWN = {"input_tokens": 4, "output_tokens": 500, "total_tokens": 504}
DELTA = sse("transcript.text.delta", delta=SAID, logprobs=[])
SEGMENT = sse("transcript.text.segment", id="s", start=0, end=1.5, speaker="A", text=SAID)
WRITTEN = sse("transcript.text.done", text=SAID, usage=HEARD)
UNTOLD = sse("transcript.text.done", text=SAID)
PART = sse("speech.audio.delta", audio="SUQz")
HALF = sse("speech.audio.delta", audio="SUQz" * 2_500)
SPOKEN = sse("speech.audio.done", usage={"input_tokens": 3, "output_tokens": 9, "total_tokens": 12})
PREVIEW = sse("image_generation.partial_image", b64_json="AAAA", partial_image_index=0)
URL = sse("image_generation.completed", url="u")
DRAWING = sse("image_generation.completed", b64_json="BBBB", usage=DRAWN)
ODD_DRAWING = sse("image_generation.completed", url="u", usage=DRAWN | {"output_tokens": "many"})
PING = b": ping\n\n"
NOTHING = sse("transcript.text.delta", delta="")


def asked(name: str, **more: str) -> tuple[MediaRequest, PassedApi]:
    """A request that asks for a stream."""
    if name == "transcript":
        return transcription(stream="true", **more), openai_transcriptions.TRANSCRIPTIONS
    if name == "speech":
        return speech(stream_format="sse"), openai_speech.API
    if name == "edit":
        return edit(stream="true"), openai_image_edits.API
    return images(stream=True, n={"images": 2}.get(name, 1)), openai_images.API


def metering(
    name: str, admission: Admission, model: str | None = None, **more: str
) -> tuple[MediaRequest, Meter, str]:
    request, api = asked(name, **more)
    assert request.stream
    request = request.priced(admission)
    reached = request.metered(api)
    options = MeterOptions(
        keep_usage_chunk=False,
        choices=1,
        max_event_bytes=1 << 20,
        model=model,
        redact=lambda data: data.replace(b"secret", b"***"),
    )
    return request, reached.meter(options), reached.USAGE_FORMAT


PRICES: dict[str, Admission] = {
    "transcript": priced(ms=3),
    "speech": priced(char=3),
    "image": priced(image=3),
    "images": priced(image=3),
    "edit": priced(image=3),
}
TOKENS = priced(in_text=1, in_audio=2, out_text=3, out_image=4)
WHOLE = {
    "transcript": (PING + NOTHING + DELTA + PING + DELTA, WRITTEN),
    "speech": (PART + PING + PART, SPOKEN),
    "image": (PREVIEW + PING + PREVIEW, DRAWING),
    "images": (PREVIEW + DRAWING + PREVIEW, DRAWING),
    "edit": (
        sse("image_edit.partial_image", b64_json="AAAA"),
        sse("image_edit.completed", b64_json="BB", usage=DRAWN),
    ),
}


def fed(meter: Meter, data: bytes, cuts: Iterable[int] = ()) -> bytes:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return b"".join(meter.feed(data[begin:end]) for begin, end in pairwise(edges) if begin < end)


def billed(
    name: str,
    admission: Admission,
    stream: bytes | Callable[[MediaRequest], bytes],
    *,
    broken: bool = False,
    **more: str,
) -> Mapping[str, int]:
    """The meters of a stream, or one that is made for its request; checks that they cost no more than was
    held."""
    request, meter, usage_format = metering(name, admission, **more)
    meter.feed(stream if isinstance(stream, bytes) else stream(request))
    meter.end()
    assert meter.complete != broken
    told = not broken or meter.finished or meter.usage_is_last
    usage = meter.usage if told else meter.partial_usage(meter.estimate())
    bound = request.bound(admission)
    made = billed_usage(
        *(admission, bound, {}, usage_format, usage), lambda: request.counted_prompt(0), meter.estimate
    )
    assert admission.charge(made.meters).amount <= bound.amount
    return made.meters


@pytest.mark.parametrize("name", WHOLE)
@given(cuts=st.lists(st.integers(0, 3000), max_size=9))
def test_bytes_pass_untouched_however_they_are_cut_and_the_end_waits(name: str, cuts: list[int]) -> None:
    parts, end = WHOLE[name]
    meter = metering(name, PRICES[name])[1]
    assert fed(meter, parts + end, cuts) == parts
    assert meter.tail() == end
    assert (meter.finished, meter.complete, meter.ending) == (True, True, True)


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_passes_before_something_is_made(name: str) -> None:
    meter = metering(name, PRICES[name])[1]
    assert meter.feed(PING + sse("new.event", x="secret")) == b""
    assert not meter.generating
    assert meter.feed(WHOLE[name][0]).startswith(PING + sse("new.event", x="***"))
    assert meter.generating


CHUNK = b'data: {"object": "transcription.chunk", "choices": [{"delta": {"content": "Hi."}}]}\n\n'
UNTYPED = [
    CHUNK,
    b'data: {"type": 5, "text": "Hi."}\n\n',
    b'event: transcript.text.delta\ndata: {"delta": "Hi."}\n\n',
]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("event", UNTYPED)
def test_an_event_without_a_type_ends_the_stream_and_does_not_pass(name: str, event: bytes) -> None:
    parts, end = WHOLE[name]
    meter = metering(name, PRICES[name])[1]
    assert meter.feed(PING + event + parts + end) == b""
    assert str(meter.broken).startswith("an event without a type came")
    assert not meter.generating

    meter = metering(name, PRICES[name])[1]
    assert meter.feed(parts + event + parts + end) == parts
    assert (meter.complete, meter.finished, meter.tail()) == (False, False, b"")

    meter = metering(name, PRICES[name])[1]
    meter.feed(PING + event.rstrip())
    meter.end()
    assert (meter.complete, meter.tail()) == (False, PING)

    cost = billed(name, PRICES[name], parts + event + end, broken=True)
    assert cost == billed(name, PRICES[name], parts, broken=True) != {}
    assert billed(name, PRICES[name], parts + end + event) == billed(name, PRICES[name], parts + end)


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_that_is_not_counted_passes_however_long_it_takes(name: str) -> None:
    kinds = [json.loads(WHOLE[name][1].partition(b"data: ")[2])["type"].replace("done", "delta"), "new.event"]
    if "completed" in kinds[0]:
        kinds[0] = kinds[0].replace("completed", "partial_image")
    strange = b"".join(sse(kind, content=[SAID], model="secret") for kind in kinds)
    large = sse("new.event", content="x" * MAX_KEPT_BYTES)
    meter = metering(name, PRICES[name], "ours")[1]
    assert meter.feed(PING + strange) == b""
    assert meter.release() == PING
    assert meter.feed(PING + strange) == PING
    meter.end()
    assert (meter.tail(), meter.complete, meter.generating) == (b"", False, False)

    meter = metering(name, PRICES[name])[1]
    assert meter.feed(large + large + strange) == b""
    assert meter.feed(PING) == PING
    parts, end = WHOLE[name]
    assert meter.feed(parts + end) == parts.replace(NOTHING, b"")
    assert meter.tail() == end


@pytest.mark.parametrize("name", WHOLE)
@given(cuts=st.lists(st.integers(0, 3000), max_size=9))
def test_it_says_what_it_holds(name: str, cuts: list[int]) -> None:
    parts, end = WHOLE[name]
    meter = metering(name, PRICES[name])[1]
    stream, passed = parts + end, 0
    edges = sorted({cut % (len(stream) + 1) for cut in cuts} | {0, len(stream)})
    for begin, stop in pairwise(edges):
        passed += len(meter.feed(stream[begin:stop]))
        assert meter.held == stop - passed
    assert meter.held == len(end)
    meter.feed(sse("new.event") * 9)  # dropped
    assert meter.held == len(end)


def test_what_was_kept_and_is_dropped_is_held_no_more() -> None:
    meter = metering("speech", PRICES["speech"])[1]
    meter.feed(PING + sse("new.event"))
    assert meter.held == len(PING + sse("new.event"))
    meter.release()
    assert meter.held == 0


def test_nothing_passes_with_an_end_that_has_nothing() -> None:
    meter, end = metering("transcript", TOKENS)[1], sse("transcript.text.done", text="")
    assert meter.feed(PING + sse("new.event", content=SAID) + end) == PING
    assert (meter.tail(), meter.complete) == (end, True)


def test_the_models_name_is_the_customers() -> None:
    meter = metering("speech", PRICES["speech"], "ours")[1]
    theirs = sse("speech.audio.delta", model="theirs", audio="SUQz")
    assert meter.feed(theirs) == theirs.replace(b'"theirs"', b'"ours"')


@pytest.mark.parametrize(
    ("name", "admission", "stream", "meters"),
    [
        ("transcript", TOKENS, DELTA + WRITTEN, {"in_text": 4, "in_audio": 10, "out_text": 45}),
        ("transcript", TOKENS, WRITTEN, {"in_text": 4, "in_audio": 10, "out_text": 45}),
        (
            "transcript",
            TOKENS,
            DELTA + UNTOLD,
            {"in_audio": 3, "out_text": 4},
        ),
        (
            "transcript",
            TOKENS,
            SEGMENT + UNTOLD,
            {"in_audio": 3, "out_text": 4},
        ),
        (
            *("transcript", TOKENS, DELTA + SEGMENT + UNTOLD),
            {"in_audio": 3, "out_text": 4},
        ),
        ("transcript", TOKENS, UNTOLD, {"in_audio": 3, "out_text": 4}),
        ("transcript", TOKENS, sse("transcript.text.done", text=""), {}),
        ("transcript", priced(ms=3), DELTA + WRITTEN, {"ms": USUAL}),
        ("transcript", priced(ms=3), sse("transcript.text.done", text=""), {"ms": USUAL}),
        *(
            (
                "transcript",
                priced(ms=3),
                DELTA + sse("transcript.text.done", text=SAID, usage=usage),
                {"ms": ms},
            )
            for usage, ms in (({"seconds": 3}, 3000), ({"seconds": 9}, USUAL), (None, USUAL))
        ),
        ("speech", priced(char=3), PART + SPOKEN, {"char": 3}),
        ("speech", priced(char=3), PART + sse("speech.audio.done"), {"char": 3}),
        ("speech", TOKENS, PART + SPOKEN, {"in_text": 3, "out_audio": 9}),
        *(
            ("speech", TOKENS, PART + sse("speech.audio.done", **told), {"in_text": 1, "out_audio": 1})
            for told in (
                {},
                {"usage": {"input_tokens": 3, "output_tokens": 0}},
                {"usage": {"input_tokens": 3, "output_tokens": 1_065}},
                {"usage": {"input_tokens": 30_000, "output_tokens": 9}},
                {"usage": {"input_tokens": 3, "output_tokens": "many"}},
            )
        ),
        # 15,000 bytes are 0.75 s of MP3.
        ("speech", TOKENS, HALF + HALF + sse("speech.audio.done"), {"in_text": 1, "out_audio": 15}),
        ("image", priced(image=3), PREVIEW + DRAWING, {"image": 1}),
        ("image", priced(image=3), DRAWING + DRAWING, {"image": 1}),
        ("image", TOKENS, PREVIEW + DRAWING, {"in_text": 4, "out_image": 500}),
        (
            "image",
            TOKENS,
            PREVIEW + URL,
            {"in_text": 1, "out_image": 1056},
        ),
        ("images", priced(image=3), PREVIEW + DRAWING + DRAWING, {"image": 2}),
        ("images", priced(image=3), PREVIEW + DRAWING, {"image": 1}),
        ("images", priced(image=3), PREVIEW + DRAWING + b"data: [DONE]\n\n", {"image": 1}),
        ("images", TOKENS, DRAWING + PREVIEW + DRAWING, {"in_text": 4, "out_image": 1000}),
        ("images", TOKENS, DRAWING, {"in_text": 4, "out_image": 500}),
        ("images", TOKENS, DRAWING + URL, {"in_text": 4, "out_image": 500 + 1056}),
        ("images", TOKENS, URL + DRAWING, {"in_text": 4, "out_image": 500}),  # told of both
        ("edit", TOKENS, b"".join(WHOLE["edit"]), {"in_text": 4, "out_image": 500}),
    ],
)
def test_a_whole_stream_is_billed(
    name: str, admission: Admission, stream: bytes, meters: Mapping[str, int]
) -> None:
    assert billed(name, admission, stream) == meters


@pytest.mark.parametrize(
    ("name", "admission", "stream", "meters"),
    [
        ("transcript", TOKENS, DELTA, {"in_audio": 3, "out_text": 4}),
        ("transcript", priced(ms=3), DELTA, {"ms": USUAL}),
        ("transcript", priced(ms=3), PING + sse("transcript.text.delta", delta=""), {}),
        ("speech", priced(char=3), PART + PART, {"char": 3}),
        ("speech", priced(char=3), PING, {}),
        ("speech", TOKENS, HALF, {"in_text": 1, "out_audio": 8}),
        ("speech", TOKENS, PING, {}),
        ("image", priced(image=3), PREVIEW + PREVIEW, {"image": 1}),
        ("image", TOKENS, PREVIEW + PREVIEW, {"in_text": 1, "out_image": 1056}),
        ("image", priced(image=3), PING, {}),
        ("images", priced(image=3), DRAWING + PREVIEW, {"image": 2}),
        ("images", TOKENS, DRAWING + PREVIEW, {"in_text": 4, "out_image": 500 + 1056}),
        ("images", TOKENS, PREVIEW + DRAWING + PREVIEW + PREVIEW, {"in_text": 4, "out_image": 500 + 1056}),
        ("images", TOKENS, URL + PREVIEW, {"in_text": 1, "out_image": 2 * 1056}),
        ("images", TOKENS, ODD_DRAWING + PREVIEW, {"in_text": 1, "out_image": 2 * 1056}),
    ],
)
def test_of_a_broken_stream_that_is_billed_which_was_delivered(
    name: str, admission: Admission, stream: bytes, meters: Mapping[str, int]
) -> None:
    assert billed(name, admission, stream, broken=True) == meters


LONG = "And so on and on. " * 5  # 90 characters, which take 3 s


@pytest.mark.parametrize(
    "stream",
    [
        sse("transcript.text.delta", delta=LONG) + sse("transcript.text.done", text=LONG),
        sse("transcript.text.segment", text=LONG[:45]) + sse("transcript.text.segment", text=LONG[45:]),
        sse("transcript.text.delta", delta=LONG),
        sse("transcript.text.done", text=LONG),
    ],
)
def test_no_streamed_sound_is_shorter_than_what_is_said_in_it(stream: bytes) -> None:
    broken = not stream.count(b"done")
    assert USUAL < 3000
    assert billed("transcript", priced(ms=3), stream, broken=broken) == {"ms": 3000}
    assert billed("transcript", TOKENS, stream, broken=broken)["in_audio"] == 30


def test_what_was_told_of_an_image_is_paid_by_who_left_before_the_next() -> None:
    meter = metering("images", TOKENS)[1]
    meter.feed(PREVIEW + DRAWING)
    delivered = meter.estimate()
    meter.feed(PREVIEW)
    assert meter.partial_usage(delivered) == DRAWN
    assert meter.partial_usage(meter.estimate())["output_tokens"] == 500 + 1056
    assert meter.partial_usage(0) is None


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    "event",
    [
        sse("error", error={"message": "a secret", "type": "server_error", "code": "x", "param": None}),
        sse("error", code="x", message="a secret"),
        b'data: {"error": {"message": "a secret", "code": "x"}}\n\n',
    ],
)
def test_an_error_passes_as_sdks_read_it_and_nothing_after_it(name: str, event: bytes) -> None:
    meter = metering(name, PRICES[name])[1]
    parts, end = WHOLE[name]
    passed = meter.feed(parts + event + end).removeprefix(parts)
    told = json.loads(passed.rpartition(b"data: ")[2])["error"]
    assert (told["message"], told["code"], meter.tail()) == ("a ***", "x", b"")
    assert (meter.error is not None, meter.complete) == (True, False)


@pytest.mark.parametrize(
    ("name", "end"),
    [("speech", SPOKEN), ("image", sse("image_generation.completed", b64_json="", usage=DRAWN))],
)
def test_an_end_without_what_was_asked_for_breaks_the_stream(name: str, end: bytes) -> None:
    meter = metering(name, PRICES[name])[1]
    assert meter.feed(end) == b""
    assert (meter.complete, meter.tail()) == (False, b"")
    assert str(meter.broken).startswith("the stream ended without ")


@pytest.mark.parametrize("name", ["transcript", "speech", "image"])
def test_an_end_without_its_blank_line_is_one(name: str) -> None:
    meter = metering(name, PRICES[name])[1]
    parts, end = WHOLE[name]
    meter.feed(parts + end.rstrip())
    meter.break_off()
    assert (meter.finished, meter.tail()) == (True, end)


def test_whole_answers_become_events() -> None:
    meter = metering("transcript", priced(ms=3))[1]
    request = transcription(stream="true").priced(priced(ms=3))
    events = request.as_events(json.dumps({"text": SAID, "usage": {"seconds": 2}}).encode())
    assert json.loads(events.partition(b"data: ")[2]) == {
        "type": "transcript.text.done",
        "text": SAID,
        "usage": {"seconds": 2},
    }
    meter.feed(events)
    assert meter.usage["meters"] == {"ms": 2000}
    theirs = request.as_events(json.dumps({"text": SAID, "type": "verbose"}).encode())
    assert json.loads(theirs.partition(b"data: ")[2])["type"] == "transcript.text.done"
    plain = transcription(stream="true", response_format="srt").as_events(b"\n")
    assert json.loads(plain.partition(b"data: ")[2])["text"] == "\n"
    asked = transcription(stream="true", response_format="vtt").as_events(
        json.dumps(VERBOSE).encode(), "json"
    )
    assert json.loads(asked.partition(b"data: ")[2]) == {
        "type": "transcript.text.done",
        "text": write(VERBOSE, "vtt").decode(),
    }

    drawn = images(stream=True, n=2).priced(priced(image=3))
    answer = {"created": 5, "data": [{"b64_json": "AA"}, {}, {"url": "u", "type": "theirs"}], "usage": DRAWN}
    first, last = (
        json.loads(event.partition(b"data: ")[2])
        for event in drawn.as_events(json.dumps(answer).encode()).split(b"\n\n")[:-1]
    )
    assert first == {"type": "image_generation.completed", "created_at": 5, "b64_json": "AA"}
    assert (last["usage"], last["type"]) == (DRAWN, "image_generation.completed")

    meter = metering("speech", priced(char=3))[1]
    meter.feed(speech(stream_format="sse").as_events(b"ID3"))
    assert meter.complete


@pytest.mark.parametrize(
    ("shape", "answer"),
    [
        *(
            ("verbose_json", json.dumps({"text": SAID, "duration": told}).encode())
            for told in (2.5, "3", 1e9, 0)
        ),
        ("json", json.dumps({"text": SAID, "duration": 2.5, "usage": {"seconds": 3}}).encode()),
        ("json", json.dumps({"text": LONG}).encode()),
        *(("text", b"Hi.\n"), ("text", f"{LONG}\n".encode())),
        *(("srt", SRT % time) for time in (b"00,100", b"03,001", b"06,000")),
        *(("vtt", VTT % time) for time in (b"00.100", b"03.001", b"06.000")),
    ],
)
@pytest.mark.parametrize("admission", [priced(ms=3), TOKENS], ids=["by duration", "by tokens"])
def test_a_whole_answer_costs_as_much_in_an_event_as_without_a_stream(
    shape: str, answer: bytes, admission: Admission
) -> None:
    request = transcription(stream="true", response_format=shape).priced(admission)
    meters, _ = billed_whole(
        transcription(response_format=shape), openai_transcriptions.TRANSCRIPTIONS, admission, answer
    )
    assert billed("transcript", admission, request.as_events(answer), response_format=shape) == meters


@pytest.mark.parametrize("shape", ["text", "srt", "vtt"])
@pytest.mark.parametrize(
    "told", [{"duration": 2.3}, {"usage": {"seconds": 3}}, {"usage": HEARD}, {}], ids=str
)
@pytest.mark.parametrize("admission", [priced(ms=3), TOKENS], ids=["by duration", "by tokens"])
def test_plain_text_made_of_json_costs_as_much_in_an_event(
    shape: str, told: dict[str, Any], admission: Admission
) -> None:
    answer, made = VERBOSE | told, []

    def events(request: MediaRequest) -> bytes:
        made.append(request.as_events(json.dumps(answer).encode(), "verbose_json"))
        return made[0]

    in_event = dict(billed("transcript", admission, events, response_format=shape))
    written, whole = billed_asked(shape, admission, answer)
    meters = dict(whole)
    assert json.loads(made[0].partition(b"data: ")[2])["text"].encode() == written
    if told != {"usage": HEARD} and "out_text" in meters:  # counted, of subtitles with their line feeds
        assert in_event.pop("out_text") >= meters.pop("out_text")
    assert in_event == meters


def test_a_transcript_that_is_in_another_shape_than_was_asked_for_is_charged() -> None:
    stream = sse("transcript.text.done", text=LONG)
    assert billed("transcript", priced(ms=3), stream, response_format="srt") == {"ms": 3000}
    stream = DELTA + sse("transcript.text.done", text=(SRT % b"03,001").decode())
    assert billed("transcript", priced(ms=3), stream, response_format="srt") == {"ms": 3001}


@pytest.mark.parametrize(
    ("name", "answer", "refusal"),
    [
        *(("transcript", b"{}", ErrorAnswer), ("transcript", b"Hi.", BadAnswer), ("speech", b"", BadAnswer)),
        *(("image", b'{"error": "no"}', ErrorAnswer), ("image", b'{"data": []}', BadAnswer)),
    ],
)
def test_what_is_no_whole_answer_becomes_no_events(
    name: str, answer: bytes, refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        asked(name)[0].as_events(answer)


def test_a_stream_holds_the_previews_too() -> None:
    assert images(stream=True, n=2).max_output == 2 * (16_384 + 300)
    assert images(stream=True, model="known").max_output == 1_300
    assert edit(stream="true").max_output == 16_384 + 300
    assert len(SOUND) > USUAL
