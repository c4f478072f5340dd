"""Receipts of drills: read back as written, refused where they contradict themselves; a page a month."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from backups.core.receipts import NAME, Check, Kept, Receipt, ReceiptError, month_of, page, parse

GOOD = Receipt(
    environment="relay.example",
    host="ops1",
    started="2026-11-26T04:15:00.123456Z",
    finished="2026-11-26T04:16:00.000000Z",
    ok=True,
    seed=7,
    goal="time=2026-11-25T11:00:00.5Z",
    backup="20261125-010000F",
    rto_seconds=12.34,
    rpo_seconds=41.0,
    checks=(Check("charges derived again", True, "1000 of 5000"),),
)
BAD = replace(
    GOOD, ok=False, started="2026-11-27T04:15:00Z", problems=("ledger is conserved: wrong for accounts 3",)
)


def test_a_receipt_is_read_back_as_it_was_written() -> None:
    assert parse(GOOD.text()) == GOOD
    assert parse(BAD.text()) == BAD


def test_its_name_says_when() -> None:
    name = GOOD.name("0a1b2c3d")
    assert name == "2026-11/20261126T041500Z-0a1b2c3d.json"
    assert NAME.fullmatch(name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ok": False}, "calls itself good and names problems, or the other way round"),
        ({"problems": ["something"]}, "calls itself good"),
        ({"checks": [{"name": "x", "ok": False, "detail": ""}]}, "calls itself good"),
        ({"checks": [{"nonsense": 1}]}, "no receipt"),
        ({"checks": None}, "no receipt"),
        ({"version": 2}, "version 2"),
        ({"seed": ...}, "no receipt"),
    ],
)
def test_what_is_no_receipt_is_refused(changes: dict[str, object], words: str) -> None:
    value = json.loads(GOOD.text()) | changes
    value = {name: one for name, one in value.items() if one is not ...}
    with pytest.raises(ReceiptError, match=words):
        parse(json.dumps(value))
    for text in ("", "[]", "7", "null"):
        with pytest.raises(ReceiptError):
            parse(text)


@pytest.mark.parametrize("text", ["2026-13", "2026-1", "26-11", "", "2026-11-01"])
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(ReceiptError):
        month_of(text)
    assert month_of("2026-11") == "2026-11"


def test_the_months_page_tells_good_failed_and_unbelieved_apart() -> None:
    kept = [
        Kept("2026-11/b.json", BAD),
        Kept("2026-11/a.json", GOOD),
        Kept("2026-11/c.json", GOOD, "the signature is not of this text"),
    ]
    text = page("production", "2026-11", kept)
    assert "3 drills: 1 proven, 1 failed, 1 not believed." in text
    assert "Longest restore 12.3 s; the site's loss would have cost 41 s." in text
    assert "1000 of 5000" in text
    assert "- ledger is conserved: wrong for accounts 3" in text
    assert "- the signature is not of this text" in text
    rows = [line for line in text.splitlines() if line.startswith("| 2026")]
    assert [row.rsplit("|", 2)[1].strip() for row in rows] == ["proven", "FAILED", "not believed"]


def test_a_month_without_a_proof_says_so() -> None:
    assert "No drill proved that a restore works." in page("production", "2026-11", [])
