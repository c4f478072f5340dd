"""Signs of life while a provider is quiet: between events, never within one, and no one waits for them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.unit.gateway import rig
from tests.unit.gateway.rig import (
    COUNTED,
    DONE,
    FINISH,
    OUT,
    USAGE_CHUNK,
    Customer,
    answers,
    content,
    run,
    says,
)

PING = b": ping\n\n"
OFTEN = {"RELAY_PING_SECONDS": "0.15"}
END = (FINISH, USAGE_CHUNK, DONE)


def test_a_quiet_stream_is_pinged_between_its_events() -> None:
    result = run(says(content(), 0.5, content(), 0.5, *END), settings=OFTEN)
    assert result.whole
    assert result.ledger.facts.outcome == "ok"
    assert result.body.count(PING) >= 4
    assert result.body.replace(PING, b"") == run(says(content(), content(), *END)).body


def test_a_busy_stream_is_not() -> None:
    result = run(says(*[content(), 0.02] * 60, *END), settings={"RELAY_PING_SECONDS": "0.6"})
    assert result.seconds > 0.6
    assert PING not in result.body


OPENING = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'


def test_a_ping_delivers_nothing_so_another_provider_may_still_answer() -> None:
    quiet = says(OPENING, 0.4, b"data: nonsense\n\n")
    result = run(quiet, says(content(), *END), settings=OFTEN)
    assert result.body.startswith(PING)
    assert result.body.replace(PING, b"") == run(says(content(), *END)).body
    assert [entry["outcome"] for entry in result.attempts] == ["bad_answer", "ok"]
    assert result.ledger.charged == 75_000


def test_what_fails_after_a_ping_is_told_in_the_stream_and_not_charged() -> None:
    result = run(says(OPENING, 0.4, b"data: nonsense\n\n"), settings=OFTEN)
    assert (result.raised, result.whole, result.status) == (None, True, 200)
    assert b"Nothing was charged" in result.body
    assert OPENING not in result.body
    assert result.ledger.charged == 0


def test_a_provider_without_a_word_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    post = rig.FakeTransport.post

    async def slow(transport: rig.FakeTransport, *asked: Any) -> rig.FakeReply:
        await asyncio.sleep(0.4)
        return await post(transport, *asked)

    monkeypatch.setattr(rig.FakeTransport, "post", slow)
    result = run(says(content(), *END), settings=OFTEN)
    assert result.body.count(PING) >= 2
    assert result.ledger.charged == 75_000
    refused = answers({"error": {"message": "too long"}}, status=400)
    result = run(refused, settings=OFTEN)
    assert (result.raised, result.whole) == (None, True)
    assert json.loads(result.body.rpartition(b"data: ")[2])["error"]["message"] == "too long"
    whole = run(answers(rig.WHOLE), stream=False, settings=OFTEN)
    assert json.loads(whole.body)["usage"] == rig.USAGE


def test_a_customer_that_does_not_read_its_pings_keeps_nothing_waiting() -> None:
    settings = OFTEN | {"RELAY_PROVIDER_TIMEOUT_SECONDS": "0.8"}
    result = run(says(content(), 30.0, *END), settings=settings, customer=Customer(stalls_after=2))
    assert result.seconds < 3
    assert result.ledger.facts.outcome == "client_stalled"
    assert result.ledger.charged == COUNTED + OUT


def test_a_customer_that_is_gone_gets_none() -> None:
    result = run(says(content(), 0.6, content(), *END), settings=OFTEN, customer=Customer(leaves_after=1))
    assert PING not in result.body
    assert result.ledger.facts.outcome == "client_gone"
