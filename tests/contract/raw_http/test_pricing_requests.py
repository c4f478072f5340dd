"""What the pricing API refuses, of administrators and of customers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import requests

from tests.contract.raw_http.raw import JSON, ask, request
from tests.contract.relay_rig import MODEL, Customer, asks

ADMIN = "an-administrators-token"
ODD_VALUES: dict[str, list[Any]] = {
    "request": [[], "x", 5, {"messages": "x"}, {"model": 1}, {"n": "\ud800"}],
    "meters": [[], {"in_text": "\ud800"}, {"in_text": 1e300}, {"x": -1}],
    "at": ["\0", "9999-12-31T23:59:59Z", 5, "0001-01-01", [], "\ud800"],
    "rates": [{"in_text": value} for value in ("\0", "1e99999/1M", "1/0", "-1/1M")],
    **{name: ["\0", "\ud800", [], {}, None, 1e400] for name in ("group", "using_group", "currency")},
}
DOCUMENTS: list[dict[str, Any]] = [
    *(
        {},
        {"model": MODEL},
        {"model": "\ud800"},
        {"model": "a\0b", "rates": {"in_text": "1/1M"}},
        {"prices": [1]},
    ),
    *(
        {"model": MODEL, "multiplier": "1", "rate": "1", name: value}
        for name, values in ODD_VALUES.items()
        for value in values
    ),
    *({"group": value, "multiplier": "1"} for value in ODD_VALUES["group"]),
    *({"currency": value, "rate": "1"} for value in ODD_VALUES["currency"]),
]
PRICING_CALLS = [
    ("POST", "/api/pricing/quote"),
    *(
        ("POST", path)
        for path in ("/api/pricing", "/api/pricing/1/end", "/api/pricing/1/publish", "/api/pricing/\xb2")
    ),
    *(("PUT", path) for path in ("/api/pricing/groups", "/api/pricing/fx", "/api/pricing/fx/x")),
]
PRICING_READS = [
    *(
        "?model=%00",
        "?model=%ff&status=%00",
        "?status=x",
        "?model=" + "x" * 5000,
        "/%C2%B2",
        "/%D9%A1",
        "/0",
        "/-1",
    ),
    *("/99999999999999999999", "/999999999999999999", "/groups", "/fx", "/1/2/3", "/%00", "/quote"),
]


@pytest.fixture(scope="module")
def replica_settings() -> dict[str, str]:
    return {"RELAY_ADMIN_TOKEN_HASH": hashlib.sha256(ADMIN.encode()).hexdigest()}


@pytest.mark.parametrize("administrator", [False, True])
def test_the_pricing_api_refuses_what_it_cannot_take(customer: Customer, administrator: bool) -> None:
    key = ADMIN if administrator else customer.key
    faults = []
    with requests.Session() as session:
        session.headers["authorization"] = f"Bearer {key}"
        asked: list[tuple[str, str, Any]] = [(*call, body) for call in PRICING_CALLS for body in DOCUMENTS]
        asked += [("GET", "/api/pricing" + path, None) for path in PRICING_READS]
        asked += [("DELETE", "/api/pricing" + path, None) for path in PRICING_READS if path[0] == "/"]
        for method, path, body in asked:
            data = None if body is None else json.dumps(body).encode()
            answer = session.request(method, customer.replica.url + path, data=data, timeout=60)
            if answer.status_code >= 500:
                faults.append((method, path, body, answer.status_code))
            elif answer.status_code >= 400:
                assert answer.json()["error"]["message"]
    assert faults == []


def test_a_quote_takes_what_a_call_takes(customer: Customer) -> None:
    asked = {"messages": asks(), "max_tokens": 100.0, "n": 2.0, "temperature": 0.5, "audio": None}
    data = json.dumps({"model": MODEL, "request": asked}).encode()
    answer = ask(customer, request(customer, "POST", "/api/pricing/quote", JSON, body=data))
    assert answer.status == 200, answer.body
    assert json.loads(answer.body)["meters"]["out_text"] == 200
