"""The differential fuzz in CI, and proof that its parts can fail."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.contract.conftest import PostgresServer
from tests.contract.fuzz import mutations, oracle
from tests.contract.fuzz.cases import Case, make
from tests.contract.fuzz.mutations import PROVIDER_KEY, PROVIDER_MODEL
from tests.contract.fuzz.oracle import Heard, Reader, Wire
from tests.contract.fuzz.run import Played, Summary, bench, charge_findings, fuzz, numbered

# The same cases in every run of CI, each deviation ten times at least; `make fuzz` takes others, and more.
SEED = 20
CASES = 5_000
WORKERS = 24


def test_what_the_sdk_accepts_is_accepted_through_the_relay(postgres: PostgresServer) -> None:
    summary = Summary(SEED)
    with bench(server=postgres) as made:
        asyncio.run(fuzz(made, numbered(SEED, 0, CASES), summary, WORKERS, print))
    report = "\n".join(summary.lines())
    print(report)
    assert summary.cases == CASES
    assert summary.must_accept > CASES / 2, "most cases must be such as the SDK accepts"
    assert summary.charged > CASES / 2
    assert summary.over_http > CASES / 100
    assert not summary.counts, report


# ---------------------------------------------------------------------- the generator


def test_a_case_is_the_same_again() -> None:
    assert [make(7, number) for number in range(200)] == [make(7, number) for number in range(200)]
    assert make(7, 1) != make(8, 1)


def test_every_deviation_is_tried() -> None:
    tried = Counter(name for number in range(3_000) for name in make(3, number).made_of)
    known = {mutation.__name__ for mutation in (*mutations.FOR_STREAMS, *mutations.RARE)}
    others = {"no_answer", "odd_success", "error_status", "bytes", "cut", "content_type", "encoded", "bom"}
    others |= {"split_emoji", "mixed_line_ends", "fields_and_comments", "no_last_blank_line", "no_done"}
    others |= {"odd_done", "after_done", "key_twice", "hangs"}
    assert known | others == tried.keys()


# ---------------------------------------------------------------------- the oracle

CHUNKS: list[dict[str, Any]] = [
    {"model": PROVIDER_MODEL, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
    for text, finish in (("a", None), ("b", None), ("", "stop"))
]
USAGE: dict[str, Any] = {"model": PROVIDER_MODEL, "choices": [], "usage": mutations.USAGE}
SSE = [("content-type", "text/event-stream"), ("x-request-id", "r")]
BROKEN_OFF = b'data: {"error":{"message":"m","type":"server_error","param":null,"code":"provider_error"}}\n\n'


def stream(*values: Any) -> bytes:
    """An event stream with its end."""
    return (
        b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values) + b"data: [DONE]\n\n"
    )


def sent(body: bytes) -> Case:
    """An ordinary case with this body."""
    ordinary = make(0, 0)
    return replace(
        ordinary,
        stream=True,
        include_usage=False,
        status=200,
        encoding="",
        body=body,
        sent=body,
        cuts=(),
        whole=True,
        made_of=(),
    )


def test_more_after_the_finish_is_not_waited_for_without_end() -> None:
    early = replace(sent(PROVIDED), made_of=("finish_early",))
    shorter = Wire(200, SSE, [stream(*sold(*CHUNKS[:2]))])
    assert found(early, shorter) == {"other chunks"}
    assert found(early, replace(shorter, seconds=1.2)) == set()
    assert found(sent(PROVIDED), replace(shorter, seconds=1.2)) == {"other chunks"}
    wrong = Wire(200, SSE, [stream(*sold(CHUNKS[1]))], seconds=1.2)
    assert found(early, wrong) == {"other chunks"}


def found(case: Case, wire: Wire) -> set[str]:
    """Kinds of what the oracle finds."""
    reader = Reader()
    direct = reader.read(next(oracle.direct_wires(case)), stream=True)
    relayed = reader.read(wire, stream=True)
    return {finding.kind.partition(":")[0] for finding in oracle.compare(case, direct, relayed, wire)}


def sold(*values: Any) -> list[Any]:
    """Chunks with the customer's name of the model."""
    return [value | {"model": oracle.MODEL} for value in values]


