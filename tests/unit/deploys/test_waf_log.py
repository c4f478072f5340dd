"""What is kept of a call that a rule of the WAF matched, and what is not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.deploys.scripts import load


@pytest.fixture
def program() -> ModuleType:
    return load("edge/relay_waf_log.py")


def message(rule: str, match: str = "", data: str = "", said: str = "") -> dict[str, Any]:
    details = {"ruleId": rule, "match": match, "data": data, "severity": "2"}
    return {"message": said or f"says {rule}", "details": details}


def line(*messages: dict[str, Any], status: int = 403, engine: str = "Enabled") -> str:
    call = {
        "client_ip": "192.0.2.1",
        "time_stamp": "Thu Nov 26 12:00:00 2026",
        "unique_id": "abc",
        "request": {"method": "POST", "uri": "/console/x?key=sk-canary"},
        "response": {"http_code": status},
        "producer": {"secrules_engine": engine},
        "messages": list(messages),
    }
    return json.dumps({"transaction": call}) + "\n"


FORM = message("942100", "Matched x against variable `ARGS:note' (Value: `canary' OR 1=1' )", "canary")
LIBINJECTION = message("942100", "detected SQLi", "Matched Data: canary found within ARGS:note: canary")
SUM = message(
    "949110",
    "Matched x against variable `TX:ANOMALY_SCORE' (Value: `5' )",
    said="Inbound Anomaly Score Exceeded (Total Score: 5)",
)


def test_rule_and_part_are_kept_and_no_content(program: ModuleType) -> None:
    for matched in (FORM, LIBINJECTION):
        entry = program.record(line(matched, SUM))
        assert "canary" not in json.dumps(entry)
        assert entry["path"] == "/console/x"
        assert (entry["edge_request_id"], entry["refused"], entry["status"]) == ("abc", True, 403)
        found = {"rule": "942100", "target": "ARGS:note", "score": 5, "message": "says 942100"}
        assert (entry["rules"], entry["score"]) == ([found], 5)


def test_each_part_that_a_rule_matched_is_kept(program: ModuleType) -> None:
    other = message("942100", "Matched x against variable `ARGS:title' (Value: `canary' )")
    targets = [rule["target"] for rule in program.record(line(FORM, other, FORM, SUM))["rules"]]
    assert targets == ["ARGS:note", "ARGS:title"]


def test_below_the_threshold_nothing_was_refused(program: ModuleType) -> None:
    assert program.record(line(FORM, status=200))["refused"] is False


def test_a_rule_of_the_edge_refuses_by_itself(program: ModuleType) -> None:
    assert program.record(line(message("10012"), status=415))["refused"] is True


@pytest.mark.parametrize(
    "name", ["ARGS:" + "x" * 5000, "ARGS:<script>canary", "ARGS:a\ncanary", "canary", "TX:MSC_ canary"]
)
def test_an_attackers_names_do_not_fill_the_log(program: ModuleType, name: str) -> None:
    found = program.target({"match": f"against variable `{name}' (Value: `v' )", "data": ""})
    assert len(found) <= 64
    assert "canary" not in found


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"transaction": 1}', '{"transaction": {"messages": [1]}}']
)
def test_what_cannot_be_read_is_left_out(program: ModuleType, text: str) -> None:
    assert program.record(text) is None


def test_lines_are_taken_once_and_halves_wait(program: ModuleType, tmp_path: Path) -> None:
    matches, log, counts = tmp_path / "matches", tmp_path / "log", program.Counts()
    matches.write_text(line(FORM, SUM) + line(FORM, status=200) + line(FORM, SUM)[:50])
    assert program.collect(matches, log, counts) == 2
    assert program.collect(matches, log, counts) == 0
    with matches.open("a") as file:
        file.write(line(FORM, SUM)[50:])
    assert program.collect(matches, log, counts) == 1
    assert len(log.read_text().splitlines()) == 3
    text = counts.text(1.5)
    assert 'relay_waf_refused_total{rule="942100"} 2' in text
    assert 'relay_waf_matched_total{rule="942100"} 3' in text
    assert 'relay_waf_refused_total{rule="949110"} 0' in text, "measured before anything is refused"
    assert "relay_waf_log_timestamp_seconds 1.5" in text


def test_without_a_file_nothing_is_taken(program: ModuleType, tmp_path: Path) -> None:
    assert program.collect(tmp_path / "none", tmp_path / "log", program.Counts()) == 0


def test_the_worst_addresses_are_told_for_five_minutes(program: ModuleType) -> None:
    counts = program.Counts()
    attack, mistake = program.record(line(FORM, SUM)), program.record(line(message("10012"), status=415))
    for _ in range(30):
        counts.add(attack)
        counts.add(mistake | {"client": "192.0.2.2"})
    for last in range(200):
        counts.add(attack | {"client": f"203.0.113.{last}"})
    now = time.time()
    assert counts.worst(now) == [("192.0.2.1", 30)]
    assert 'relay_waf_refused_by_client{client="192.0.2.1"} 30' in counts.text(now)
    assert counts.worst(now + 301) == []
    assert "relay_waf_refused_by_client 0" in counts.text(now + 301)
