"""The relay's redactor on the corpus that every redactor is tried on."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.telemetry import logs
from relay.telemetry.logs import redact, redact_data
from tests import redaction
from tests.redaction import Case

BAD, GOOD = redaction.must_redact(), redaction.must_not_touch()


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.text[:40])
def test_secrets_are_redacted(case: Case) -> None:
    assert case.secrets
    redacted = redact(case.text)
    assert case.missed(redacted) == []
    assert redaction.HIDDEN in redacted


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.text[:40])
def test_what_is_no_secret_is_left_alone(case: Case) -> None:
    assert redact(case.text) == case.text


@pytest.mark.parametrize("case", [*BAD, *GOOD], ids=lambda case: case.text[:40])
def test_what_is_redacted_stays_as_it_is(case: Case) -> None:
    once = redact(case.text)
    assert redact(once) == once


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.text[:40])
def test_json_stays_json_however_deep_a_secret_is_quoted(case: Case) -> None:
    if case.text.startswith("{"):
        json.loads(redact(case.text))
    text, written = case.text, case.secrets
    for _ in range(3):
        text = json.dumps({"message": text, "n": 1})
        written = tuple(json.dumps(secret)[1:-1] for secret in written)
        redacted = redact(text)
        assert json.loads(redacted)["n"] == 1
        assert [secret for secret in written if secret in redacted] == []


@pytest.mark.parametrize("case", [*BAD, *GOOD], ids=lambda case: case.text[:40])
def test_answers_are_redacted_as_logs_are(case: Case) -> None:
    cleaned = redact_data(json.dumps({"error": {"message": case.text}}).encode())
    message = json.loads(cleaned)["error"]["message"]
    assert case.missed(message) == []
    assert case.secrets or message == case.text


def test_what_follows_a_private_key_stays() -> None:
    """Python's possessive groups up to 3.11.4 took it away."""
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQ-\n-----END PRIVATE KEY-----"
    found = redact(f'password="{key}" then \\"more\\" {key} and the rest')
    assert "MIIEvQ" not in found
    assert found.endswith(" and the rest")


def test_no_group_of_the_redactors_patterns_is_possessive() -> None:
    found = "".join(pattern.pattern for pattern, _ in logs._compiled(logs.RULES_FILE.read_text()))
    assert ")*" in found
    assert [quantifier for quantifier in (")*+", ")++", ")?+") if quantifier in found] == []


@given(st.text(alphabet="password:=\"'\\{}[],; abAI-_*.+/\n", max_size=200))
def test_whatever_is_said_redacting_twice_changes_nothing(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@pytest.mark.parametrize(
    "piece",
    ["a", "password", "A1b+", "\\", '\\"', "sk-", "://a:", "eyJ", "-----BEGIN A-----", "-", "*", "'", "&key"],
)
def test_a_long_line_takes_no_long_time(piece: str) -> None:
    start = time.process_time()
    redact(piece * (64 * 1024 // len(piece)))
    assert time.process_time() - start < 2
