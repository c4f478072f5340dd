"""What a provider can do wrong on the way of a call, with the exact charge of each."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.contract.conftest import Database
from tests.contract.fuzz.raw_provider import (
    Answer,
    head_of,
    json_answer,
    stream_answer,
)
from tests.contract.relay_rig import Customer, asks, eventually, price
from tests.contract.two_providers import Channel, Stage, running_stage

KEY = "sk-planted-7Hq2XcV9pLmN4tRz8KdWf3Gb"
MODEL = "sold-name"  # the customer's name of what the provider calls PROVIDER_MODEL
TWO = "two-channels"
PROVIDER_MODEL = "provider-model-7b-0613"
TEXT = "Hello world"
COUNTED_PROMPT = 10  # asks(): 4 for the message, 22 characters at 4 a token
COUNTED_TEXT = 3
CHARGE = 75_000  # of usage 10/5
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
MAX_TOKENS = 5_000
TOTAL_SECONDS = 20.0
DONE = b"data: [DONE]\n\n"
MIB = 1 << 20


@pytest.fixture(scope="module")
def stage(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """MODEL is the first provider's, TWO is both's."""
    settings = {
        "RELAY_PROVIDER_IDLE_SECONDS": "10",
        "RELAY_PROVIDER_FIRST_BYTE_SECONDS": "10",
        "RELAY_PROVIDER_TIMEOUT_SECONDS": str(TOTAL_SECONDS),
    }
    first = Channel("openai", f"{MODEL}={PROVIDER_MODEL},{TWO}={PROVIDER_MODEL}", "openai")
    second = Channel("openai", f"{TWO}={PROVIDER_MODEL}", "openai")
    prices: dict[str, tuple[str, ...]] = dict.fromkeys((MODEL, TWO), ())
    directory = tmp_path_factory.mktemp("faults")
    with running_stage(module_database, directory, first, second, KEY, prices, settings) as made:
        yield made


class Again(Customer):
    """A customer of many tests: what it spent, and its record, are those since the last ``begin``."""

    def begin(self) -> None:
        """A test begins."""
        self.funds = self.balance()
        self.known = {record["request_id"] for record in self._newest()}

    def record(self) -> dict[str, Any]:
        """The only record since then."""
        (only,) = [record for record in self._newest() if record["request_id"] not in self.known]
        return only

    def _newest(self) -> list[dict[str, Any]]:
        # A test that asks for its only record makes no more calls than this.
        return self.relay.usage(self.account, newest=20)


@pytest.fixture(scope="module")
def again(stage: Stage) -> Again:
    return Again(stage.relay, stage.replica, "faults", "500.00")


@pytest.fixture
def customer(stage: Stage, again: Again) -> Customer:
    stage.requests.clear()
    stage.says(stream_answer(*ordinary()), by="second")
    again.begin()
    return again


# ---------------------------------------------------------------------- what a provider sends


def event(value: Any) -> bytes:
    """An event with JSON data."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chunk(choices: Any = None, **more: Any) -> bytes:
    """A chunk as an event."""
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": PROVIDER_MODEL}
    return event(head | {"choices": [] if choices is None else choices} | more)


def text(content: Any, *, finish: str | None = None, **more: Any) -> bytes:
    """A chunk with content."""
    return chunk([{"index": 0, "delta": {"content": content}, "finish_reason": finish}], **more)


def usage_chunk(prompt: int = 10, completion: int = 5, **more: Any) -> bytes:
    """The chunk of usage alone."""
    told = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return chunk(usage=told | more)


FINISH = chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])


def ordinary() -> list[bytes]:
    """A stream as it should be."""
    return [text("Hello"), text(" world"), FINISH, usage_chunk(), DONE]


def whole(content: Any = TEXT, **more: Any) -> dict[str, Any]:
    """A whole answer as it should be, with other fields put over it."""
    message = {"role": "assistant", "content": content}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": PROVIDER_MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": USAGE,
    } | more


def whole_answer(value: Any) -> Answer:
    """It, sent."""
    return json_answer(value if isinstance(value, bytes) else json.dumps(value).encode())


# ---------------------------------------------------------------------- what the customer does


def ask(customer: Customer, model: str = MODEL, **more: Any) -> Any:
    """A whole answer by the SDK."""
    return customer.sdk.chat.completions.create(
        model=model, messages=asks(), **{"max_tokens": MAX_TOKENS} | more
    )


def listen(customer: Customer, model: str = MODEL, **more: Any) -> list[Any]:
    """The chunks of a stream by the SDK."""
    return list(ask(customer, model, stream=True, **more))


