"""Images and sounds with OpenAI's SDK: what comes back, is billed and is refused, and who answers instead."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import openai
import pytest
import requests

from deploys.sandbox.provider import media
from tests.contract.conftest import Database
from tests.contract.fuzz.raw_provider import Answer, Received, json_answer, running_raw_provider
from tests.contract.relay_rig import PROVIDER_KEY, Customer, Provider, Relay, Replica, eventually
from tests.unit.formats.test_sound_length import flac

PIECE, IN, OUT, CHARACTER = 40_000_000, 5_000, 40_000, 15_000  # nano-dollars a unit
MILLISECOND, HEARD, WRITTEN, SPOKEN = 100, 6_000, 10_000, 12_000
TOKENS = ("--in-text", "5/1M", "--rate", "out_image=40/1M")
PRICES = {
    "pieces": ("--rate", "image=0.04/1"),
    "both": ("--rate", "image=0.04/1", *TOKENS),
    "tokens": TOKENS,
    "bounded": TOKENS,
    "calls": ("--rate", "call=0.001/1"),
    "voice": ("--rate", "char=15/1M"),
    "spoken": ("--in-text", "5/1M", "--rate", "out_audio=12/1M"),
    "seconds": ("--rate", "ms=0.1/1M"),
    "whole": ("--rate", "ms=0.1/1M"),
    "plain": ("--rate", "ms=0.1/1M"),
    "heard": ("--rate", "in_audio=6/1M", "--in-text", "2.5/1M", "--out-text", "10/1M"),
    "text": ("--in-text", "5/1M"),
    "crossing": ("--rate", "image=0.04/1", "--rate", "char=15/1M", "--rate", "ms=0.1/1M"),
    "claude": ("--rate", "image=0.04/1", "--rate", "char=15/1M", "--rate", "ms=0.1/1M"),
}
PROMPT = "A cat, 猫, on a mat."
SAID = "Grüße 👋 aus 東京."
SOUND = b"ID3\r\n--" + bytes(range(256)) * 400  # 25.6 s of the fake provider's
HEARD_TEXT = f"{len(SOUND)} bytes: {hashlib.sha256(SOUND).hexdigest()}"


@dataclass
class Stage:
    """Models of PRICES; ``crossing`` is on a raw provider first, which sends ``odd``, and then on the fake
    one; ``claude`` has a channel of Anthropic's format alone, ``plain`` one that is asked for plain text
    where customers are."""

    relay: Relay
    replica: Replica
    provider: Provider
    odd: Answer | None = None
    asked: list[Received] = field(default_factory=list)

    def choose(self, received: Received) -> Answer:
        """Of the raw provider."""
        self.asked.append(received)
        return self.odd or json_answer(json.dumps({"data": [{"b64_json": "AAAA"}]}).encode())


@pytest.fixture(scope="module")
def stage(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    settings = {
        "RELAY_MODEL_MAX_OUTPUT": "bounded=1100,*=64",
        "RELAY_REPLICAS": "1",
        "RELAY_PING_SECONDS": "4",
    }
    relay = Relay(module_database, tmp_path_factory.mktemp("relay"), settings)
    with running_raw_provider(lambda received: made.choose(received)) as raw:
        named = {"heard": "gpt-theirs", "whole": "whisper-theirs"}  # who tell tokens, and stream nothing
        others = {"claude", "plain"}
        models = ",".join(f"{model}={named.get(model, 'theirs')}" for model in PRICES if model not in others)
        relay.channel(provider.url, models, "ours")
        relay.channel(provider.url, "plain=whisper-theirs", "plain", "--transcript-format", "as_asked")
        relay.channel(raw.removesuffix("/v1"), "crossing=theirs", "odd", "--priority", "10")
        relay.command(
            *("channel", "create", "--name", "theirs", "--provider", "anthropic", "--format", "anthropic"),
            *("--base-url", f"{provider.url}/v1", "--api-key-stdin", "--models", "claude=claude-fake"),
            stdin=PROVIDER_KEY,
        )
        for model, rates in PRICES.items():
            relay.price(model, *rates)
        made = Stage(relay, relay.replica(), provider)
        yield made
        relay.stop()


@pytest.fixture
def customer(stage: Stage, request: pytest.FixtureRequest) -> Iterator[Customer]:
    stage.odd = None
    yield Customer(stage.relay, stage.replica, request.node.name, "100.00", "--concurrency", "1")
    stage.provider.control()


def generate(customer: Customer, model: str, **more: Any) -> Any:
    return customer.sdk.images.with_raw_response.generate(model=model, **{"prompt": PROMPT} | more)


def speak(customer: Customer, model: str = "voice", **more: Any) -> Any:
    asked = {"input": SAID, "voice": "alloy"} | more
    return customer.sdk.audio.speech.with_raw_response.create(model=model, **asked)


def edit(customer: Customer, model: str = "pieces", **more: Any) -> Any:
    asked = {"image": ("Grüße.png", media.picture("a"), "image/png"), "prompt": PROMPT} | more
    return customer.sdk.images.with_raw_response.edit(model=model, **asked)


def transcribe(customer: Customer, model: str = "seconds", **more: Any) -> Any:
    asked = {"file": ("Grüße 1.mp3", SOUND, "audio/mpeg")} | more
    return customer.sdk.audio.transcriptions.with_raw_response.create(model=model, **asked)


def translate(customer: Customer, model: str = "seconds", **more: Any) -> Any:
    return customer.sdk.audio.translations.with_raw_response.create(
        model=model, file=("a.mp3", SOUND), **more
    )


def at_the_provider(stage: Stage, customer: Customer) -> Customer:
    """The same, who asks the provider itself."""
    other = copy(customer)
    other.sdk = openai.OpenAI(base_url=f"{stage.provider.url}/v1", api_key=PROVIDER_KEY, max_retries=0)
    return other


def post(customer: Customer, path: str, body: Any = None, **more: Any) -> requests.Response:
    headers = {"authorization": f"Bearer {customer.key}"} | more.pop("headers", {})
    url = f"{customer.replica.url}/v1/{path}"
    return requests.post(url, json=body, headers=headers, timeout=60, **more)


def leaving(customer: Customer) -> Customer:
    """The same, who leaves when nothing comes for so long, before the relay's first ping."""
    other = copy(customer)
    other.sdk = customer.replica.client(customer.key, timeout=2.5)
    return other


