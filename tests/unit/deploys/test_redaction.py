"""What commands print, on the corpus that every redactor is tried on."""

from __future__ import annotations

from deploys.lib.redaction import redacted
from tests import redaction


def test_secrets_are_redacted_and_nothing_else() -> None:
    missed = {case.text: case.missed(redacted(case.text)) for case in redaction.must_redact()}
    assert {text: found for text, found in missed.items() if found} == {}
    assert len(missed) > 1
    untouched = [case.text for case in redaction.must_not_touch()]
    assert [redacted(text) for text in untouched] == untouched


def test_given_secrets_go_wherever_they_stand_and_short_ones_stay() -> None:
    assert redacted("at xyz-of-ours: ox", ["xyz-of-ours", "ox"]) == "at [redacted]: ox"