def heard(chunks: Sequence[Any]) -> str:
    """The text of a stream, of whatever has one."""
    listed = [one.choices for one in chunks if isinstance(one.choices, list)]
    deltas = [getattr(choice, "delta", None) for choices in listed for choice in choices]
    return "".join(getattr(delta, "content", None) or "" for delta in deltas)


# ---------------------------------------------------------------------- usage is not the end

FIRST = usage_chunk(9, 1)
PLACES = {
    "first, and again": [FIRST, text("Hello"), text(" world"), FINISH, usage_chunk(), DONE],
    "first, with [DONE] only": [FIRST, text("Hello"), text(" world"), usage_chunk(), DONE],
    "on every chunk": [
        text("Hello", usage=USAGE | {"completion_tokens": 1, "total_tokens": 11}),
        text(" world", usage=USAGE | {"completion_tokens": 3, "total_tokens": 13}),
        chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=USAGE),
        DONE,
    ],
    "before the finish": [text("Hello"), text(" world"), usage_chunk(), FINISH, DONE],
    "amid the text": [text("Hello"), FIRST, text(" world"), FINISH, usage_chunk(), DONE],
    "twice at the end": [text("Hello"), text(" world"), FINISH, FIRST, usage_chunk(), DONE],
    "after [DONE]": [text("Hello"), text(" world"), FINISH, DONE, usage_chunk()],
}


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "not asked"])
@pytest.mark.parametrize("place", PLACES)
def test_usage_may_come_anywhere_and_the_last_one_counts(
    stage: Stage, customer: Customer, place: str, asked: bool
) -> None:
    stage.says(stream_answer(*PLACES[place]))
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = listen(customer, **options)
    assert heard(chunks) == TEXT
    assert customer.spent() == CHARGE
    assert asked or all(one.choices for one in chunks), "the chunk of usage is for who asked for it"


def test_text_flows_as_it_is_made_though_usage_came_first(stage: Stage, customer: Customer) -> None:
    stage.says(stream_answer(FIRST, text("Hello"), 2.0, text(" world"), FINISH, usage_chunk(), DONE))
    times = [time.monotonic() for one in ask(customer, stream=True) if heard([one])]
    assert times[1] - times[0] > 0.5
    assert customer.spent() == CHARGE


@pytest.mark.parametrize(
    ("opening", "filling"),
    [
        (FIRST, text("x" * 16_000)),
        (text("Hello") + FINISH, usage_chunk(x_padding="x" * 16_000)),
        (text("Hello") + FINISH + DONE, usage_chunk(x_padding="x" * 16_000)),
        (text("Hello") + FINISH, b": " + b"x" * 16_000 + b"\n\n"),
        (b"", chunk([{"index": 0, "delta": {"role": "assistant"}}], x_padding="x" * 16_000)),
    ],
    ids=["usage first", "usage for ever", "after [DONE]", "comments for ever", "nothing for ever"],
)
def test_memory_of_a_stream_is_bounded(
    stage: Stage, customer: Customer, opening: bytes, filling: bytes
) -> None:
    blocks = [filling * 16] * 240  # 60 MB
    stage.says(stream_answer(opening, *blocks, text("x"), FINISH, usage_chunk(), DONE))
    process = stage.replica.process.running
    assert process is not None
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak starts anew
    before = memory(process.pid, "VmRSS")
    body = {"model": MODEL, "messages": asks(), "stream": True, "max_tokens": MAX_TOKENS}
    with customer.post(body, stream=True) as answer:
        assert sum(len(block) for block in answer.iter_content(MIB)) > 0
    assert memory(process.pid, "VmHWM") - before < 40 * MIB
    assert customer.spent() > 0


