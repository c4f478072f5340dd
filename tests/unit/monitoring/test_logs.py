"""`python -m monitoring logs`: what it asks the ops host, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from deploys.run import remote
from deploys.run.remote import Answer
from monitoring.__main__ import main

LINE = {
    "_time": "2026-11-26T21:00:00.123Z",
    "_msg": "channel is off",
    "_stream": "{}",
    "_stream_id": "0",
    "host": "app1",
    "program": "relay_relay",
    "unit": "docker.service",
    "level": "warning",
    "class": "business",
    "model": "gpt-4o",
}


class Ops:
    """The ops host: what it was asked, and what it says."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.answer = Answer("ops1", 0, json.dumps(LINE) + "\n", "")

    def ask(self, hosts: Sequence[Any], words: Sequence[str], *, seconds: float) -> list[Answer]:
        assert [host.name for host in hosts] == ["ops1"]
        self.asked.append(list(words))
        return [self.answer]


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> Ops:
    found = Ops()
    monkeypatch.setattr(remote, "ask", found.ask)
    monkeypatch.setattr("deploys.lib.log_store.wanted", lambda: True)
    return found


def test_it_asks_the_store_on_its_host(ops: Ops, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "sandbox", 'level:error "a b"', "--since", "15m", "--limit", "7"]) == 0
    assert ops.asked == [["relay-logs", "query", "--limit=7", "--since=15m", "--", 'level:error "a b"']]
    out, err = capsys.readouterr()
    words = "2026-11-26T21:00:00.123Z app1 relay_relay warning channel is off (model=gpt-4o)"
    assert " ".join(out.split()) == words
    assert err == ""


def test_json_has_all_fields(ops: Ops, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "sandbox", "*", "--json", "--class", "security", "--day", "2026-11-26"]) == 0
    assert ops.asked[0][2:] == ["--limit=1000", "--day=2026-11-26", "--class=security", "--", "*"]
    assert json.loads(capsys.readouterr().out) == LINE


def test_counts_are_shown_as_they_are(ops: Ops, capsys: pytest.CaptureFixture[str]) -> None:
    ops.answer = Answer("ops1", 0, '{"path":"/v1/models","hits":"3"}\n', "")
    assert main(["logs", "sandbox", "* | top 5 by (path)"]) == 0
    assert capsys.readouterr().out == "path=/v1/models  hits=3\n"


def test_that_nothing_or_not_all_is_shown_is_said(ops: Ops, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "sandbox", "*", "--limit", "1"]) == 0
    assert "only the newest 1 are shown" in capsys.readouterr().err
    ops.answer = Answer("ops1", 0, "", "")
    assert main(["logs", "sandbox", "*"]) == 0
    assert capsys.readouterr().err == "no line matches since 1h\n"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer("ops1", 255, "", "no route to host"), "ops1 does not answer over SSH: no route to host"),
        (Answer("ops1", 1, "", "sudo: relay-logs: command not found"), "apply sandbox --limit ops"),
        (Answer("ops1", 1, "", "the store refuses the query: missing )"), "refuses the query: missing )"),
        (Answer("ops1", 3, "", "the store of business logs does not answer"), "does not answer"),
    ],
)
def test_failures_say_what_to_do(
    ops: Ops, capsys: pytest.CaptureFixture[str], answer: Answer, told: str
) -> None:
    ops.answer = answer
    assert main(["logs", "sandbox", "*"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err


def test_without_a_store_the_journal_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deploys.lib.log_store.wanted", lambda: False)
    assert main(["logs", "sandbox", "*"]) == 1
    assert "journalctl" in capsys.readouterr().err
    assert main(["logs", "nowhere", "*"]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--since", "soon"], ["--since", "1"], ["--limit", "0"], ["--limit", "x"], ["--day", "today"]],
)
def test_misuse_is_refused_before_anybody_is_asked(ops: Ops, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["logs", "sandbox", "*", *words])
    assert ops.asked == []


def test_a_day_comes_back_and_goes(ops: Ops, capsys: pytest.CaptureFixture[str]) -> None:
    ops.answer = Answer("ops1", 0, "restored 7 lines\n", "")
    assert main(["restore-logs", "sandbox", "--day", "2026-03-01", "--class", "security"]) == 0
    assert main(["restore-logs", "sandbox", "--remove"]) == 0
    assert [words[1:] for words in ops.asked] == [
        ["restore", "--day=2026-03-01", "--class=security"],
        ["restore", "--remove"],
    ]
    assert main(["restore-logs", "sandbox", "--day", "2026-03-01"]) == 2
    assert "restored 7 lines" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["logs", "level:error"], ["restore-logs", "--remove"]])
def test_without_an_environment_nobody_is_asked(
    ops: Ops, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """None is taken for granted: lines of the sandbox would be read as those of production."""
    monkeypatch.setenv("RELAY_ENVIRONMENT", "sandbox")
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "required" in capsys.readouterr().err
    assert ops.asked == []