def booked(stage: Stage, raw: Any) -> dict[str, Any]:
    (only,) = stage.provider.calls(raw.headers["x-request-id"])
    bill: dict[str, Any] = only["bill"]
    return bill


def outcomes(customer: Customer) -> list[str]:
    return [attempt["outcome"] for attempt in customer.record()["attempts"]]


# ---------------------------------------------------------------------- images


@pytest.mark.parametrize("model", ["pieces", "both"])
@pytest.mark.parametrize("number", [None, 1, 3])
def test_images_by_the_piece_cost_as_many_as_the_provider_books(
    stage: Stage, customer: Customer, model: str, number: int | None
) -> None:
    raw = generate(customer, model, quality="high", size="1024x1024", **{"n": number} if number else {})
    images = [base64.b64decode(one.b64_json) for one in raw.parse().data]
    assert images == [media.picture(f"{PROMPT}\n{index}") for index in range(number or 1)]
    assert booked(stage, raw)["images"] == len(images)
    assert customer.spent() == len(images) * PIECE == customer.record()["charge"]
    assert customer.record()["meters"] == {"image": len(images)}


@pytest.mark.parametrize("quality", ["low", "high"])
def test_images_by_tokens_cost_what_the_provider_counts(
    stage: Stage, customer: Customer, quality: str
) -> None:
    raw = generate(customer, "tokens", n=2, quality=quality, response_format="url")
    answer, bill = raw.parse(), booked(stage, raw)
    assert [one.url.startswith("https://images.example.com/") for one in answer.data] == [True, True]
    assert bill["output"] == answer.usage.output_tokens == 2 * media.TOKENS_OF_QUALITY[quality]
    assert customer.record()["meters"] == {"in_text": bill["input"], "out_image": bill["output"]}
    assert customer.spent() == bill["input"] * IN + bill["output"] * OUT


def test_images_by_tokens_that_nobody_tells_are_counted(stage: Stage, customer: Customer) -> None:
    stage.provider.control(omit_usage=True)
    generate(customer, "tokens", prompt="x" * 400, n=2)
    record = customer.record()
    assert record["meters"] == {"in_text": 100, "out_image": 2 * 1056}
    assert record["abort_rule"] == "bill what was delivered"


def test_usage_that_cannot_be_is_not_believed(stage: Stage, customer: Customer) -> None:
    stage.provider.control(told_usage={"input_tokens": 5, "output_tokens": 1_000_000})
    generate(customer, "tokens", prompt="x" * 400)
    assert customer.record()["meters"] == {"in_text": 100, "out_image": 1056}


@pytest.mark.parametrize("made", [1, 5])
def test_images_are_paid_that_came_and_were_asked_for(stage: Stage, customer: Customer, made: int) -> None:
    stage.provider.control(images=made)
    assert len(generate(customer, "pieces", n=3).parse().data) == made
    assert customer.spent() == min(made, 3) * PIECE


def test_a_price_of_the_call_pays_all_its_images(customer: Customer) -> None:
    generate(customer, "calls", n=4)
    assert customer.spent() == 1_000_000


def test_an_answer_without_images_costs_nothing(stage: Stage, customer: Customer) -> None:
    stage.provider.control(images=0)
    with pytest.raises(openai.InternalServerError) as caught:
        generate(customer, "pieces")
    assert caught.value.status_code == 502
    assert (customer.spent(), outcomes(customer)) == (0, ["bad_answer"])


def test_an_image_of_16_megabytes_passes_whole(stage: Stage, customer: Customer) -> None:
    stage.provider.control(media_bytes=12 << 20)
    (image,) = generate(customer, "pieces").parse().data
    assert len(image.b64_json) > 16 << 20
    assert base64.b64decode(image.b64_json) == media.picture(f"{PROMPT}\n0", 12 << 20)
    assert customer.spent() == PIECE


# ---------------------------------------------------------------------- sounds


@pytest.mark.parametrize("kind", [None, *media.TYPES])
def test_sounds_pass_with_their_type_and_cost_what_the_provider_books(
    stage: Stage, customer: Customer, kind: str | None
) -> None:
    raw = speak(customer, instructions="Slowly 🐢.", **{"response_format": kind} if kind else {})
    assert raw.headers["content-type"].encode() == media.TYPES[kind or "mp3"]
    assert raw.parse().content == media.sound(SAID, kind or "mp3")
    assert booked(stage, raw)["characters"] == len(SAID) + len("Slowly 🐢.")
    assert customer.spent() == booked(stage, raw)["characters"] * CHARACTER
    assert customer.record()["meters"] == {"char": len(SAID) + len("Slowly 🐢.")}