def memory(pid: int, name: str) -> int:
    """Bytes of a process: VmRSS now, VmHWM at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


# ---------------------------------------------------------------------- figures

IMPOSSIBLE = {
    "millions": {"prompt_tokens": 675_947_905, "completion_tokens": 24_231_238},
    "2^64 - 1": {"prompt_tokens": 2**64 - 1, "completion_tokens": 5},
    "2^63": {"prompt_tokens": 10, "completion_tokens": 2**63},
    "10^30": {"prompt_tokens": 10**30, "completion_tokens": 10**30},
    "negative": {"prompt_tokens": -10, "completion_tokens": 5},
    "zero though there is text": {"prompt_tokens": 0, "completion_tokens": 0},
    "no answer though there is text": {"prompt_tokens": 10, "completion_tokens": 0},
    "text": {"prompt_tokens": "ten", "completion_tokens": "five"},
    "fractions": {"prompt_tokens": 10.5, "completion_tokens": 5.5},
    "null": {"prompt_tokens": None, "completion_tokens": None},
    "empty": {},
}
COUNTED = price(COUNTED_PROMPT, COUNTED_TEXT)


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_impossible_figures_are_counted_and_never_charged(
    stage: Stage, customer: Customer, kind: str, streamed: bool
) -> None:
    usage = IMPOSSIBLE[kind]
    stage.says(
        stream_answer(text(TEXT), FINISH, chunk(usage=usage), DONE)
        if streamed
        else whole_answer(whole(usage=usage))
    )
    if streamed:
        assert heard(listen(customer)) == TEXT
    else:
        assert ask(customer).choices[0].message.content == TEXT
    assert customer.spent() == COUNTED
    assert customer.record()["charge"] == COUNTED


@pytest.mark.parametrize(
    "answer",
    [
        stream_answer(chunk([{"index": 0, "delta": {"role": "assistant"}}]), FINISH, DONE),
        stream_answer(FINISH, DONE),
        whole_answer(whole("", usage=None)),
        whole_answer(whole(None, usage={})),
        whole_answer(whole(usage=None, choices=[])),
    ],
    ids=["role and finish", "finish", "empty text", "no text, empty usage", "no choices"],
)
def test_nothing_generated_and_no_usage_costs_nothing(
    stage: Stage, customer: Customer, answer: Answer
) -> None:
    stage.says(answer)
    body = {"model": MODEL, "messages": asks(), "stream": answer.writes[0][1].find(b"event-stream") > 0}
    assert customer.post(body).status_code in (200, 502)
    assert customer.spent() == 0


def test_a_total_above_prompt_and_completion_bills_the_gap_as_output(
    stage: Stage, customer: Customer
) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 45}
    stage.says(whole_answer(whole(usage=usage)), stream_answer(text(TEXT), FINISH, chunk(usage=usage), DONE))
    ask(customer)
    assert customer.spent() == price(10, 35)
    listen(customer)
    assert customer.spent() == 2 * price(10, 35)


# ---------------------------------------------------------------------- strict only where it matters


def joined(*events: bytes, by: bytes = b"\n") -> bytes:
    """Events with other line ends."""
    return b"".join(events).replace(b"\n", by)


def in_lines(one: bytes) -> bytes:
    """An event with its JSON in several lines."""
    lines = json.dumps(json.loads(one[6:]), indent=1).encode().split(b"\n")
    return b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"


TOLERATED: dict[str, list[bytes]] = {
    "choices null": [text("Hello"), event({"choices": None}), *ordinary()[1:]],
    "choices of another type": [event({"choices": "x", "id": "c"}), *ordinary()],
    "choices of numbers": [event({"choices": [5, None]}), *ordinary()],
    "a delta of another type": [chunk([{"index": 0, "delta": "x"}, {"delta": None}]), *ordinary()],
    "an index of another type": [
        chunk([{"index": None, "delta": {"content": "Hello"}}]),
        *ordinary()[1:],
    ],
    "usage null": [text("Hello", usage=None), *ordinary()[1:]],
    "usage of another type": [text("Hello", usage="soon"), *ordinary()[1:]],
    "usage a list": [text("Hello", usage=[1]), *ordinary()[1:]],
    "error empty text": [text("Hello", error=""), *ordinary()[1:]],
    "error null": [text("Hello", error=None), *ordinary()[1:]],
    "error empty object": [text("Hello", error={}), *ordinary()[1:]],
    "error false": [text("Hello", error=False), *ordinary()[1:]],
    "no last blank line": [*ordinary()[:-1], b"data: [DONE]"],
    "no last blank line nor [DONE]": [*ordinary()[:-2], usage_chunk().rstrip()],
    "[DONE] with spaces": [*ordinary()[:-1], b"data: [DONE]  \n\n"],
    "no space after the colon": [one.replace(b"data: ", b"data:") for one in ordinary()],
    "CR": [joined(*ordinary(), by=b"\r")],
    "CRLF": [joined(*ordinary(), by=b"\r\n")],
    "mixed line ends": [
        joined(one, by=end) for one, end in zip(ordinary(), [b"\n", b"\r\n", b"\r"] * 2, strict=False)
    ],
    "mixed blank lines": [one[:-2] + b"\r\n\n" for one in ordinary()],
    "CRLF cut in two": [
        part for one in ordinary() for part in (one[:-2] + b"\r\n\r", b"\n" if one is not DONE else b"")
    ],
    "finish and close without [DONE]": ordinary()[:-1],
    "heartbeats": [part for one in ordinary() for part in (b": PROCESSING\n\n", one, b":\n\n")],
    "fields and comments": [b": c\nid: 7\n" + text("Hello"), b"event: message\nretry: 5\n" + text(" world")]
    + [b"id:\n" + one for one in ordinary()[2:]],
    "a byte order mark": [b"\xef\xbb\xbf: first\n\n", *ordinary()],
    "data in lines": [*map(in_lines, ordinary()[:-1]), DONE],
    "NaN": [text("Hello").replace(b'"created": 1', b'"created": NaN'), *ordinary()[1:]],
    "a key twice": [text("Hello").replace(b'"id": "c1"', b'"id": "c0", "id": "c1"'), *ordinary()[1:]],
    "a byte at a time": [bytes([byte]) for one in ordinary() for byte in one],
}


@pytest.mark.parametrize("kind", TOLERATED)
def test_what_merely_passes_through_breaks_no_stream(stage: Stage, customer: Customer, kind: str) -> None:
    stage.says(stream_answer(*TOLERATED[kind]))
    assert heard(listen(customer)) == TEXT
    assert customer.spent() == CHARGE
    assert customer.record()["outcome"] == "ok"


def test_halves_of_an_emoji_in_two_chunks(stage: Stage, customer: Customer) -> None:
    stage.says(stream_answer(text("\ud83d"), text("\ude42"), FINISH, usage_chunk(), DONE))
    assert heard(listen(customer)) == "\ud83d\ude42"
    assert customer.spent() == CHARGE


@pytest.mark.parametrize(
    "more",
    [
        {"error": ""},
        {"error": {}},
        {"error": None},
        {"created": "yesterday", "id": None},
        {"system_fingerprint": [], "x_groq": {"id": 5}},
        {"choices": [{"message": {"content": TEXT, "tool_calls": None, "role": 7}, "index": "0"}]},
        {"choices": [{"message": {"content": TEXT}, "logprobs": 5, "finish_reason": None}, None]},
    ],
    ids=["error text", "error object", "error null", "odd heads", "unknown", "odd fields", "odd choices"],
)
def test_what_merely_passes_through_breaks_no_whole_answer(
    stage: Stage, customer: Customer, more: dict[str, Any]
) -> None:
    stage.says(whole_answer(whole(**more)))
    assert ask(customer).choices[0].message.content == TEXT
    assert customer.spent() == CHARGE


@pytest.mark.parametrize(
    "ending",
    [
        [event({"error": {"message": "boom", "code": 500}})],
        [b"event: error\n" + event({"error": "boom"})],
        [DONE, event({"error": {"message": "boom"}})],
        [b"data: {broken\n\n"],
        [b'data: {"choices": [{"delta": {"con'],
    ],
    ids=["error", "named error", "error after [DONE]", "broken event", "cut event"],
)
@pytest.mark.parametrize("clean", [True, False], ids=["closed", "cut"])
def test_a_complete_answer_is_never_overwritten(
    stage: Stage, customer: Customer, ending: list[bytes], clean: bool
) -> None:
    stage.says(stream_answer(*ordinary()[:-1], *ending, whole=clean))
    assert heard(listen(customer)) == TEXT
    assert customer.spent() == CHARGE
    assert customer.record()["outcome"] == "ok"


@pytest.mark.parametrize(
    ("parts", "seconds", "charge"),
    [
        (ordinary(), 9.0, CHARGE),
        (ordinary()[:-1], 9.0, CHARGE),
        ([*PLACES["on every chunk"][:-1]], 9.0, CHARGE),
        ([text(TEXT), FINISH], 19.0, COUNTED),
        ([text(TEXT, finish="stop")], 19.0, COUNTED),
    ],
    ids=["[DONE]", "usage", "usage on the finish", "finish", "finish with text"],
)
def test_a_complete_answer_ends_soon_though_the_provider_stays(
    stage: Stage, customer: Customer, parts: list[bytes], seconds: float, charge: int
) -> None:
    stage.says(stream_answer(*parts, then="hang"))
    began = time.monotonic()
    assert heard(listen(customer)) == TEXT
    assert time.monotonic() - began < seconds
    assert customer.spent() == charge
    assert customer.record()["outcome"] == "ok"


# ---------------------------------------------------------------------- success is decided by the body

PAGE = b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>"
NO_STREAM: dict[str, Answer] = {
    "a web page": json_answer(PAGE, content_type="text/html"),
    "a web page called a stream": json_answer(PAGE, content_type="text/event-stream"),
    "an error object": whole_answer({"error": {"message": "overloaded", "code": "server_error"}}),
    "an error event": stream_answer(event({"error": {"message": "overloaded"}})),
    "a named error event": stream_answer(b"event: error\n" + event({"error": "overloaded"})),
    "an error, then a stream": stream_answer(b"".join([event({"error": "overloaded"}), *ordinary()])),
    "a role, then an error": stream_answer(
        chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}}]), event({"error": "overloaded"})
    ),
    "comments, then an error": stream_answer(b": PROCESSING\n\n" * 3, event({"error": {"code": 502}})),
    "a break before text": stream_answer(
        chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}}]), whole=False
    ),
    "a break at once": stream_answer(b": PROCESSING\n\n", whole=False),
    "a clean end before text": stream_answer(chunk([{"index": 0, "delta": {"role": "assistant"}}])),
    "an empty body": stream_answer(),
    "plain text": json_answer(b"upstream request timeout", content_type="text/plain"),
    "broken JSON": stream_answer(b'data: {"choices": [{"delta"\n\n', text(TEXT), FINISH, DONE),
    "an unknown encoding": Answer(
        [(0, head_of(200, [("content-encoding", "br"), ("content-length", "4")]) + b"\x0b\x02\x80\x03")]
    ),
    "broken gzip": Answer(
        [(0, head_of(200, [("content-encoding", "gzip"), ("content-length", "9")]) + b"not gzip!")]
    ),
    "status 204": Answer([(0, head_of(204, []))], "close"),
}
NO_WHOLE: dict[str, Answer] = {
    "a web page": json_answer(PAGE, content_type="text/html"),
    "a web page called JSON": json_answer(PAGE),
    "an error object": whole_answer({"error": {"message": "overloaded", "code": "server_error"}}),
    "an error text": whole_answer({"error": "overloaded"}),
    "a bare message": whole_answer({"object": "error", "message": "overloaded", "code": 50_001}),
    "an empty object": whole_answer({}),
    "an empty body": json_answer(b""),
    "a list": whole_answer([1]),
    "null": whole_answer(None),
    "cut JSON": json_answer(json.dumps(whole()).encode()[:-9]),
    "a cut body": Answer([(0, head_of(200, [("content-length", "500")]) + b'{"choices":')], "close"),
    "an unknown encoding": NO_STREAM["an unknown encoding"],
    "broken gzip": NO_STREAM["broken gzip"],
    "status 204": NO_STREAM["status 204"],
}


@pytest.mark.parametrize("kind", NO_STREAM)
def test_no_stream_fails_over_while_nothing_was_sent(stage: Stage, customer: Customer, kind: str) -> None:
    stage.says(NO_STREAM[kind])
    failures = provider_errors(stage, "first")
    assert heard(listen(customer, TWO)) == TEXT
    assert stage.asked[-1] == "second"
    assert customer.spent() == CHARGE
    if "first" in stage.asked:  # it may be cooling after the cases before
        assert provider_errors(stage, "first") == failures + 1


@pytest.mark.parametrize("kind", NO_WHOLE)
def test_no_whole_answer_fails_over(stage: Stage, customer: Customer, kind: str) -> None:
    stage.says(NO_WHOLE[kind])
    stage.says(whole_answer(whole()), by="second")
    failures = provider_errors(stage, "first")
    assert ask(customer, TWO).choices[0].message.content == TEXT
    assert stage.asked[-1] == "second"
    assert customer.spent() == CHARGE
    if "first" in stage.asked:
        assert provider_errors(stage, "first") == failures + 1


@pytest.mark.parametrize("kind", NO_STREAM)
def test_no_stream_and_nobody_else_is_an_error_that_costs_nothing(
    stage: Stage, customer: Customer, kind: str
) -> None:
    stage.says(NO_STREAM[kind])
    with pytest.raises(openai.APIStatusError) as caught:
        listen(customer)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]
    assert caught.value.body["type"]
    assert customer.spent() == 0


@pytest.mark.parametrize("kind", NO_WHOLE)
def test_no_whole_answer_and_nobody_else_is_an_error_that_costs_nothing(
    stage: Stage, customer: Customer, kind: str
) -> None:
    stage.says(NO_WHOLE[kind])
    with pytest.raises(openai.APIStatusError) as caught:
        ask(customer)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]
    assert customer.spent() == 0


def provider_errors(stage: Stage, channel: str) -> float:
    """Failures of a channel that the relay counted, of all classes."""
    exposition = requests.get(f"{stage.replica.metrics_url}/metrics", timeout=60).text
    lines = [line for line in exposition.splitlines() if line.startswith("relay_provider_errors_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if f'channel="{channel}"' in line)


@pytest.mark.parametrize("status", [201, 202, 203, 206])
def test_any_2xx_with_an_answer_is_an_answer(stage: Stage, customer: Customer, status: int) -> None:
    stage.says(
        json_answer(json.dumps(whole()).encode(), status=status),
        stream_answer(*ordinary(), status=status),
    )
    assert ask(customer).choices[0].message.content == TEXT
    assert heard(listen(customer)) == TEXT
    assert customer.spent() == 2 * CHARGE


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_encoded_answers_are_decoded(stage: Stage, customer: Customer, encoding: str) -> None:
    def encoded(body: bytes, content_type: str) -> Answer:
        packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
        head = head_of(
            200,
            [
                ("content-type", content_type),
                ("content-encoding", encoding),
                ("content-length", str(len(packed))),
            ],
        )
        third = len(packed) // 3
        return Answer([(0, head), (0.01, packed[:third]), (0.01, packed[third:])])

    stage.says(
        encoded(json.dumps(whole()).encode(), "application/json"),
        encoded(b"".join(ordinary()), "text/event-stream"),
    )
    assert ask(customer).choices[0].message.content == TEXT
    assert heard(listen(customer)) == TEXT
    assert customer.spent() == 2 * CHARGE


FLAGGED: list[dict[str, Any]] = [
    {"error": {"message": "Flagged by moderation.", "code": "content_policy_violation", "type": "x"}},
    {"error": {"message": "Your input was flagged as inappropriate", "metadata": {"reasons": ["v"]}}},
    {"error": {"code": "content_filter", "message": "The prompt triggered the content policy"}},
]


def test_moderation_cools_no_channel(stage: Stage, customer: Customer) -> None:
    time.sleep(5.5)  # whatever cooled before has rested
    for said in FLAGGED:
        stage.says(json_answer(json.dumps(said).encode(), status=403))
        for _ in range(4):
            with pytest.raises(openai.PermissionDeniedError) as caught:
                ask(customer, TWO)
            assert said["error"]["message"] in str(caught.value)
    stage.says(whole_answer(whole()))
    ask(customer, TWO)
    assert stage.asked == ["first"] * 13
    assert customer.spent() == CHARGE


# ---------------------------------------------------------------------- the customer does not read


def test_a_customer_that_does_not_read_is_cut_and_charged(stage: Stage) -> None:
    customer = Customer(stage.relay, stage.replica, "stalled", "10.00", "--concurrency", "1")
    stage.says(stream_answer(*[text("word " * 3_000)] * 2_000, FINISH, DONE))  # 30 MB
    body = json.dumps({"model": MODEL, "messages": asks(), "stream": True, "max_tokens": 100_000}).encode()
    port = int(stage.replica.url.rpartition(":")[2])
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {customer.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        time.sleep(1)
        assert customer.post({"model": MODEL, "messages": asks()}).status_code == 429
        stage.says(whole_answer(whole()))
        eventually(
            lambda: customer.post({"model": MODEL, "messages": asks(), "max_tokens": 10}).ok,
            TOTAL_SECONDS + 40,
        )
        records = stage.relay.usage(customer.account)
        charges = sorted(record["charge"] for record in records)
        assert charges[0] == CHARGE
        assert CHARGE < charges[1] <= price(200, 100_000), "what was delivered is charged"
    assert customer.spent() == sum(charges)


# ---------------------------------------------------------------------- no hold waits for the sweeper

DEEP = b'{"choices":' + b"[" * 5_000 + b"]" * 5_000 + b"}"
DEEP_FIELD = json.dumps(whole()).encode()[:-1] + b',"deep":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}"
UNSETTLING: dict[str, Any] = {
    "tool_calls 5": whole(choices=[{"message": {"content": TEXT, "tool_calls": 5}}]),
    "tool_calls of 5": whole(choices=[{"message": {"content": TEXT, "tool_calls": [5, None, {}]}}]),
    "a function of 5": whole(choices=[{"message": {"content": TEXT, "tool_calls": [{"function": 5}]}}]),
    "content 5": whole(choices=[{"message": {"content": 5}}]),
    "content of parts": whole(choices=[{"message": {"content": [{"type": "text", "text": 5}, None, 7]}}]),
    "message 5": whole(choices=[{"message": 5}]),
    "choices 5": whole(choices=5),
    "nested usage": whole(usage={"prompt_tokens": {"a": {"b": 1}}, "completion_tokens": [5]}),
    "details 5": whole(usage=USAGE | {"prompt_tokens_details": 5, "completion_tokens_details": "x"}),
    "infinite usage": json.dumps(whole()).replace('"prompt_tokens": 10', '"prompt_tokens": 1e999').encode(),
    "deep choices": DEEP,
    "a deep field": DEEP_FIELD,
    "half an emoji": json.dumps(whole("\ud83d")).encode(),
    "NUL": json.dumps(whole("\0", id="\0", usage=USAGE | {"\0": 1})).encode(),
    "not UTF-8": json.dumps(whole()).encode().replace(b"Hello", b"\xff\xfe"),
}


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", UNSETTLING)
def test_whatever_comes_no_hold_waits_for_the_sweeper(
    stage: Stage, customer: Customer, kind: str, streamed: bool
) -> None:
    value = UNSETTLING[kind]
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    if streamed:
        body = body.replace(b'"message"', b'"delta"')
        stage.says(stream_answer(text("Hello"), b"data: " + body + b"\n\n", FINISH, DONE))
    else:
        stage.says(whole_answer(body))
    answer = customer.post({"model": MODEL, "messages": asks(), "stream": streamed, "max_tokens": 100})
    assert answer.status_code in (200, 502)
    assert customer.spent() >= 0  # fails when anything is still held
    assert customer.record()["outcome"] not in ("swept", "internal_error")
    if streamed:
        assert customer.spent() > 0


# ---------------------------------------------------------------------- nothing leaks

ERRORS: dict[str, Any] = {
    "OpenAI's": {"error": {"message": f"Incorrect API key provided: {KEY}.", "type": "x", "code": "bad"}},
    "text": {"error": f"denied for Bearer {KEY}"},
    "nested": {"error": {"message": {"detail": f"key {KEY}"}, "param": KEY, "code": KEY}},
    "FastAPI's": {"detail": [{"loc": ["header", "authorization"], "msg": f"{KEY} is wrong"}]},
    "Google's": [{"error": {"code": 400, "message": f"API key {KEY} not valid", "status": "INVALID"}}],
    "a message": {"message": f"{KEY} has no quota", "object": "error"},
    "a key": {"error": {"message": "no", KEY: KEY}},
}


def as_escaped(data: bytes) -> bytes:
    """JSON in which the key is escaped."""
    return data.replace(KEY.encode(), "".join(f"\\u{ord(char):04x}" for char in KEY).encode())


@pytest.mark.parametrize("escaped", [False, True], ids=["plain", "escaped"])
@pytest.mark.parametrize("kind", ERRORS)
def test_the_providers_key_reaches_no_customer_and_no_log(
    stage: Stage, customer: Customer, kind: str, escaped: bool
) -> None:
    said = json.dumps(ERRORS[kind]).encode()
    said = as_escaped(said) if escaped else said
    told: list[requests.Response] = []
    for streamed in (True, False):
        body = {"model": MODEL, "messages": asks(), "stream": streamed, "max_tokens": 100}
        for status in (200, 400, 401, 500):
            stage.says(json_answer(said, status=status))
            told.append(customer.post(body))
    for before in ([], [text("Hello")], [text("Hello"), b": " + KEY.encode() + b"\n\n"]):
        for name in (b"", b"event: error\n"):
            stage.says(stream_answer(*before, name + b"data: " + said + b"\n\n"))
            told.append(customer.post({"model": MODEL, "messages": asks(), "stream": True}))
    for answer in told:
        spoken = json.dumps([answer.text, *answer.headers.items()])
        for line in answer.text.splitlines():
            data = line.removeprefix("data: ")
            spoken += json.dumps(json.loads(data)) if data.startswith("{") else ""
        assert KEY not in spoken, spoken
    assert KEY not in stage.replica.process.log.read_text()
    assert all(KEY.encode() in received.head for _, received in stage.requests), "it was used"


@pytest.mark.parametrize(
    "said",
    [
        {
            "error": {
                "message": "too long",
                "code": "context_length_exceeded",
                "type": "t",
                "param": "messages",
            }
        },
        {"error": {"message": "too long", "type": "context_length_exceeded", "code": None}},
        {"object": "error", "message": "too long", "code": "context_length_exceeded"},
        {"detail": {"message": "too long", "code": "context_length_exceeded"}},
        {"error": {"error": {"message": "too long", "code": "context_length_exceeded"}}},
    ],
    ids=["OpenAI's", "as type", "flat", "detail", "wrapped"],
)
@pytest.mark.parametrize("status", [200, 400])
def test_codes_and_words_reach_the_customer_whatever_their_shape(
    stage: Stage, customer: Customer, said: dict[str, Any], status: int
) -> None:
    stage.says(json_answer(json.dumps(said).encode(), status=status))
    with pytest.raises(openai.BadRequestError) as caught:
        ask(customer)
    assert "too long" in str(caught.value)
    assert "context_length_exceeded" in (caught.value.code, caught.value.type)
    assert customer.spent() == 0


def test_codes_and_words_of_an_error_in_mid_stream_reach_the_customer(
    stage: Stage, customer: Customer
) -> None:
    said = {"error": {"message": "too long", "code": "context_length_exceeded", "type": "t"}}
    stage.says(stream_answer(text(TEXT), event(said)))
    with pytest.raises(openai.APIError, match="too long") as caught:
        listen(customer)
    assert caught.value.code == "context_length_exceeded"
    assert customer.spent() == COUNTED


MODELS = {
    "first": '{"model":"%s","choices":%s,"usage":%s}',
    "last": '{"choices":%s,"usage":%s,"model":"%s"}',
    "spaced": '{ "choices" : %s , "usage" : %s ,\t"model" : "%s" }',
    "twice": '{"model":"%s","choices":%s,"model":"%s","usage":%s}',
}


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("place", MODELS)
def test_the_answer_names_the_customers_model(
    stage: Stage, customer: Customer, place: str, streamed: bool
) -> None:
    content = 'the "model": "other", \\"model\\"'
    message = {"role": "assistant", "content": content, "model": "kept"}
    choices = [{"index": 0, "delta" if streamed else "message": message, "finish_reason": "stop"}]
    fields = {"first": [0, 1, 2], "last": [1, 2, 0], "spaced": [1, 2, 0], "twice": [0, 1, 0, 2]}[place]
    values = [PROVIDER_MODEL, json.dumps(choices), json.dumps(USAGE)]
    body = (MODELS[place] % tuple(values[index] for index in fields)).encode()
    stage.says(stream_answer(b"data: " + body + b"\n\n", DONE) if streamed else whole_answer(body))
    if streamed:
        answers = listen(customer)
        said = answers[0].choices[0].delta
    else:
        answers = [ask(customer)]
        said = answers[0].choices[0].message
    assert {answer.model for answer in answers} == {MODEL}
    assert (said.content, said.model) == (content, "kept")
    raw = customer.post({"model": MODEL, "messages": asks(), "stream": streamed}).text
    assert PROVIDER_MODEL not in raw
    assert customer.spent() == 2 * CHARGE


# ---------------------------------------------------------------------- linear cost


def test_a_big_event_in_small_packets_costs_linear_time(stage: Stage, customer: Customer) -> None:
    def cpu(size: int) -> float:
        data = text("x" * size)
        packets = [data[start : start + 1_400] for start in range(0, len(data), 1_400)]
        stage.says(stream_answer(*packets, FINISH, usage_chunk(), DONE))
        before = stage.replica.process.cpu_seconds()
        assert len(heard(listen(customer))) == size
        return stage.replica.process.cpu_seconds() - before

    cpu(100_000)
    assert cpu(3_000_000) < 1.0
    assert customer.spent() == 2 * CHARGE


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_five_megabytes_in_one_event_pass(stage: Stage, customer: Customer, streamed: bool) -> None:
    content = "y" * 5_000_000
    stage.says(
        stream_answer(text(content), FINISH, usage_chunk(), DONE)
        if streamed
        else whole_answer(whole(content))
    )
    got = heard(listen(customer)) if streamed else ask(customer).choices[0].message.content
    assert got == content
    assert customer.spent() == CHARGE


# ---------------------------------------------------------------------- hidden reasoning


@pytest.mark.parametrize("late", [0.0, 0.8, 2.0])
def test_reasoning_is_not_free_by_closing_at_the_finish(
    stage: Stage, customer: Customer, late: float
) -> None:
    stage.says(
        stream_answer(text("x" * 400), FINISH, late, usage_chunk(10, 4_100), 0.5, DONE),
    )
    body = {"model": MODEL, "messages": asks(), "stream": True, "max_tokens": MAX_TOKENS}
    with customer.post(body, stream=True) as answer:
        next(answer.iter_lines())
        time.sleep(0.3)  # by now the provider has sent its finish_reason
    eventually(lambda: stage.relay.balance(customer.account)[1] == 0)
    assert customer.spent() == price(10, 4_100) == 41_025_000
