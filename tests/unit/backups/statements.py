"""A statement as the relay writes it, from rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

ACCOUNT = 7
CALL = "0d1a5c7e-0000-4000-8000-000000000001"
Rows = list[tuple[str, dict[str, Any]]]


def rows() -> Rows:
    """An account that was granted 1000, used 300 of it in one call and holds 50 for another."""
    own = {"account_id": ACCOUNT}
    entry = {**own, "unit": "credit", "grant_id": 4, "request_id": None, "reverses": None}
    return [
        ("accounts", {"id": ACCOUNT, "name": "acme"}),
        ("balances", {**own, "unit": "credit", "balance": 700, "held": 50, "debt": 0}),
        ("tokens", {**own, "id": 3, "name": "key", "prefix": "sk-relay-abc"}),
        ("grants", {**own, "id": 4, "unit": "credit", "amount": 1000, "remaining": 700}),
        (
            "holds",
            {**own, "request_id": "other", "state": "held", "amount": 50, "charge": None, "quotas": None},
        ),
        ("holds", {**own, "request_id": CALL, "state": "captured", "amount": 400, "charge": 300}),
        ("entries", {**entry, "id": 10, "kind": "grant", "amount": 1000}),
        ("entries", {**entry, "id": 12, "kind": "capture", "amount": -300, "request_id": CALL}),
        ("usage", {**own, "request_id": CALL, "charge": 300}),
    ]


def text(content: Rows, account: int = ACCOUNT) -> str:
    """The whole statement, with its last line."""
    head = {
        "version": 1,
        "account": account,
        "at": "2026-11-26T12:00:00+00:00",
        "left_out": {"tokens.hash": "why"},
    }
    lines = [json.dumps({"statement": head}), *(json.dumps({kind: row}) for kind, row in content)]
    body = "".join(f"{line}\n" for line in lines)
    end = {"rows": Counter(kind for kind, _ in content), "sha256": hashlib.sha256(body.encode()).hexdigest()}
    return body + json.dumps({"end": end}) + "\n"
