"""Forms with files: what is read of them, what passes, how edits and transcriptions are measured."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3 import encode_multipart_formdata

from deploys.sandbox.provider import forms as provider_forms
from relay.errors import ApiError
from relay.formats import openai_image_edits, openai_transcriptions
from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.multipart import MAX_PARTS, MAX_TEXT_BYTES, Form, form_of
from relay.formats.written_transcript import write
from relay.pricing.errors import Unpriced
from relay.pricing.plausibility import billed_usage
from relay.pricing.tariff import Admission
from relay.providers.profiles import Profile, profile_of
from relay.settings import Settings
from tests.unit.formats.test_media import priced
from tests.unit.formats.test_sound_length import flac, opus, wav

SETTINGS = Settings.read({"RELAY_MODEL_MAX_OUTPUT": "known=1000,*=64"})
PASS, DROP, REFUSE = (Profile("max_tokens", policy) for policy in ("pass", "drop", "refuse"))
TYPE = b"multipart/form-data; boundary=b"
PNG = b"\x89PNG\r\n\x1a\n\r\n--b \r\n--"
SOUND = b"ID3\r\n--" + bytes(range(256)) * 16
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters='"\\\x7f'), min_size=1
)


def sent(*fields: tuple[str, Any]) -> Form:
    """A form as urllib3 writes it; a file is (name, content, type)."""
    body, kind = encode_multipart_formdata(fields)
    return form_of(kind.encode(), body)


def transcription(*fields: tuple[str, Any], **texts: str) -> openai_transcriptions.TranscriptionRequest:
    given = {"model": "m", **texts}
    return openai_transcriptions.parse_transcription(
        sent(("file", ("a.mp3", SOUND, "audio/mpeg")), *given.items(), *fields), SETTINGS
    )


def edit(*fields: tuple[str, Any], **texts: str) -> Any:
    given = {"model": "m", "prompt": "Hi?", **texts}
    return openai_image_edits.parse(
        sent(("image", ("a.png", PNG, "image/png")), *given.items(), *fields), SETTINGS
    )


@given(
    texts=st.dictionaries(NAMES.map(lambda name: name[:50]), st.text(max_size=50), max_size=5),
    files=st.dictionaries(NAMES.map(lambda name: f"file-{name[:40]}"), st.binary(), max_size=5),
    filename=st.text(st.characters(codec="utf-8"), max_size=40),
    model=st.text(min_size=1, max_size=40),
)
def test_what_is_written_is_what_was_read(
    texts: dict[str, str], files: dict[str, bytes], filename: str, model: str
) -> None:
    uploads = [(name, (filename, content, "audio/mpeg")) for name, content in files.items()]
    form = sent(*(texts | {"model": "m"}).items(), *uploads)
    assert {part.name: bytes(part.content) for part in form.parts} == {
        **{name: value.encode() for name, value in (texts | {"model": "m"}).items()},
        **files,
    }
    read = provider_forms.read(form.content_type.encode(), form.written(model, frozenset(), "pass"))
    assert {name: value for name, value in read.items() if name not in files} == texts | {"model": model}
    assert {name: read[name].content for name in files} == files
    again = form_of(form.content_type.encode(), form.written(model, frozenset(), "pass"))
    assert [part.name for part in again.parts] == [part.name for part in form.parts]


def test_a_file_keeps_its_name_and_its_type() -> None:
    form = sent(("file", ('Grüße "1".mp3', b"x", "audio/mpeg")))
    assert b'filename="Gr\xc3\xbc\xc3\x9fe ' in form.written("m", frozenset(), "pass")
    assert b"Content-Type: audio/mpeg\r\n\r\nx\r\n" in form.written("m", frozenset(), "pass")
    body = b"--b\r\nContent-Disposition: form-data; name=a; filename=x\r\nContent-Type: a b\r\n\r\nx\r\n--b--"
    assert b"Content-Type" not in form_of(TYPE, body).written("m", frozenset(), "pass")


def test_unknown_fields_pass_are_dropped_or_refused() -> None:
    request = transcription(("new", "1"), ("new", "2"), language="de")
    assert request.native("theirs", PASS).count(b'name="new"') == 2
    assert b'name="new"' not in request.native("theirs", DROP)
    assert b"theirs" in request.native("theirs", DROP)
    with pytest.raises(ApiError) as refused:
        request.native("theirs", REFUSE)
    assert refused.value.param == "new"
    assert json.loads(transcription(user="me").document())["user"] == "me"


def part(name: str, content: bytes = b"x", *more: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in (f'Content-Disposition: form-data; name="{name}"', *more))
    return b"--b\r\n" + lines.encode() + b"\r\n" + content + b"\r\n"


END = b"--b--\r\n"
MALFORMED: dict[str, tuple[bytes, bytes]] = {
    "no boundary": (b"multipart/form-data", part("a") + END),
    "another boundary": (b"multipart/form-data; boundary=c", part("a") + END),
    "a long boundary": (b"multipart/form-data; boundary=" + b"c" * 300, b"--" + b"c" * 300 + b"--"),
    "empty": (TYPE, b""),
    "JSON": (TYPE, b'{"model": "m"}'),
    "no end": (TYPE, part("a")),
    "half an end": (TYPE, part("a") + b"--b-"),
    "begun too late": (TYPE, b"x\r\n" + part("a") + END),
    "padding": (TYPE, part("a") + b"--b" + b" " * 100 + b"\r\n"),
    "a boundary in a line": (TYPE, part("a", b"x\r\n--bx") + END),
    "no name": (TYPE, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END),
    "no disposition": (TYPE, b"--b\r\nX: y\r\n\r\nx\r\n" + END),
    "another disposition": (TYPE, b"--b\r\nContent-Disposition: file; name=a\r\n\r\nx\r\n" + END),
    "no header": (TYPE, b"--b\r\nnonsense\r\n\r\nx\r\n" + END),
    "many headers": (TYPE, part("a", b"x", *["X: y"] * 9) + END),
    "a long header": (TYPE, part("a", b"x", "X: " + "y" * 3000) + END),
    "a long name": (TYPE, part("a" * 201) + END),
    "a name with quotes": (TYPE, part('a\\"b') + END),
    "a name that is no UTF-8": (TYPE, part("a").replace(b'"a"', b'"\xff"') + END),
    "too many fields": (TYPE, part("a") * (MAX_PARTS + 1) + END),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_form_is_refused(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        form_of(*MALFORMED[name])
    assert (caught.value.status, caught.value.code) == (400, "invalid_form")


@pytest.mark.parametrize(
    "body",
    [
        part("a") * MAX_PARTS + END,
        part("file", b"\r\n--bb" * 100).replace(b"--bb", b"--c") + END + b"and more",
        part("a", b"") + END,
    ],
)
def test_what_is_a_form(body: bytes) -> None:
    assert form_of(TYPE, body).parts


def test_texts_and_encodings_are_bounded() -> None:
    assert form_of(TYPE, part("a", b"x" * MAX_TEXT_BYTES) + END).parts
    for body in (
        part("a", b"x" * (MAX_TEXT_BYTES + 1)),
        part("a", b"eA==", "Content-Transfer-Encoding: base64"),
    ):
        with pytest.raises(ApiError) as caught:
            form_of(TYPE, body + END)
        assert caught.value.param == "a"


@pytest.mark.parametrize(
    "unit", [b"\r\n--bz", b"\r\n--b ", b"\r\n", b"--b", b"\r", b" ", b"\r\n--b\r\n", b"\r\n--b\r\n\r\n"]
)
def test_no_body_takes_long(unit: bytes) -> None:
    many = unit * ((4 << 20) // len(unit))
    for body in (many, part("a", many), b"--b" + many, b"--b\r\n" + many, part("a")[:-5] + many):
        began = time.thread_time()
        with suppress(ApiError):
            form_of(TYPE, body + END)
        assert time.thread_time() - began < 0.5


# ---------------------------------------------------------------------- transcriptions


@pytest.mark.parametrize(
    ("rates", "by_duration"),
    [
        *(({"ms": 7}, True), ({"ms": 7, "in_text": 1, "out_text": 2}, True), ({"call": 7}, True)),
        *(
            ({"free": True}, True),
            ({"in_text": 1, "out_text": 2}, False),
            ({"in_audio": 1, "out_text": 2}, False),
        ),
    ],
    ids=str,
)
def test_a_transcription_is_measured_by_what_the_price_has(
    rates: Mapping[str, Any], by_duration: bool
) -> None:
    admission = priced(**rates)
    request = transcription().priced(admission)
    assert request.max_usage().others == ({"ms": -(-len(SOUND) * 1000 // 750)} if by_duration else {})
    assert request.max_usage().max_output == (0 if by_duration else 16_384)
    request.bound(admission)


@pytest.mark.parametrize("admission", [priced(char=1), priced(in_text=1)])
def test_a_transcription_without_a_price_is_refused_by_the_meter(admission: Admission) -> None:
    with pytest.raises(Unpriced, match="ms"):
        transcription().priced(admission).bound(admission)


def billed(
    request: Any, api: Any, admission: Any, answer: dict[str, Any] | bytes
) -> tuple[Mapping[str, int], Mapping[str, Any]]:
    """(meters, record)."""
    request = request.priced(admission)
    bound = request.bound(admission)
    api = request.metered(api)
    whole = api.read_whole(answer if isinstance(answer, bytes) else json.dumps(answer).encode())
    made = billed_usage(
        *(admission, bound, {}, api.USAGE_FORMAT, whole.usage),
        *(lambda: request.counted_prompt(0), whole.estimate),
    )
    assert admission.charge(made.meters).amount <= bound.amount
    return made.meters, made.recorded


LONGEST = -(-len(SOUND) * 1000 // 750)
USUAL = -(-len(SOUND) * 1000 // 16_000)


@pytest.mark.parametrize(
    ("answer", "paid"),
    [
        *(({"usage": {"type": "duration", "seconds": 3}}, 3000), ({"duration": 2.0001}, 2001)),
        *(({"duration": "1.5"}, 1500), ({"duration": 2, "usage": {"type": "duration", "seconds": 3}}, 3000)),
        *(({}, USUAL), ({"duration": 0}, USUAL), ({"duration": "long"}, USUAL), ({"duration": -1}, USUAL)),
        *(({"duration": 6}, USUAL), ({"usage": {"seconds": 1e9}}, USUAL), ({"usage": []}, USUAL)),
        ({"usage": {"type": "tokens", "input_tokens": 3}}, USUAL),
    ],
    ids=str,
)
def test_the_duration_is_paid_that_is_told_and_can_be(answer: dict[str, Any], paid: int) -> None:
    assert LONGEST < 6000
    made = billed(transcription(), openai_transcriptions.TRANSCRIPTIONS, priced(ms=3), {"text": "x"} | answer)
    assert made[0] == {"ms": paid}
    assert made[1].get("estimated", False) == (paid == USUAL)


TOKENS = {
    "type": "tokens",
    "input_tokens": 14,
    "output_tokens": 45,
    "input_token_details": {"audio_tokens": 10},
}


@pytest.mark.parametrize(
    ("usage", "meters"),
    [
        (TOKENS, {"in_text": 4, "in_audio": 10, "out_text": 45}),
        *(
            (usage, {"in_audio": 3, "out_text": 2})
            for usage in (None, {}, {"seconds": 9}, {"input_tokens": -1})
        ),
        ({"seconds": 3}, {"in_audio": 30, "out_text": 2}),
        (TOKENS | {"output_tokens": 99_999}, {"in_audio": 3, "out_text": 2}),
        (TOKENS | {"input_tokens": 99_999}, {"in_audio": 3, "out_text": 2}),
    ],
    ids=str,
)
def test_by_tokens_the_usage_is_paid_that_can_be(usage: Any, meters: Mapping[str, int]) -> None:
    admission = priced(in_text=1, in_audio=2, out_text=3)
    answer = {"text": "abcdefgh", "usage": usage}
    assert billed(transcription(), openai_transcriptions.TRANSCRIPTIONS, admission, answer)[0] == meters


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        *((b"", BadAnswer), (b"[]", BadAnswer), (b"Hello.", BadAnswer), (b'{"text": 5}', BadAnswer)),
        *((b"{}", ErrorAnswer), (b'{"error": "no", "text": "x"}', ErrorAnswer)),
    ],
)
def test_what_is_no_transcript(answer: bytes, error: type[Exception]) -> None:
    api = transcription().metered(openai_transcriptions.TRANSLATIONS)
    with pytest.raises(error):
        api.read_whole(answer)


SRT = b"1\r\n00:00:00,000 --> 00:00:%b\r\nHi, there.\r\n\r\n2\r\n00:00:00,200 --> 00:00:00,250\r\nBye.\r\n"
VTT = b"\xef\xbb\xbfWEBVTT\n\n00:00.000 --> 00:%b\nHi, there.\n\n00:00.200 --> 00:00.250 align:left\nBye.\n"


@pytest.mark.parametrize(
    ("shape", "answer", "paid"),
    [
        *(("text", b"Hi.\n", USUAL), ("text", b"\n", USUAL), ("text", b"--> 5", USUAL)),
        *(("srt", SRT % b"00,100", 666), ("srt", SRT % b"03,001", 3001), ("srt", SRT % b"06,000", 666)),
        *(("vtt", VTT % b"00.100", 566), ("vtt", VTT % b"03.001", 3001), ("vtt", VTT % b"06.000", 566)),
        *(("srt", b"\n", USUAL), ("vtt", b"WEBVTT", USUAL), ("vtt", b"WEBVTT\n\n", USUAL)),
    ],
)
def test_plain_text_is_paid_by_the_size_of_the_file_or_by_its_last_subtitle(
    shape: str, answer: bytes, paid: int
) -> None:
    request = transcription(response_format=shape)
    meters, recorded = billed(request, openai_transcriptions.TRANSLATIONS, priced(ms=3), answer)
    assert (meters, recorded["estimated"], recorded["why"]) == ({"ms": paid}, True, "no duration was told")


def test_the_header_of_a_file_tells_its_duration_where_nobody_else_does() -> None:
    file = ("file", ("a.wav", wav(2.5), "audio/wav"))
    request = transcribed(sent(file, MODEL, ("response_format", "text")), SETTINGS)
    api = openai_transcriptions.TRANSCRIPTIONS
    assert billed(request, api, priced(ms=3), b"Hi.")[0] == {"ms": 2500}
    assert billed(request, api, priced(in_audio=1, out_text=2), b"Hi.")[0] == {"in_audio": 25, "out_text": 1}
    told = transcribed(sent(file, MODEL), SETTINGS)
    assert billed(told, api, priced(ms=3), {"text": "Hi.", "usage": {"seconds": 3}})[0] == {"ms": 3000}
    assert billed(told, api, priced(ms=3), {"text": "Hi."})[0] == {"ms": 2500}
    # 5 MB an hour is what no sound has.
    odd = ("file", ("a.flac", flac(1 << 35, 1_000), "audio/flac"))
    assert billed(transcribed(sent(odd, MODEL), SETTINGS), api, priced(ms=3), {"text": ""})[0] == {"ms": 2503}


SAID = "And so on and on. " * 20  # 360 characters, which take 12 s
FORGED = opus(48_000 * 7 // 10 + 312)  # 0.7 s, where its 40 KB have 53 s at most
SPOKEN_ANSWERS: dict[str, dict[str, Any] | bytes] = {
    "json": {"text": SAID},
    "text": SAID.encode(),
    "srt": b"1\n00:00:00,000 --> 00:00:00,100\n" + SAID.encode(),
    "vtt": b"WEBVTT\n\n00:00.000 --> 00:00.100\n" + SAID.encode(),
}


@pytest.mark.parametrize("shape", SPOKEN_ANSWERS)
@pytest.mark.parametrize("file", [FORGED, wav(0.001)], ids=["opus", "wav"])
def test_no_file_is_shorter_than_what_is_said_in_it(shape: str, file: bytes) -> None:
    sound = ("file", ("a", file, "audio/ogg"))
    request = transcribed(sent(sound, MODEL, ("response_format", shape)), SETTINGS)
    api, answer = openai_transcriptions.TRANSCRIPTIONS, SPOKEN_ANSWERS[shape]
    said = len(SAID.strip()) if shape != "json" else len(SAID)
    held = -(-len(file) * 1000 // 750)
    ms = min(said * 1000 // 30, held)
    assert billed(request, api, priced(ms=3), answer)[0] == {"ms": ms}
    tokens = billed(request, api, priced(in_audio=1, out_text=2), answer)[0]["in_audio"]
    assert tokens == -(-ms * 10 // 1000)


@given(
    st.text(max_size=400),
    st.sampled_from(["json", "text"]),
    st.sampled_from([FORGED, wav(0.001), wav(0.5), SOUND]),
)
def test_the_length_of_the_text_bounds_what_any_file_costs(said: str, shape: str, file: bytes) -> None:
    request = transcribed(
        sent(("file", ("a", file, "audio/ogg")), MODEL, ("response_format", shape)), SETTINGS
    )
    answer: Any = {"text": said} if shape == "json" else said.encode(errors="replace") or b" "
    (ms,) = billed(request, openai_transcriptions.TRANSCRIPTIONS, priced(ms=3), answer)[0].values()
    held = -(-len(file) * 1000 // 750)
    assert held >= ms >= min(len(said.strip()) * 1000 // 30, held)


@pytest.mark.parametrize(
    ("shape", "answer"), [("text", b"abcdefgh\n"), ("srt", SRT % b"00,100"), ("vtt", VTT % b"00.100")]
)
def test_by_tokens_plain_text_is_counted_without_its_times(shape: str, answer: bytes) -> None:
    request = transcription(response_format=shape)
    admission = priced(in_text=1, in_audio=2, out_text=3)
    meters = billed(request, openai_transcriptions.TRANSCRIPTIONS, admission, answer)[0]
    # 8, 20 and 17 characters, of which a second has 30 at most, and 10 tokens
    assert meters["in_audio"] == {"text": 3, "srt": 7, "vtt": 6}[shape]
    assert meters["out_text"] == (2 if shape == "text" else 5)


@pytest.mark.parametrize(
    ("shape", "answer"),
    [
        *((shape, answer) for shape in ("text", "srt", "vtt") for answer in (b"", b"\xff")),
        *(("srt", b"Hello."), ("srt", VTT % b"00.100"), ("srt", b"upstream connect error")),
        *(("vtt", b"Hello."), ("vtt", SRT % b"00,100"), ("vtt", b"WEBVTTX"), ("vtt", b"\n")),
    ],
)
def test_what_is_no_plain_text(shape: str, answer: bytes) -> None:
    api = transcription(response_format=shape).metered(openai_transcriptions.TRANSCRIPTIONS)
    with pytest.raises(BadAnswer):
        api.read_whole(answer)


@given(st.binary(max_size=300), st.sampled_from(["text", "srt", "vtt"]))
def test_no_answer_costs_more_than_was_held(answer: bytes, shape: str) -> None:
    with suppress(BadAnswer):
        billed(
            transcription(response_format=shape), openai_transcriptions.TRANSCRIPTIONS, priced(ms=3), answer
        )


# ---------------------------------------------------------------------- JSON in the place of plain text

WHISPER, OURS = "whisper-1", "gpt-4o-transcribe"
ASKED = [
    *((None, WHISPER, shape, "verbose_json") for shape in ("text", "srt", "vtt")),
    *((None, "Systran/faster-WHISPER-large", "srt", "verbose_json"), (None, OURS, "text", "json")),
    *((None, model, shape, "") for model in (OURS, "theirs") for shape in ("srt", "vtt")),
    *((known, WHISPER, shape, "") for known in ("as_asked", "json") for shape in ("srt", "vtt")),
    *(
        ("as_asked", OURS, "text", ""),
        ("json", WHISPER, "text", "json"),
        ("verbose_json", OURS, "vtt", "verbose_json"),
    ),
    *(
        (None, model, shape, "")
        for model in (WHISPER, OURS)
        for shape in ("", "json", "verbose_json", "diarized_json")
    ),
]


@pytest.mark.parametrize(("known", "model", "shape", "asked"), ASKED)
@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_provider_is_asked_for_what_tells_usage(
    known: Any, model: str, shape: str, asked: str, stream: str
) -> None:
    wanted = {"response_format": shape} if shape else {}
    granularities = [("timestamp_granularities[]", one) for one in ("word", "segment")]
    request = transcription(*granularities, stream=stream, **wanted)
    profile = profile_of("openai", SETTINGS, transcripts=known)
    assert request.asked_as(model, profile) == asked
    read = provider_forms.read(request.form.content_type.encode(), request.native(model, profile))  # type: ignore[union-attr]
    assert read.get("response_format", "") == (asked or shape)
    assert read["model"] == model
    assert ("timestamp_granularities[]" in read, request.left_out(asked)) == (
        (False, ("timestamp_granularities[]",)) if asked else (True, ())
    )


SEGMENTS = [{"start": 0, "end": 1.5, "text": " Hi, there."}, {"start": 2, "end": 2.25, "text": " Bye."}]
VERBOSE: dict[str, Any] = {"text": "Hi, there. Bye.", "segments": SEGMENTS}


def billed_asked(
    shape: str, admission: Admission, answer: dict[str, Any], asked: str = "verbose_json"
) -> tuple[bytes, Mapping[str, int]]:
    """(what the customer gets, meters) of an answer in JSON."""
    request = transcription(response_format=shape).priced(admission)
    api = request.metered(openai_transcriptions.TRANSCRIPTIONS, asked)
    body = json.dumps(answer).encode()
    whole, bound = api.read_whole(body), request.bound(admission)
    made = billed_usage(
        *(admission, bound, {}, api.USAGE_FORMAT, whole.usage),
        *(lambda: request.counted_prompt(0), whole.estimate),
    )
    assert (api.BYTES, api.write is None) == ("", False)
    assert admission.charge(made.meters).amount <= bound.amount
    return api.write(body), made.meters  # type: ignore[misc]


@pytest.mark.parametrize("shape", ["text", "srt", "vtt"])
@pytest.mark.parametrize(
    ("told", "ms"),
    [
        *(
            ({"duration": 2.3}, 2300),
            ({"duration": "2.3", "usage": {"type": "duration", "seconds": 3}}, 3000),
        ),
        # Nobody tells, or what cannot be: not shorter than its last segment.
        *(({}, 2250), ({"duration": 1e6}, 2250), ({"usage": {"seconds": 0}, "duration": -1}, 2250)),
    ],
    ids=str,
)
def test_plain_text_of_json_is_paid_by_the_duration_that_is_told(
    shape: str, told: dict[str, Any], ms: int
) -> None:
    written, meters = billed_asked(shape, priced(ms=3), VERBOSE | told)
    assert written == write(VERBOSE, shape)
    assert meters == {"ms": ms}
    assert billed_asked(shape, priced(in_audio=2, out_text=3), VERBOSE | told)[1] == {
        "in_audio": -(-ms // 100),
        "out_text": 4,
    }


def test_plain_text_of_json_is_paid_by_the_tokens_that_are_told() -> None:
    price = priced(in_text=1, in_audio=2, out_text=3)
    answer = {"text": "Hi, there.", "usage": TOKENS}
    assert billed_asked("text", price, answer, "json") == (
        b"Hi, there.\n",
        {"in_text": 4, "in_audio": 10, "out_text": 45},
    )
    impossible = {"text": "Hi, there.", "usage": TOKENS | {"input_tokens": 99_999}}
    assert billed_asked("text", price, impossible, "json")[1] == {"in_audio": 4, "out_text": 3}


def subtitles_of(answer: bytes, stream: str) -> bytes:
    """What a customer gets who wants subtitles."""
    request = transcription(response_format="srt", stream=stream).priced(priced(ms=3))
    if request.stream:
        return request.as_events(answer, "verbose_json")
    api = request.metered(openai_transcriptions.TRANSLATIONS, "verbose_json")
    api.read_whole(answer)
    assert api.write is not None
    return api.write(answer)


@pytest.mark.parametrize("file", [FORGED, wav(0.001)], ids=["opus", "wav"])
def test_a_forged_header_makes_no_plain_text_cheaper(file: bytes) -> None:
    for shape in ("text", "srt", "vtt"):
        fields = (("file", ("a", file, "audio/ogg")), MODEL, ("response_format", shape))
        request = transcribed(sent(*fields), SETTINGS).priced(priced(ms=3))
        ms = min(20_000, request.longest)
        api = request.metered(openai_transcriptions.TRANSCRIPTIONS, "verbose_json")
        answer = api.read_whole(json.dumps(VERBOSE | {"duration": ms / 1000}).encode())
        assert answer.usage["meters"] == {"ms": ms}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        *((b"", BadAnswer), (b"Hi.", BadAnswer), (SRT % b"00,100", BadAnswer), (b'{"text": 5}', BadAnswer)),
        *(
            (b"{}", ErrorAnswer),
            (b'{"error": "no", "text": "x"}', ErrorAnswer),
            (b'{"text": "x"}', BadAnswer),
        ),
        (b'{"text": "x", "segments": [{"start": 0, "text": "x"}]}', BadAnswer),
    ],
)
@pytest.mark.parametrize("stream", ["true", "false"])
def test_what_is_no_json_to_write_subtitles_of(answer: bytes, error: type[Exception], stream: str) -> None:
    with pytest.raises(error):
        subtitles_of(answer, stream)


# ---------------------------------------------------------------------- edits


def test_an_edit_is_paid_by_the_piece_or_by_tokens_of_what_it_sees() -> None:
    answer = {"data": [{"url": "x"}], "usage": {"input_tokens": 700, "output_tokens": 500}}
    answer["usage"] |= {"input_tokens_details": {"text_tokens": 50, "image_tokens": 650}}  # type: ignore[operator]
    assert billed(edit(), openai_image_edits.API, priced(image=7), answer)[0] == {"image": 1}
    meters = billed(edit(), openai_image_edits.API, priced(in_text=1, out_image=2), answer)[0]
    assert meters == {"in_text": 50, "in_image": 650, "out_image": 500}


def test_an_edits_prompt_is_bound_with_all_its_images() -> None:
    request = edit(("image[]", ("b.png", PNG, "image/png")), ("mask", ("m.png", PNG, "image/png")), n="3")
    assert (request.images, request.choices, request.max_output) == (3, 3, 3 * 16_384)
    assert request.input_bound >= 3 * 8_192
    assert request.native("theirs", PASS).count(PNG) == 3


FILE = ("file", ("a.mp3", SOUND, "audio/mpeg"))
IMAGE = ("image", ("a.png", PNG, "image/png"))
MODEL, PROMPT = ("model", "m"), ("prompt", "x")
transcribed, edited = openai_transcriptions.parse_transcription, openai_image_edits.parse
translated = openai_transcriptions.parse_translation


@pytest.mark.parametrize(
    ("parse", "fields", "place"),
    [
        *((transcribed, fields, "model") for fields in ([FILE], [FILE, ("model", "")], [FILE, MODEL, MODEL])),
        *(
            (transcribed, [FILE, ("model", value)], "model")
            for value in ("x" * 201, b"\xff", ("m", b"m", "a/b"))
        ),
        *((transcribed, fields, "file") for fields in ([MODEL], [MODEL, ("file", "x")], [MODEL, FILE, FILE])),
        (transcribed, [MODEL, ("file", ("a.mp3", b"", "audio/mpeg"))], "file"),
        *((transcribed, [MODEL, FILE, ("stream", one)], "stream") for one in ("x", "yes", "2")),
        *((translated, [MODEL, FILE, ("stream", one)], "stream") for one in ("true", "True", "1", "x")),
        *((edited, fields, "image") for fields in ([MODEL, PROMPT], [MODEL, PROMPT, ("image", "x")])),
        *((edited, fields, "prompt") for fields in ([MODEL, IMAGE], [MODEL, IMAGE, ("prompt", "")])),
        *((edited, [MODEL, PROMPT, IMAGE, ("n", n)], "n") for n in ("0", "11", "x", "1.5", "-1", "9" * 5000)),
        (edited, [MODEL, PROMPT, IMAGE, ("stream", "x")], "stream"),
        (edited, [MODEL, PROMPT, IMAGE, ("mask", "x")], "mask"),
    ],
)
def test_errors_name_the_field(parse: Any, fields: list[Any], place: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(sent(*fields), SETTINGS)
    assert (caught.value.status, caught.value.param) == (400, place)


def test_what_asks_for_no_stream_passes() -> None:
    assert b"false" in transcription(stream="false", response_format="verbose_json").native("m", PASS)