PROVIDED = stream(*CHUNKS, USAGE)


def test_what_the_relay_changes_by_design_is_no_finding() -> None:
    assert found(sent(PROVIDED), Wire(200, SSE, [stream(*sold(*CHUNKS))])) == set()
    assert found(sent(PROVIDED), Wire(200, SSE, [stream(*sold(*CHUNKS, USAGE))])) == set()


REFUSED = "accepted directly, refused through the relay"
NO_SHAPE = "no error of OpenAI's shape"
KEY_TOLD = "the provider's key reaches the customer"
GOOD = stream(*sold(*CHUNKS))
CUT = GOOD.partition(b"data: [DONE]")[0].rpartition(b"data: ")[0]  # without its finish
WRONG = {
    "lost": (Wire(200, SSE, [stream(*sold(*CHUNKS[1:]))]), {"other chunks"}),
    "order": (Wire(200, SSE, [stream(*sold(CHUNKS[1], CHUNKS[0], CHUNKS[2]))]), {"other chunks"}),
    "twice": (Wire(200, SSE, [stream(*sold(*CHUNKS, CHUNKS[2]))]), {"other chunks"}),
    "model": (
        Wire(200, SSE, [stream(*CHUNKS)]),
        {"the provider's name of the model reaches the customer"},
    ),
    "key": (Wire(200, SSE, [f": {PROVIDER_KEY}\n\n".encode(), GOOD]), {KEY_TOLD}),
    "key in a header": (Wire(200, [*SSE, ("x-key", PROVIDER_KEY)], [GOOD]), {KEY_TOLD}),
    "no id": (Wire(200, SSE[:1], [GOOD]), {"an answer without x-request-id"}),
    "breaks off": (Wire(200, SSE, [GOOD], broken=True), {"the relay's answer breaks off"}),
    "error": (Wire(200, SSE, [CUT, BROKEN_OFF]), {REFUSED}),
    "no shape": (Wire(502, SSE, [b"Bad Gateway"]), {NO_SHAPE, REFUSED}),
    "garbage": (Wire(200, SSE, [CUT, b"data: {broken\n\n"]), {NO_SHAPE, REFUSED}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_the_oracle_finds(kind: str) -> None:
    wire, kinds = WRONG[kind]
    assert found(sent(PROVIDED), wire) == kinds


@pytest.mark.parametrize(
    ("body", "charge", "kinds"),
    [
        (PROVIDED, 75_000, set()),
        (PROVIDED, 0, {"delivered and not charged"}),
        (PROVIDED, 2_000, {"charged more than was held"}),
        (stream(CHUNKS[2]), 5, {"charged though nothing came"}),
        (stream(CHUNKS[2]), 0, set()),
        (stream(CHUNKS[2], USAGE), 25_000, set()),
    ],
    ids=["exact", "free", "above the hold", "for nothing", "nothing for nothing", "the provider's usage"],
)
def test_the_oracle_finds_wrong_charges(body: bytes, charge: int, kinds: set[str]) -> None:
    case = sent(body)
    heard = Reader().read(next(oracle.direct_wires(case)), stream=True)
    played = Played(case, heard, heard, heard, Wire(200, SSE, [body]), "r", [])
    held = 1_000 if charge == 2_000 else 100_000
    assert {finding.kind for finding in charge_findings(played, held, charge)} == kinds


def test_the_sdks_refusals_bind_nobody() -> None:
    case = sent(stream({"error": {"message": "no"}}))
    direct = Reader().read(next(oracle.direct_wires(case)), stream=True)
    assert not direct.accepted
    assert not oracle.must_accept(case, direct)
    assert not oracle.must_accept(case, Heard([]))
