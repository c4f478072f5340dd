"""Requests for images and sounds: what is read and passes, how they are measured, what is an answer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ApiError
from relay.formats import openai_images, openai_speech
from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.openai_images import read_images
from relay.gateway.bytes_response import refuse_others, type_of
from relay.pricing.charge import Row
from relay.pricing.errors import Unpriced
from relay.pricing.plausibility import billed_usage
from relay.pricing.tariff import Admission, PriceVersion, Tariff
from relay.providers.profiles import Profile
from relay.settings import Settings
from tests.unit.formats.test_sound_length import FIRST, mp3, opus, wav

SETTINGS = Settings.read({"RELAY_MODEL_MAX_OUTPUT": "known=1000,*=64"})
PASS = Profile("max_tokens", "pass")
NOW = datetime.now(UTC)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m"} | fields).encode()


def priced(free: bool = False, **rates: int) -> Admission:
    rows = tuple(Row(meter, rate * 10**6) for meter, rate in rates.items())
    return Admission(
        "m", "", NOW, Tariff(PriceVersion(1, "m", "sell", "", "", "USD", NOW, None, 1, 0, free, rows))
    )


def images(**fields: Any) -> openai_images.ImageRequest:
    return openai_images.parse(body(**{"prompt": "Hi?"} | fields), SETTINGS)


def speech(**fields: Any) -> openai_speech.SpeechRequest:
    return openai_speech.parse(body(**{"input": "Hi?"} | fields), SETTINGS)


@pytest.mark.parametrize(
    ("module", "sent"),
    [
        (openai_images, b'{ "prompt":"Hi?", "model" : "m","n":2,"size":"1x1","new":[1.50],"stream":false }'),
        (openai_speech, b'{"input":"Hi?", "voice":{"id":"v"}, "model" : "m", "stream_format":"audio"}'),
    ],
)
def test_a_request_passes_as_it_came_but_for_the_model(module: Any, sent: bytes) -> None:
    request = module.parse(sent, SETTINGS)
    assert request.native("m", PASS) == sent
    assert request.native("theirs", PASS) == sent.replace(b'"m"', b'"theirs"')


@pytest.mark.parametrize(
    ("rates", "most"),
    [
        ({"image": 7}, {"image": 3}),
        ({"image": 7, "in_text": 1, "out_image": 2}, {"image": 3}),
        ({"call": 7}, {"image": 3}),
        ({"free": True}, {"image": 3}),
        ({"in_text": 1, "out_image": 2}, {}),
        ({"in_text": 1, "out_text": 2}, {}),
    ],
    ids=str,
)
def test_images_are_measured_by_what_the_price_has(rates: Mapping[str, Any], most: Mapping[str, int]) -> None:
    admission = priced(**rates)
    request = images(n=3).priced(admission)
    bound = request.max_usage()
    assert bound.others == most
    assert (bound.input_units > 0, bound.max_output) == ((False, 0) if most else (True, 3 * 16_384))
    request.bound(admission)


@pytest.mark.parametrize("rates", [{"in_text": 1}, {"char": 1}, {}], ids=str)
def test_images_without_a_price_are_refused_by_the_meter(rates: Mapping[str, Any]) -> None:
    admission = priced(**rates)
    with pytest.raises(Unpriced, match="image"):
        images().priced(admission).bound(admission)


def test_the_tokens_of_an_image_are_bound_by_its_model() -> None:
    assert images(model="known", n=4).max_output == 4_000
    assert images(n=2).max_output == 2 * 16_384


@given(prompt=st.text(min_size=1), number=st.integers(1, 10))
def test_a_prompt_counts_within_its_bound(prompt: str, number: int) -> None:
    request = images(prompt=prompt, n=number)
    assert (request.counted <= request.input_bound, request.choices) == (True, number)


ONE = {"b64_json": "AAAA"}
USAGE = {
    "input_tokens": 10,
    "output_tokens": 500,
    "input_tokens_details": {"text_tokens": 4, "image_tokens": 6},
}


def billed(admission: Admission, answer: Any, **fields: Any) -> tuple[Mapping[str, int], int, str | None]:
    """(meters, charge, doubt) of an answer."""
    request = images(**fields).priced(admission)
    bound = request.bound(admission)
    api = request.metered(openai_images.API)
    whole = api.read_whole(json.dumps(answer).encode())
    assert not whole.empty
    made = billed_usage(
        *(admission, bound, {}, api.USAGE_FORMAT, whole.usage),
        *(lambda: request.counted_prompt(0), whole.estimate),
    )
    charge = admission.charge(made.meters).amount
    assert charge <= bound.amount
    return made.meters, charge, made.doubt


@pytest.mark.parametrize(
    ("made", "paid"),
    [
        *(([ONE] * 3, 3), ([ONE] * 2, 2), ([ONE] * 9, 3)),
        *(([ONE, {"url": ""}, {"b64_json": None}, {"b64_json": 5}, {}], 1), ([{"url": "https://x"}], 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("usage", [None, USAGE, "odd", {"input_tokens": "odd"}], ids=str)
def test_by_the_piece_images_are_paid_that_came_and_were_asked_for(made: Any, paid: int, usage: Any) -> None:
    answer = {"data": made, "usage": usage}
    assert billed(priced(image=7), answer, n=3) == ({"image": paid}, 7 * paid, None)


def test_by_tokens_the_providers_usage_is_paid() -> None:
    price = priced(in_text=1, in_image=2, out_image=3, out_text=4)
    assert billed(price, {"data": [ONE], "usage": USAGE | {"input_tokens_details": None}}) == (
        {"in_text": 10, "out_image": 500},
        10 + 1500,
        None,
    )
    parts = USAGE | {"input_tokens_details": None, "output_tokens_details": {"text_tokens": 100}}
    assert billed(price, {"data": [ONE], "usage": parts})[:2] == (
        {"in_text": 10, "out_text": 100, "out_image": 400},
        10 + 400 + 1200,
    )


@pytest.mark.parametrize(
    ("usage", "doubted"),
    [
        *((None, False), ({}, False), ("odd", False), ({"images": 2}, True)),
        *(({"input_tokens": 5, "output_tokens": 0}, True), ({"input_tokens": 0, "output_tokens": 9}, True)),
        *(({"input_tokens": 5, "output_tokens": 99_999}, True), ({"input_tokens": -1}, True)),
    ],
    ids=str,
)
def test_by_tokens_what_cannot_be_is_counted(usage: Any, doubted: bool) -> None:
    answer = {"data": [ONE] * 2, "usage": usage}
    meters, _, doubt = billed(priced(in_text=1, out_image=3), answer, prompt="x" * 40, n=2)
    assert (meters, doubt is not None) == ({"in_text": 10, "out_image": 2 * 1056}, doubted)


@pytest.mark.parametrize("by_piece", [False, True])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        *((b"", BadAnswer), (b"[]", BadAnswer), (b"<html>", BadAnswer), (b'{"data": [', BadAnswer)),
        *((b'{"data": []}', BadAnswer), (b'{"data": null}', BadAnswer), (b'{"data": [5]}', BadAnswer)),
        *((b'{"data": [{}]}', BadAnswer), (b'{"data": [{"url": ""}]}', BadAnswer)),
        *((b"{}", ErrorAnswer), (b'{"message": "no"}', ErrorAnswer), (b'{"error": "no"}', ErrorAnswer)),
        (b'{"error": {"message": "no"}, "data": [{"url": "x"}]}', ErrorAnswer),
    ],
)
def test_what_is_no_image(answer: bytes, error: type[Exception], by_piece: bool) -> None:
    with pytest.raises(error):
        read_images(answer, request=replace(images(), by_piece=by_piece))


def test_an_error_that_is_null_is_none() -> None:
    whole = read_images(b'{"error": null, "data": [{"url": "x"}]}', request=replace(images(), by_piece=True))
    assert whole.usage["images"] == 1


@given(st.text(min_size=1), st.text() | st.none())
def test_speech_is_paid_by_its_characters(text: str, instructions: str | None) -> None:
    request = speech(input=text, instructions=instructions)
    count = len(text) + len(instructions or "")
    assert request.max_usage().others == {"char": count}
    whole = request.metered(openai_speech.API).read_whole(b"ID3")
    assert whole.usage["meters"] == {"char": count}
    assert request.priced(priced(char=3)).bound(priced(char=3)).amount == 3 * count


@pytest.mark.parametrize(
    ("rates", "most"),
    [
        *(({"char": 7}, {"char": 3}), ({"char": 7, "in_text": 1, "out_audio": 2}, {"char": 3})),
        *(({"call": 7}, {"char": 3}), ({"free": True}, {"char": 3}), ({"in_text": 1}, {"char": 3})),
        *(({"in_text": 1, "out_audio": 2}, {}), ({"in_text": 1, "out_text": 2}, {}), ({"out_audio": 2}, {})),
    ],
    ids=str,
)
def test_speech_is_measured_by_what_the_price_has(rates: Mapping[str, Any], most: Mapping[str, int]) -> None:
    bound = speech().priced(priced(**rates)).max_usage()
    assert bound.others == most
    assert (bound.input_units > 0, bound.max_output) == ((False, 0) if most else (True, 1_000))
    assert (bound.prompt, bound.answer) == (("text",), ("text",) if most else ("audio",))


def test_the_tokens_of_a_sound_are_bound_by_its_text_or_its_model() -> None:
    assert speech(input="x" * 300, instructions="y" * 200).max_output == 5_000
    assert speech(model="known", input="x" * 500).max_output == 1_000


@pytest.mark.parametrize("admission", [priced(in_text=1), priced(image=1), priced()])
def test_speech_without_a_price_is_refused_by_the_meter(admission: Admission) -> None:
    with pytest.raises(Unpriced, match="char"):
        speech().priced(admission).bound(admission)


@pytest.mark.parametrize(
    ("kind", "sound", "tokens"),
    [
        *(("wav", wav(1.51), 31), (None, mp3(FIRST), 50), ("opus", opus(48_000 * 2 + 312), 40)),
        *(
            (None, b"x" * 20_001, 21),
            ("pcm", b"x" * 48_000, 20),
            ("pcm", mp3(FIRST, size=48_000), 20),
            ("aac", b"x" * 16_000, 20),
            ("new", b"x", 1),
        ),
        (None, b"x" * 10**7, 1_000),
    ],
)
def test_by_tokens_a_whole_sound_is_counted_by_its_length(kind: Any, sound: bytes, tokens: int) -> None:
    admission = priced(in_text=1, out_audio=2)
    request = speech(input="x" * 12, response_format=kind).priced(admission)
    bound, api = request.bound(admission), request.metered(openai_speech.API)
    whole = api.read_whole(sound)
    made = billed_usage(
        *(admission, bound, {}, api.USAGE_FORMAT, whole.usage),
        *(lambda: request.counted_prompt(0), whole.estimate),
    )
    assert (made.meters, made.counted) == ({"in_text": 3, "out_audio": tokens}, True)
    assert admission.charge(made.meters).amount <= bound.amount


def test_half_of_an_emoji_is_one_character() -> None:
    request = openai_speech.parse(b'{"model": "m", "input": "a\\ud83d"}', SETTINGS)
    assert request.characters == 2


def test_no_sound_is_no_answer() -> None:
    with pytest.raises(BadAnswer):
        speech().metered(openai_speech.API).read_whole(b"")


@pytest.mark.parametrize(
    "given",
    [
        *("audio/mpeg", "Audio/MPEG", " audio/wav ", "application/octet-stream", "audio/x-wav;codecs=1"),
        *('audio/ogg; codecs="opus"', "audio/L16;rate=24000; channels=1", "audio/vnd.wave"),
    ],
)
def test_sounds_have_such_types(given: str) -> None:
    assert type_of(given, "sound") == given.strip().encode()


@pytest.mark.parametrize(
    "given",
    [
        *("", "audio/", "audio", "application/json", "text/html; charset=utf-8", "text/event-stream"),
        *("audio/mpeg\r\nx: y", "audio/mpeg, text/html", "audio/mpeg; a=<b>", "audio/ü", "video/mp4"),
        *("xaudio/mpeg", "application/octet-stream-x", "audio/" + "x" * 100),
    ],
)
def test_nothing_else_is_a_sound(given: str) -> None:
    with pytest.raises(BadAnswer, match="is no sound"):
        type_of(given, "sound")


@pytest.mark.parametrize(
    "given", ["text/plain; charset=utf-8", "text/vtt", "Text/SRT", "application/x-subrip"]
)
def test_transcripts_have_such_types(given: str) -> None:
    assert type_of(given, "text") == given.encode()
    with pytest.raises(BadAnswer, match="is no sound"):
        type_of(given, "sound")


@pytest.mark.parametrize("given", ["", "text/html", "application/json", "text/event-stream", "text/plainer"])
def test_nothing_else_is_a_transcript(given: str) -> None:
    with pytest.raises(BadAnswer, match="is no text"):
        type_of(given, "text")


@pytest.mark.parametrize(
    ("module", "fields", "place"),
    [
        *((openai_images, {"prompt": "x", "n": n}, "n") for n in (0, 11, "2", 1.5)),
        *((openai_images, {"prompt": prompt}, "prompt") for prompt in (None, "", 5)),
        *((openai_images, {"prompt": "x", "stream": stream}, "stream") for stream in (1, "x")),
        *((openai_speech, {"input": text}, "input") for text in (None, "", ["x"])),
        (openai_speech, {"input": "x", "instructions": 5}, "instructions"),
        (openai_speech, {"input": "x", "stream_format": 5}, "stream_format"),
        (openai_speech, {"input": "x", "stream": True}, "stream"),
        (openai_speech, {"input": "x", "model": ""}, "model"),
    ],
)
def test_errors_name_the_field(module: Any, fields: dict[str, Any], place: str) -> None:
    with pytest.raises(ApiError) as caught:
        module.parse(body(**fields), SETTINGS)
    assert (caught.value.status, caught.value.param) == (400, place)


@pytest.mark.parametrize("kind", ["sound", "text"])
@pytest.mark.parametrize(
    "body",
    [
        *(b'data: {"type": "error"}\n\n', b"data:{}", b"\n\r\ndata: [DONE]\n\n", b"data:\ndata: {}\n\n"),
        *(
            b": ping\n\n: ping\n\ndata: {}\n\n",
            b"\xef\xbb\xbfevent: a\r\nid: 5\r\nretry:\r\ndata: {}\r\n\r\n",
        ),
        b"event: a\rdata: {" + b"x" * 5000,
    ],
)
def test_events_are_no_sound_and_no_text(kind: str, body: bytes) -> None:
    with pytest.raises(BadAnswer, match=f"is an event stream, and no {kind}"):
        refuse_others(body, kind)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        *(("sound", sound) for sound in (b"ID3", b"RIFF\0\0\0\0WAVEdata:", b": and no event", b"\n" * 2000)),
        *(
            ("text", text)
            for text in (b"data: what is it?", b"Hi.\ndata: {}", b"event: a\n", b"Data: {", b"\n")
        ),
    ],
)
def test_what_only_looks_like_events_passes(kind: str, body: bytes) -> None:
    refuse_others(body, kind)


def test_a_begin_like_that_of_events_takes_no_time() -> None:
    began = time.process_time()
    for body in (b"\r\n" * 10**6, b":\r" * 10**6, b":" * 10**6):
        refuse_others(body, "text")
    assert time.process_time() - began < 1