def test_a_sound_that_comes_whole_is_counted_where_tokens_are_paid(customer: Customer) -> None:
    assert speak(customer, "spoken", response_format="wav").parse().content == media.sound(SAID, "wav")
    record = customer.record()
    # 20 samples a character, of 24,000 a second; 20 tokens a second.
    assert record["meters"] == {"in_text": 8, "out_audio": -(-len(SAID) * 20 * 20 // 24_000)}
    assert record["abort_rule"] == "bill what was delivered"
    assert customer.spent() == 8 * IN + record["meters"]["out_audio"] * SPOKEN


def test_a_large_sound_passes_whole(stage: Stage, customer: Customer) -> None:
    stage.provider.control(media_bytes=20 << 20)
    assert speak(customer).parse().content == media.sound(SAID, "mp3", 20 << 20)


# ---------------------------------------------------------------------- forms


def shown(*images: bytes, index: int = 0) -> bytes:
    """What the fake provider makes of these images."""
    return media.picture(f"{PROMPT}\n{hashlib.sha256(b''.join(images)).hexdigest()}\n{index}")


def test_edits_by_the_piece(stage: Stage, customer: Customer) -> None:
    raw = edit(customer, n=2)
    made = [base64.b64decode(one.b64_json) for one in raw.parse().data]
    assert made == [shown(media.picture("a"), index=index) for index in range(2)]
    assert booked(stage, raw)["images"] == 2
    assert customer.spent() == 2 * PIECE


def test_edits_by_tokens_of_several_images(stage: Stage, customer: Customer) -> None:
    a, b, mask = (media.picture(seed, 1 << 20) for seed in "abm")
    raw = edit(customer, "tokens", image=[("a.png", a), ("b.png", b)], mask=("m.png", mask), quality="low")
    (image,) = raw.parse().data
    assert base64.b64decode(image.b64_json) == shown(a, b, mask)
    bill, record = booked(stage, raw), customer.record()
    seen = 3 * media.TOKENS_SEEN
    assert record["meters"] == {
        "in_text": bill["input"] - seen,
        "in_image": seen,
        "out_image": bill["output"],
    }
    assert customer.spent() == bill["input"] * IN + bill["output"] * OUT


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # so the SDK calls translations
@pytest.mark.parametrize("shape", [None, "json", "verbose_json"])
@pytest.mark.parametrize("make", [transcribe, translate])
def test_transcriptions_by_the_duration(
    stage: Stage, customer: Customer, make: Any, shape: str | None
) -> None:
    raw = make(customer, **{"response_format": shape} if shape else {})
    assert raw.parse().text == f"{len(SOUND)} bytes: {hashlib.sha256(SOUND).hexdigest()}"
    assert customer.record()["meters"] == {"ms": booked(stage, raw)["seconds"] * 1000}
    assert customer.spent() == booked(stage, raw)["seconds"] * 1000 * MILLISECOND


def test_the_duration_beside_the_text_is_paid_where_no_usage_is_told(
    stage: Stage, customer: Customer
) -> None:
    stage.provider.control(omit_usage=True)
    raw = transcribe(customer, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert customer.record()["meters"] == {"ms": booked(stage, raw)["ms"]}
    answer = json.loads(raw.content)
    assert " ".join(one["word"] for one in answer["words"]) == HEARD_TEXT
    assert "".join(one["text"] for one in answer["segments"]) == f" {HEARD_TEXT}"
    assert answer["segments"][-1]["end"] == answer["words"][-1]["end"] == round(answer["duration"], 2)


@pytest.mark.parametrize("told", [None, {"type": "duration", "seconds": 10**6}], ids=["none", "impossible"])
def test_a_duration_that_nobody_tells_is_taken_from_the_size(
    stage: Stage, customer: Customer, told: Any
) -> None:
    stage.provider.control(**{"told_usage": told} if told else {"omit_usage": True})
    transcribe(customer)
    assert customer.record()["meters"] == {"ms": -(-len(SOUND) // 16)}


def test_transcriptions_by_tokens(stage: Stage, customer: Customer) -> None:
    raw = transcribe(customer, "heard", language="de", temperature=0.5, prompt="Names: Grüße.")
    bill = booked(stage, raw)
    assert bill["input"] == 10 * bill["seconds"]
    assert customer.record()["meters"] == {"in_audio": bill["input"], "out_text": bill["output"]}
    assert customer.spent() == bill["input"] * HEARD + bill["output"] * WRITTEN


def test_a_file_of_25_megabytes_passes_unchanged(customer: Customer) -> None:
    file = bytes(range(256)) * (25 << 12)
    text = transcribe(customer, file=("large.wav", file)).parse().text
    assert text == f"{len(file)} bytes: {hashlib.sha256(file).hexdigest()}"
    with pytest.raises(openai.APIStatusError) as caught:
        transcribe(customer, file=("larger.wav", file + bytes(2 << 20)))
    assert caught.value.status_code == 413


def test_a_form_passes_with_the_providers_name_of_the_model(stage: Stage, customer: Customer) -> None:
    stage.odd = json_answer(b'{"text": "Hi.", "duration": 2.5}')
    assert transcribe(customer, "crossing", extra_body={"new": "1"}).parse().text == "Hi."
    sent = stage.asked[-1]
    assert b"content-type: multipart/form-data; boundary=" in sent.head.lower()
    assert b'name="model"\r\n\r\ntheirs\r\n' in sent.body
    assert b'name="new"\r\n\r\n1\r\n' in sent.body
    named = 'name="file"; filename="Grüße 1.mp3"\r\nContent-Type: audio/mpeg\r\n\r\n'.encode()
    assert named + SOUND + b"\r\n--" in sent.body
    assert customer.record()["meters"] == {"ms": 2500}


def test_a_form_that_one_channel_fails_goes_to_the_next(stage: Stage, customer: Customer) -> None:
    stage.odd = json_answer(b"Hi.", content_type="text/plain")
    text = transcribe(customer, "crossing").parse().text
    assert text == f"{len(SOUND)} bytes: {hashlib.sha256(SOUND).hexdigest()}"
    assert outcomes(customer) == ["bad_answer", "ok"]


FILE = {"file": ("a.mp3", SOUND, "audio/mpeg")}
IMAGE = {"image": ("a.png", b"x", "image/png")}
HEARS = "audio/transcriptions"


@pytest.mark.parametrize(
    ("path", "texts", "files", "place"),
    [
        (HEARS, {}, FILE, "model"),
        *((HEARS, {"model": "seconds"} | texts, IMAGE, "file") for texts in ({}, {"file": "x"})),
        ("audio/translations", {"model": "seconds"}, IMAGE, "file"),
        (HEARS, {"model": "seconds", "stream": "yes"}, FILE, "stream"),
        ("audio/translations", {"model": "seconds", "stream": "true"}, FILE, "stream"),
        *(("images/edits", texts, IMAGE, "model") for texts in ({}, {"model": ""})),
        ("images/edits", {"model": "pieces"}, IMAGE, "prompt"),
        ("images/edits", {"model": "pieces", "prompt": "x"}, FILE, "image"),
        ("images/edits", {"model": "pieces", "prompt": "x", "stream": "yes"}, IMAGE, "stream"),
        ("images/edits", {"model": "pieces", "prompt": "x", "n": "11"}, IMAGE, "n"),
    ],
)
def test_errors_of_forms_name_the_field(
    stage: Stage, customer: Customer, path: str, texts: Any, files: Any, place: str
) -> None:
    calls = len(stage.provider.calls())
    answer = post(customer, path, data=texts, files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, place), answer.text
    assert (customer.spent(), len(stage.provider.calls())) == (0, calls)


@pytest.mark.parametrize("path", [HEARS, "audio/translations", "images/edits"])
def test_what_is_no_form_is_refused(customer: Customer, path: str) -> None:
    for kind in ("application/json", "text/plain", "multipart/mixed; boundary=b", ""):
        answer = post(customer, path, data=b"{}", headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
        assert "multipart/form-data" in answer.json()["error"]["message"]
    broken = post(
        customer, path, data=b"--b\r\nx", headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_form")
    other = post(customer, "audio/speech", files=FILE)
    assert (other.status_code, other.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_a_transcription_without_a_price_is_refused_before_the_hold(customer: Customer) -> None:
    for model in ("text", "voice"):
        with pytest.raises(openai.NotFoundError, match="ms has no price"):
            transcribe(customer, model)


# ---------------------------------------------------------------------- failures


def audio(body: bytes, kind: str = "audio/mpeg") -> Answer:
    return json_answer(body, content_type=kind)


ODD: dict[str, tuple[str, Answer]] = {
    "no JSON": ("images", json_answer(b"<html>")),
    "no images": ("images", json_answer(b'{"data": []}')),
    "empty images": ("images", json_answer(b'{"data": [{"b64_json": ""}, {"url": null}, {}]}')),
    "data of another kind": ("images", json_answer(b'{"data": "AAAA"}')),
    "an error in place of images": ("images", json_answer(b'{"error": {"message": "overloaded"}}')),
    "images refused": ("images", json_answer(b'{"error": {"message": "no"}}', status=500)),
    "a sound refused": ("audio", json_answer(b'{"error": {"message": "no"}}', status=500)),
    "an empty sound": ("audio", audio(b"")),
    "JSON for a sound": ("audio", audio(b'{"error": {"message": "no"}}', "application/json")),
    "JSON called a sound": ("audio", audio(b'{"error": {"message": "no"}}')),
    "JSON without a type": ("audio", audio(b' {"error": {"message": "no"}}', "application/octet-stream")),
    "a page for a sound": ("audio", audio(b"<html>", "text/html")),
    "events called octets": ("audio", audio(b'event: x\ndata: {"x": 1}\n\n', "application/octet-stream")),
    "a sound as events": ("audio", audio(b"data: {}\n\n", "text/event-stream")),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_answer_is_made_up_for_by_the_next_channel(
    stage: Stage, customer: Customer, name: str
) -> None:
    generate(Customer(stage.relay, stage.replica, f"warm up {name}", "1.00"), "crossing")
    kind, stage.odd = ODD[name]
    if kind == "images":
        (image,) = generate(customer, "crossing").parse().data
        assert base64.b64decode(image.b64_json) == media.picture(f"{PROMPT}\n0")
        price = PIECE
    else:
        assert speak(customer, "crossing").parse().content == media.sound(SAID, "mp3")
        price = len(SAID) * CHARACTER
    assert customer.spent() == price
    (first, second) = outcomes(customer)
    assert (first != "ok", second) == (True, "ok")


@pytest.mark.parametrize(
    "fault", [{"reset": True}, {"instead": "cut"}, {"status": 429}, {"instead": "empty"}, {"gzip": True}]
)
@pytest.mark.parametrize("kind", ["images", "audio"])
def test_faults_of_the_only_channel(
    stage: Stage, customer: Customer, kind: str, fault: dict[str, Any]
) -> None:
    stage.provider.control(**fault)
    make = partial(generate, customer, "pieces") if kind == "images" else partial(speak, customer)
    if "gzip" in fault:
        make()
        assert customer.spent() > 0
        return
    with pytest.raises(openai.APIStatusError) as caught:
        make()
    assert caught.value.status_code == (503 if "status" in fault else 502)
    assert customer.spent() == 0
    stage.provider.control()
    make()


def test_octets_with_parameters_pass(stage: Stage, customer: Customer) -> None:
    stage.odd = audio(b"\0\1" * 50, "audio/L16;rate=24000; channels=1")
    raw = speak(customer, "crossing")
    assert raw.headers["content-type"] == "audio/L16;rate=24000; channels=1"
    assert raw.parse().content == b"\0\1" * 50
    stage.odd = audio(b"{ and no JSON", "application/octet-stream")
    assert speak(customer, "crossing").parse().content == b"{ and no JSON"
    sent = json.loads(stage.asked[-1].body)
    assert sent == {"model": "theirs", "input": SAID, "voice": "alloy"}


# ---------------------------------------------------------------------- plain text

VLLM = b"".join(
    b'data: {"object": "transcription.chunk", "choices": [{"delta": {"content": "%b"}}]}\n\n' % word
    for word in (b"Hi", b", there.")
)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
@pytest.mark.parametrize("shape", media.TEXTS)
@pytest.mark.parametrize("make", [transcribe, translate])
def test_transcripts_that_come_as_plain_text_by_the_duration(
    stage: Stage, customer: Customer, make: Any, shape: str
) -> None:
    raw = make(customer, "plain", response_format=shape)
    assert raw.headers["content-type"] == "text/plain; charset=utf-8"
    assert raw.content == media.transcript(HEARD_TEXT, len(SOUND) / media.BYTES_A_SECOND, shape, None)
    assert raw.parse() == raw.text  # the SDK gives the text as it came
    last = round(len(SOUND) / media.BYTES_A_SECOND, 2) * 1000
    record = customer.record()
    assert record["meters"] == {"ms": -(-len(SOUND) // 16) if shape == "text" else last}
    assert record["charge"] == customer.spent() == record["meters"]["ms"] * MILLISECOND


LONG = "Hello, 東京! Here --> there, 5 < 6. " + "And so on and on and on. " * 9
MAKES = {"transcription": transcribe, "translation": translate}


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
@pytest.mark.parametrize("shape", media.TEXTS)
@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("said", [HEARD_TEXT, LONG.strip()], ids=["short", "long"])
def test_plain_text_is_the_providers_own_and_paid_by_the_duration_that_it_books(
    stage: Stage, customer: Customer, make: str, shape: str, said: str
) -> None:
    stage.provider.control(text=said)
    raw = MAKES[make](customer, "whole", response_format=shape)
    theirs = MAKES[make](at_the_provider(stage, customer), "whisper-theirs", response_format=shape)
    assert raw.content == theirs.content
    assert raw.headers["content-type"] == theirs.headers["content-type"]
    assert raw.parse() == raw.text
    record, bill = customer.record(), booked(stage, raw)
    assert (record["meters"], record["abort_rule"]) == ({"ms": bill["seconds"] * 1000}, None)
    assert record["charge"] == customer.spent() == bill["seconds"] * 1000 * MILLISECOND


@pytest.mark.parametrize("shape", ["text", "srt"])
def test_a_forged_header_makes_no_plain_text_cheaper(stage: Stage, customer: Customer, shape: str) -> None:
    forged = flac(44_100)  # one second, of ten
    raw = transcribe(customer, "whole", file=("a.flac", forged), response_format=shape)
    bill = booked(stage, raw)
    assert bill["seconds"] > 10
    assert customer.record()["meters"] == {"ms": bill["seconds"] * 1000}


def test_plain_text_is_the_providers_own_and_paid_by_the_tokens_that_it_books(
    stage: Stage, customer: Customer
) -> None:
    raw = transcribe(customer, "heard", response_format="text")
    theirs = transcribe(at_the_provider(stage, customer), "gpt-theirs", response_format="text")
    assert raw.content == theirs.content == f"{HEARD_TEXT}\n".encode()
    assert raw.headers["content-type"] == theirs.headers["content-type"]
    bill, record = booked(stage, raw), customer.record()
    assert record["meters"] == {"in_audio": bill["input"], "out_text": bill["output"]}
    assert record["charge"] == customer.spent() == bill["input"] * HEARD + bill["output"] * WRITTEN
    assert record["abort_rule"] is None


def test_usage_of_plain_text_that_cannot_be_is_not_believed(stage: Stage, customer: Customer) -> None:
    stage.provider.control(told_usage={"type": "tokens", "input_tokens": 10**6, "output_tokens": 5})
    transcribe(customer, "heard", response_format="text")
    # Counted: 128 kbit/s, 10 tokens a second, and a token for four characters.
    meters = {"in_audio": -(-len(SOUND) * 10 // 16_000), "out_text": -(-len(HEARD_TEXT) // 4)}
    assert customer.record()["meters"] == meters


@pytest.mark.parametrize("shape", ["srt", "vtt"])
def test_subtitles_that_a_model_does_not_have_are_refused_as_the_provider_does(
    stage: Stage, customer: Customer, shape: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="Use 'json' or 'text' instead") as caught:
        transcribe(customer, "heard", response_format=shape)
    assert (caught.value.param, customer.spent()) == ("response_format", 0)


def test_times_of_words_have_no_place_in_plain_text(stage: Stage, customer: Customer) -> None:
    raw = transcribe(customer, "whole", response_format="srt", timestamp_granularities=["word"])
    assert raw.headers["x-relay-left-out"] == "timestamp_granularities[]"
    assert raw.content == media.transcript(HEARD_TEXT, len(SOUND) / media.BYTES_A_SECOND, "srt", None)


@pytest.mark.parametrize("model", ["seconds", "whole", "plain"])
@pytest.mark.parametrize("shape", ["srt", "vtt", "text"])
@pytest.mark.parametrize("fault", ["html", "empty", "object", "null", "cut"])
def test_what_is_no_plain_text_costs_nothing(
    stage: Stage, customer: Customer, model: str, shape: str, fault: str
) -> None:
    stage.provider.control(instead=fault)
    with pytest.raises(openai.APIStatusError) as caught:
        transcribe(customer, model, response_format=shape)
    assert (caught.value.status_code, customer.spent()) == (502, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_events_that_are_called_plain_text_are_none(stage: Stage, customer: Customer, stream: bool) -> None:
    generate(Customer(stage.relay, stage.replica, f"warm up {stream}", "1.00"), "crossing")
    stage.odd = json_answer(VLLM, content_type="text/plain; charset=utf-8")
    raw = transcribe(customer, "crossing", response_format="text", stream=stream)
    assert HEARD_TEXT in (events_of(raw)[-1]["text"] if stream else raw.text)
    assert outcomes(customer) == ["bad_answer", "ok"]


def test_plain_text_that_one_channel_fails_comes_from_the_next(stage: Stage, customer: Customer) -> None:
    stage.odd = json_answer(b"upstream connect error", content_type="text/plain")
    assert transcribe(customer, "crossing", response_format="vtt").text.startswith("WEBVTT")
    assert outcomes(customer) == ["bad_answer", "ok"]


# ---------------------------------------------------------------------- events


@dataclass(frozen=True)
class Streamed:
    """An API that streams. ``make`` gives the SDK's response; ``price``: the model.

    ``begun``: the meters of a stream of which a part was delivered, whatever happens then.
    """

    make: Callable[..., Any]
    price: str
    begun: Mapping[str, int]


def speak_events(customer: Customer, model: str, **more: Any) -> Any:
    return speak(customer, model, stream_format="sse", **more)


def draw(customer: Customer, model: str, **more: Any) -> Any:
    return generate(customer, model, **{"stream": True, "partial_images": 2} | more)


def redraw(customer: Customer, model: str, **more: Any) -> Any:
    return edit(customer, model, **{"stream": True, "partial_images": 2} | more)


def listen(customer: Customer, model: str, **more: Any) -> Any:
    return transcribe(customer, model, stream=True, **more)


LENGTH = -(-len(SOUND) // 16)
STREAMS = {
    "images": Streamed(draw, "pieces", {"image": 1}),
    "images_by_tokens": Streamed(draw, "tokens", {"in_text": 5 + 1, "out_image": 1056}),
    "edits": Streamed(redraw, "pieces", {"image": 1}),
    "speech": Streamed(speak_events, "voice", {"char": len(SAID)}),
    "speech_by_tokens": Streamed(speak_events, "spoken", {"in_text": 8, "out_audio": 1}),
    "transcripts": Streamed(listen, "seconds", {"ms": LENGTH}),
    "transcripts_by_tokens": Streamed(listen, "heard", {"in_audio": 65, "out_text": 2}),
}


def events_of(raw: Any) -> list[dict[str, Any]]:
    """The events of a stream, decoded; fails of what is no event."""
    assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = raw.http_response.read().decode().split("\n\n")
    return [
        json.loads(line.removeprefix("data: "))
        for block in blocks
        for line in block.split("\n")
        if line.startswith("data: ")
    ]


def settled(stage: Stage, customer: Customer) -> None:
    """No hold is left, nor the place of the one call that the key may make at a time."""
    assert stage.relay.balance(customer.account)[1] == 0
    stage.provider.control()
    assert generate(customer, "pieces").parse().data


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("usage", [True, False], ids=["usage", "no_usage"])
@pytest.mark.parametrize("pieces", [0, 7])
def test_streams_pass_untouched_and_cost_what_the_provider_books(
    stage: Stage, customer: Customer, name: str, usage: bool, pieces: int
) -> None:
    api = STREAMS[name]
    stage.provider.control(omit_usage=not usage, ping_every=1, bytes_per_write=pieces)
    raw = api.make(customer, api.price)
    events = events_of(raw)
    assert [("usage" in event) for event in events] == [False] * (len(events) - 1) + [usage]
    bill, record = booked(stage, raw), customer.record()
    assert record["charge"] == customer.spent()
    expected = {
        "images": {"image": bill.get("images")},
        "edits": {"image": bill.get("images")},
        "speech": {"char": bill.get("characters")},
        "speech_by_tokens": {"in_text": bill["input"], "out_audio": bill["output"]},
        "images_by_tokens": {"in_text": bill["input"], "out_image": bill["output"]},
        "transcripts": {"ms": bill.get("seconds", 0) * 1000},
        "transcripts_by_tokens": {"in_audio": bill["input"], "out_text": bill["output"]},
    }[name]
    counted = {
        "images_by_tokens": api.begun,
        "speech_by_tokens": api.begun,
        "transcripts": api.begun,
        "transcripts_by_tokens": {"in_audio": 65, "out_text": bill["output"]},
    }
    assert record["meters"] == (expected if usage else counted.get(name, expected))
    settled(stage, customer)


def test_the_sdk_reads_images_as_they_are_made(stage: Stage, customer: Customer) -> None:
    stream = customer.sdk.images.generate(
        model="tokens", prompt=PROMPT, n=2, stream=True, partial_images=1, quality="low"
    )
    events = list(stream)
    kinds = ["image_generation.partial_image", "image_generation.completed"] * 2
    assert [event.type for event in events] == kinds
    made = [base64.b64decode(event.b64_json) for event in events]
    first, second = (media.picture(f"{PROMPT}\n{index}") for index in range(2))
    assert made == [first, first, second, second]
    assert customer.record()["meters"] == {"in_text": 5, "out_image": 2 * (272 + 100)}
    (only,) = stage.provider.calls(stream.response.headers["x-request-id"])
    assert (only["bill"]["output"], only["stream"], only["complete"]) == (2 * 372, 1, 1)


def test_the_sdk_reads_edits_as_they_are_made(customer: Customer) -> None:
    image = ("a.png", media.picture("a"), "image/png")
    stream = customer.sdk.images.edit(model="pieces", prompt=PROMPT, image=image, stream=True)
    (only,) = list(stream)
    assert (only.type, base64.b64decode(only.b64_json)) == ("image_edit.completed", shown(media.picture("a")))
    assert customer.spent() == PIECE


def test_the_sdk_reads_a_transcript_as_it_is_made(customer: Customer) -> None:
    stream = customer.sdk.audio.transcriptions.create(model="heard", file=("a.mp3", SOUND), stream=True)
    events: list[Any] = list(stream)
    *deltas, done = events
    assert "".join(event.delta for event in deltas) == done.text == HEARD_TEXT
    assert done.usage.output_tokens == customer.record()["meters"]["out_text"]


def test_a_sound_is_read_from_its_events(customer: Customer) -> None:
    *parts, done = events_of(speak_events(customer, "voice", response_format="wav"))
    assert b"".join(base64.b64decode(part["audio"]) for part in parts) == media.sound(SAID, "wav")
    assert done["type"] == "speech.audio.done"
    assert customer.record()["raw_usage"]["provider"] == done["usage"]


def test_an_image_of_16_megabytes_passes_as_an_event(stage: Stage, customer: Customer) -> None:
    stage.provider.control(media_bytes=12 << 20)
    preview, done = events_of(draw(customer, "pieces", partial_images=1))
    assert preview["b64_json"] == done["b64_json"]
    assert base64.b64decode(done["b64_json"]) == media.picture(f"{PROMPT}\n0", 12 << 20)
    assert customer.spent() == PIECE


def test_a_stream_without_previews_is_an_image(stage: Stage, customer: Customer) -> None:
    (only,) = events_of(draw(customer, "pieces", partial_images=0))
    assert only["type"] == "image_generation.completed"
    assert customer.spent() == PIECE


FAULTS: dict[str, dict[str, Any]] = {
    "truncate": {"truncate_after_chunks": 1},
    "end": {"end_after_chunks": 1},
    "error": {
        "error_after_chunks": 1,
        "error_message": f"broken, of {PROVIDER_KEY}",
    },
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("fault", FAULTS)
def test_of_a_stream_that_its_provider_breaks_what_was_delivered_is_paid(
    stage: Stage, customer: Customer, name: str, fault: str
) -> None:
    api = STREAMS[name]
    stage.provider.control(**FAULTS[fault])
    raw = api.make(customer, api.price)
    *_, last = events_of(raw)
    assert last["error"]["message"]
    assert PROVIDER_KEY not in raw.text
    record = customer.record()
    assert record["meters"] == dict(api.begun)
    assert record["charge"] == customer.spent()
    assert record["abort_rule"] == "bill what was delivered"
    assert record["outcome"] == ("provider_error" if fault == "error" else "truncated")
    (only,) = stage.provider.calls(raw.headers["x-request-id"])
    assert only["complete"] == 0
    settled(stage, customer)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_stream_that_breaks_before_its_first_part_costs_nothing(
    stage: Stage, customer: Customer, name: str, fault: str
) -> None:
    api = STREAMS[name]
    at_first: dict[str, Any] = {name: 0 for name in FAULTS[fault] if name != "error_message"}
    stage.provider.control(**at_first)
    with pytest.raises(openai.APIStatusError) as caught:
        api.make(customer, api.price)
    assert caught.value.status_code in (502, 503)
    assert customer.spent() == 0


@pytest.mark.parametrize("name", STREAMS)
def test_a_customer_that_leaves_pays_what_was_delivered(stage: Stage, customer: Customer, name: str) -> None:
    api = STREAMS[name]
    stage.provider.control(quiet_after_chunks=1)
    with pytest.raises(Exception, match="timed out"):
        events_of(api.make(leaving(customer), api.price))
    eventually(lambda: stage.relay.usage(customer.account))
    record = customer.record()
    assert (record["outcome"], record["meters"]) == ("client_gone", dict(api.begun))
    assert record["charge"] == customer.spent()
    settled(stage, customer)


@pytest.mark.parametrize("name", STREAMS)
def test_a_customer_that_leaves_before_the_first_part_pays_nothing(
    stage: Stage, customer: Customer, name: str
) -> None:
    api = STREAMS[name]
    stage.provider.control(quiet_after_chunks=0)
    with pytest.raises(openai.APITimeoutError):
        api.make(leaving(customer), api.price)
    assert customer.spent() == 0
    settled(stage, customer)


@pytest.mark.parametrize("name", ["images", "speech", "transcripts"])
def test_pings_pass_while_a_provider_is_quiet(stage: Stage, customer: Customer, name: str) -> None:
    api = STREAMS[name]
    stage.provider.control(latency_ms=5000)
    raw = api.make(customer, api.price)
    *_, last = events_of(raw)
    assert last["type"].endswith((".completed", ".done"))
    assert raw.http_response.text.startswith(": ping\n\n")
    assert customer.spent() > 0


def test_a_failure_after_pings_is_an_error_event_and_costs_nothing(stage: Stage, customer: Customer) -> None:
    stage.provider.control(latency_ms=5000, status=500)
    (only,) = events_of(draw(customer, "pieces"))
    assert only["error"]["code"] == "provider_error"
    assert customer.spent() == 0


def test_a_stream_that_a_model_does_not_have_is_one_event(stage: Stage, customer: Customer) -> None:
    raw = listen(customer, "whole", response_format="srt")
    (done,) = events_of(raw)
    seconds = len(SOUND) / media.BYTES_A_SECOND
    assert done["text"].encode() == media.transcript(HEARD_TEXT, seconds, "srt", None)
    stream = customer.sdk.audio.transcriptions.create(model="whole", file=("a", SOUND), stream=True)
    (only,) = list(stream)
    assert only.type == "transcript.text.done"
    assert only.text == HEARD_TEXT
    paid = [record["meters"]["ms"] for record in stage.relay.usage(customer.account)]
    assert paid == [booked(stage, raw)["seconds"] * 1000] * 2


@pytest.mark.parametrize("shape", ["verbose_json", "srt", "vtt"])
def test_a_duration_that_is_told_is_paid_in_an_event_too(
    stage: Stage, customer: Customer, shape: str
) -> None:
    stage.provider.control(omit_usage=True)
    raw = listen(customer, "whole", response_format=shape)
    (done,) = events_of(raw)
    assert HEARD_TEXT in done["text"]
    assert customer.record()["meters"] == {"ms": booked(stage, raw)["ms"]}


@pytest.mark.parametrize("name", ["images", "speech", "transcripts"])
@pytest.mark.parametrize("fault", ["html", "text", "empty", "object", "null", "cut"])
def test_what_is_no_stream_costs_nothing(stage: Stage, customer: Customer, name: str, fault: str) -> None:
    api = STREAMS[name]
    stage.provider.control(instead=fault)
    with pytest.raises(openai.APIStatusError) as caught:
        api.make(customer, api.price)
    assert (caught.value.status_code, customer.spent()) == (502, 0)


@pytest.mark.parametrize("name", ["images", "speech", "transcripts"])
def test_a_stream_that_one_channel_fails_comes_from_the_next(
    stage: Stage, customer: Customer, name: str
) -> None:
    generate(customer, "crossing")  # which the odd one answers, so that it is asked again
    stage.odd = json_answer(b": hello\n\n", content_type="text/event-stream")
    raw = STREAMS[name].make(customer, "crossing")
    assert events_of(raw)[-1]["type"].endswith((".completed", ".done"))
    customer.balance()
    called = raw.headers["x-request-id"]
    (record,) = [row for row in stage.relay.usage(customer.account) if row["request_id"] == called]
    assert [attempt["outcome"] for attempt in record["attempts"]] == ["bad_answer", "ok"]


@pytest.mark.parametrize("name", ["images", "speech", "transcripts"])
def test_events_without_a_type_are_not_delivered_and_the_next_channel_is_asked(
    stage: Stage, customer: Customer, name: str
) -> None:
    generate(customer, "crossing")  # which the odd one answers, so that it is asked again
    stage.odd = json_answer(VLLM + b"data: [DONE]\n\n", content_type="text/event-stream")
    raw = STREAMS[name].make(customer, "crossing")
    assert events_of(raw)[-1]["type"].endswith((".completed", ".done"))
    assert "transcription.chunk" not in raw.text
    customer.balance()
    called = raw.headers["x-request-id"]
    (record,) = [row for row in stage.relay.usage(customer.account) if row["request_id"] == called]
    assert [attempt["outcome"] for attempt in record["attempts"]] == ["bad_answer", "ok"]


def test_events_without_a_type_after_a_part_end_the_stream_which_is_paid(
    stage: Stage, customer: Customer
) -> None:
    generate(Customer(stage.relay, stage.replica, "warm up untyped", "1.00"), "crossing")
    begin = b'data: {"type": "transcript.text.delta", "delta": "Hello."}\n\n'
    stage.odd = json_answer(begin + VLLM, content_type="text/event-stream")
    raw = listen(customer, "crossing")
    first, last = events_of(raw)
    assert (first["delta"], "error" in last) == ("Hello.", True)
    assert customer.record()["meters"] == {"ms": LENGTH}
    assert customer.spent() == LENGTH * MILLISECOND


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("path", "fields", "place"),
    [
        ("images/generations", {"prompt": "x", "stream": "true"}, "stream"),
        *(("images/generations", {"prompt": "x", "n": n}, "n") for n in (0, 11, 1.5, "2")),
        *(("images/generations", fields, "prompt") for fields in ({}, {"prompt": ""}, {"prompt": ["x"]})),
        ("audio/speech", {"input": "x", "stream_format": 5}, "stream_format"),
        ("audio/speech", {"input": "x", "stream": True}, "stream"),
        ("audio/speech", {"input": "x", "instructions": 5}, "instructions"),
        *(("audio/speech", fields, "input") for fields in ({}, {"input": ""}, {"input": ["x"]})),
    ],
)
def test_errors_name_the_field(
    stage: Stage, customer: Customer, path: str, fields: dict[str, Any], place: str
) -> None:
    calls = len(stage.provider.calls())
    answer = post(customer, path, {"model": "pieces", "voice": "alloy"} | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, place), answer.text
    assert (customer.spent(), len(stage.provider.calls())) == (0, calls)


@pytest.mark.parametrize("model", ["text", "pieces", "voice"])
def test_a_model_without_a_fitting_price_is_refused_before_the_hold(
    stage: Stage, customer: Customer, model: str
) -> None:
    calls = len(stage.provider.calls())
    if model != "pieces":
        with pytest.raises(openai.NotFoundError, match="image has no price"):
            generate(customer, model)
    if model != "voice":
        with pytest.raises(openai.NotFoundError, match="char has no price"):
            speak(customer, model)
    assert (customer.spent(), len(stage.provider.calls())) == (0, calls)


def test_a_model_whose_providers_have_no_such_api_is_refused(customer: Customer) -> None:
    for make in (generate, speak, edit, transcribe):
        with pytest.raises(openai.BadRequestError) as caught:
            make(customer, "claude")
        assert (caught.value.code, caught.value.param) == ("unsupported_endpoint", "model")


def test_the_providers_own_refusal_is_the_customers(customer: Customer) -> None:
    with pytest.raises(openai.BadRequestError, match="Supported values are: 'transparent'") as caught:
        generate(customer, "pieces", background="green")
    assert caught.value.param == "background"
    assert customer.spent() == 0


def test_limits_on_tokens_bind_where_tokens_are_paid(stage: Stage, customer: Customer) -> None:
    few = Customer(stage.relay, stage.replica, "few tokens", "10.00", "--tpm", "1500")
    assert generate(few, "pieces", n=10).parse().data
    assert speak(few).parse().content
    with pytest.raises(openai.BadRequestError) as caught:
        generate(few, "tokens")
    assert (caught.value.code, caught.value.param) == ("tokens_above_limit", "n")
    assert "16384 of its answer" in str(caught.value)
    assert "lower n" in str(caught.value)
    raw = generate(few, "bounded", quality="low")
    bill = booked(stage, raw)
    left = int(raw.headers["x-ratelimit-remaining-tokens"])
    assert left < 1500 - 1000  # while it ran it had reserved what it could use
    # Settled, it counts what it used: another of the same size has a place.
    assert bill["output"] == 272
    generate(few, "bounded", quality="low")
    with pytest.raises(openai.BadRequestError):
        generate(few, "bounded", n=2)


def test_the_books_are_the_charges(stage: Stage) -> None:
    for proof in ("recompute", "conserve"):
        assert stage.relay.command("audit", proof)["ok"]
