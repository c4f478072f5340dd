"""What a quote says will be held is what the ledger holds, for requests and prices of every kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.contract.postgres import Database
from tests.contract.relay_rig import Customer, Relay, running_provider

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
REQUESTS: dict[str, dict[str, Any]] = {
    "text": {"max_tokens": 100},
    "no limit": {},
    "one image": {"max_tokens": 100, "content": [PICTURE]},
    "images and text": {"max_tokens": 100, "content": [{"type": "text", "text": "Which?"}, PICTURE, PICTURE]},
    "choices": {"max_tokens": 100, "n": 3},
    "tools": {"max_tokens": 100, "tools": [TOOL] * 5, "tool_choice": "none"},
    "schema": {"max_completion_tokens": 7, "response_format": {"type": "json_object"}, "content": "As JSON."},
    "a long prompt": {"max_tokens": 10, "content": "word " * 500},
    "text only, said": {"max_tokens": 10, "modalities": ["text"], "service_tier": "auto"},
    "stream": {"max_tokens": 10, "stream": True, "stream_options": {"include_usage": True}},
}
RATES = {"in_text": "2.50/1M", "out_text": "10/1M"}
PRICES: dict[str, dict[str, Any]] = {
    "plain": {"rates": RATES},
    "dear-images": {"rates": {**RATES, "in_image": "9/1M", "cache_write_5m": "3/1M"}},
    "tiers": {"rates": RATES, "tiers": [{"above": 1000, "rates": {"in_text": "5/1M", "out_text": "20/1M"}}]},
    "a-call": {"ratios": {"call": "0.04"}},
    "coarse": {"rates": RATES, "quantum": 2000, "minimum": 5_000_000},
    "free": {"free": True},
}


@pytest.fixture(scope="module")
def customer(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Customer]:
    directory: Path = tmp_path_factory.mktemp("quoted")
    with running_provider(directory) as provider:
        relay = Relay(module_database, directory)
        relay.channel(provider.url, ",".join(f"{model}=fake-small" for model in PRICES))
        for model, price in PRICES.items():
            path = directory / f"{model}.json"
            path.write_text(json.dumps({"model": model, **price}))
            relay.command("price", "publish", "--file", str(path))
        relay.command("price", "group", "default", "--multiplier", "0.7")
        yield Customer(relay, relay.replica(), "quoted", "50.00")
        relay.stop()


@pytest.mark.parametrize("model", PRICES)
@pytest.mark.parametrize("kind", REQUESTS)
def test_the_quoted_hold_is_held(customer: Customer, model: str, kind: str) -> None:
    fields = dict(REQUESTS[kind])
    message = {"role": "user", "content": fields.pop("content", "What does a call cost?")}
    request = {"model": model, "messages": [message], **fields}
    quoted = requests.post(
        f"{customer.replica.url}/api/pricing/quote",
        json={"model": model, "request": request},
        headers={"authorization": f"Bearer {customer.key}"},
        timeout=10,
    ).json()
    answer = customer.post(request)
    assert answer.status_code == 200, answer.text
    customer.balance()
    records = customer.relay.usage(customer.account)
    (record,) = (one for one in records if one["request_id"] == answer.headers["x-request-id"])
    assert quoted["hold_nanodollars"] == record["held"]
    assert quoted["charge_nanodollars"] <= record["held"]
    assert record["charge"] <= record["held"]
    assert (record["held"] == 0) == (model == "free")
