"""The pricing API of a running replica."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.contract.postgres import Database
from tests.contract.relay_rig import Relay

ADMIN = "an-administrators-token"
# While one takes the other's place, both are taken.
NEXT_ADMIN = "the-next-administrators-token"
PRICE = {"model": "m", "rates": {"in_text": "2.50/1M", "out_text": "10/1M"}}
RATIOS = {"model": "r", "ratios": {"model": "1.25", "completion": "4"}}


@pytest.fixture(scope="module")
def relay(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    made = Relay(module_database, tmp_path_factory.mktemp("relay"))
    hashes = [hashlib.sha256(token.encode()).hexdigest() for token in (NEXT_ADMIN, ADMIN)]
    made.replica(RELAY_ADMIN_TOKEN_HASH=",".join(hashes))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def customer(relay: Relay) -> str:
    return relay.token(relay.account("api-customer"))


class Api:
    """Calls as somebody."""

    def __init__(self, relay: Relay, token: str) -> None:
        self._url = f"{relay.replicas[0].url}/api/pricing"
        self._headers = {"authorization": f"Bearer {token}"}

    def __call__(self, method: str, path: str = "", body: Any = None, **options: Any) -> tuple[int, Any]:
        answer = requests.request(
            method, self._url + path, json=body, headers=self._headers, timeout=10, **options
        )
        return answer.status_code, answer.json()


@pytest.fixture
def admin(relay: Relay) -> Api:
    return Api(relay, ADMIN)


@pytest.mark.parametrize(
    ("token", "status"), [(ADMIN, 200), (NEXT_ADMIN, 200), ("another", 401), (f"{ADMIN},{NEXT_ADMIN}", 401)]
)
def test_either_token_is_an_administrators(relay: Relay, token: str, status: int) -> None:
    assert Api(relay, token)("GET", "/groups")[0] == status


def test_both_styles_are_written_and_shown_in_both_views(admin: Api) -> None:
    for document in (PRICE, RATIOS):
        status, version = admin("POST", body=document)
        assert status == 200
        assert version["price_view"] == {"rates": {"in_text": "2.5/1M", "out_text": "10/1M"}}
        assert version["ratio_view"] == {"ratios": {"model": "1.25", "completion": "4"}}
        assert admin("GET", f"/{version['id']}")[1] == version
    assert admin("POST", body=PRICE)[1]["unchanged"]


def test_price_and_ratio_in_one_write_is_a_conflict(admin: Api) -> None:
    status, answer = admin("POST", body={**PRICE, **RATIOS})
    assert status == 409
    assert answer["error"]["param"] == "rates"
    assert answer["error"]["code"] == "conflict"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"rates": {"in_text": "cheap"}}, "rates.in_text"),
        ({"rates": {"in_text": 2.5}}, "rates.in_text"),
        ({"rates": {"speed": "1/1M"}}, "rates.speed"),
        ({"currency": "XXX"}, "currency"),
        ({"valid_from": "soon"}, "valid_from"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_bad_price_is_refused_by_field(admin: Api, change: dict[str, Any], param: str) -> None:
    status, answer = admin("POST", body={**PRICE, "model": "bad", **change})
    assert (status, answer["error"]["param"]) == (400, param)
    assert ";" in answer["error"]["message"]  # the remedy


def test_a_bulk_write_is_done_whole_or_not(admin: Api) -> None:
    good, bad = {**PRICE, "model": "bulk-1"}, {**PRICE, "model": "bulk-2", "rates": {}}
    status, answer = admin("POST", body={"prices": [good, bad]})
    assert (status, answer["error"]["param"]) == (400, "prices.1.prices")
    assert admin("GET", "?model=bulk-1")[1]["data"] == []
    status, answer = admin("POST", body={"prices": [good, {**good, "model": "bulk-2"}]})
    assert status == 200
    assert [version["model"] for version in answer["data"]] == ["bulk-1", "bulk-2"]


def test_a_draft_is_published_or_dropped(admin: Api) -> None:
    draft = admin("POST", body={**PRICE, "model": "draft", "draft": True})[1]
    assert draft["status"] == "draft"
    assert admin("POST", f"/{draft['id']}/publish")[1]["status"] == "published"
    assert admin("DELETE", f"/{draft['id']}")[0] == 404
    assert admin("POST", f"/{draft['id']}/end")[1]["valid_to"] is not None
    other = admin("POST", body={**PRICE, "model": "draft-2", "draft": True})[1]
    assert admin("DELETE", f"/{other['id']}")[1] == {"id": other["id"], "deleted": True}
    assert admin("GET", f"/{other['id']}")[0] == 404


def test_a_quote_shows_its_whole_derivation(admin: Api, relay: Relay, customer: str) -> None:
    admin("POST", body=PRICE)
    admin("PUT", "/groups", {"group": "vip", "multiplier": "0.9"})
    usage = {"openai": {"prompt_tokens": 1000, "completion_tokens": 500}}
    status, quote = admin("POST", "/quote", {"model": "m", "group": "vip", "raw_usage": usage})
    assert status == 200
    assert quote["meters"] == {"in_text": 1000, "out_text": 500}
    assert quote["multipliers"] == [{"name": "group vip", "value": "0.9"}]
    assert [line["exact"] for line in quote["lines"]] == ["2500000/1", "5000000/1"]
    assert (quote["exact"], quote["charge_nanodollars"], quote["charge_usd"]) == (
        "6750000/1",
        6_750_000,
        "0.00675",
    )
    # A customer pays what their own group pays, whatever they ask for.
    mine = Api(relay, customer)("POST", "/quote", {"model": "m", "group": "vip", "raw_usage": usage})[1]
    assert mine["charge_nanodollars"] == 7_500_000


def test_a_request_is_quoted_by_its_estimate_and_its_hold(admin: Api) -> None:
    admin("POST", body=PRICE)
    request = {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 100}
    status, quote = admin("POST", "/quote", {"model": "m", "request": request})
    assert status == 200
    assert quote["estimated"]
    assert quote["meters"]["out_text"] == 100
    assert quote["hold_nanodollars"] >= quote["charge_nanodollars"] > 0


def test_a_quote_of_the_past_takes_the_price_of_the_past(admin: Api) -> None:
    first = admin("POST", body={**PRICE, "model": "aged"})[1]
    admin("POST", body={**PRICE, "model": "aged", "rates": {"in_text": "1/1M"}})
    at = first["valid_from"].replace(" ", "T")
    quoted = admin("POST", "/quote", {"model": "aged", "at": at, "meters": {"in_text": 1000}})[1]
    assert quoted["charge_nanodollars"] == 2_500_000
    assert quoted["version"]["id"] == first["id"]


def test_customers_see_what_holds_for_them_and_write_nothing(relay: Relay, admin: Api, customer: str) -> None:
    admin("POST", body={**PRICE, "model": "shown"})
    admin("POST", body={**PRICE, "model": "shown", "group": "vip"})
    admin("POST", body={**PRICE, "model": "shown", "side": "cost"})
    seen = Api(relay, customer)("GET", "?model=shown")[1]["data"]
    assert [price["price_view"]["rates"]["in_text"] for price in seen] == ["2.5/1M"]
    assert "typed" not in seen[0]
    for method, path in (("POST", ""), ("GET", "/1"), ("DELETE", "/1"), ("PUT", "/fx"), ("POST", "/1/end")):
        assert Api(relay, customer)(method, path, PRICE)[0] == 403


@pytest.mark.parametrize("token", ["", "wrong", "sk-relay-unknown"])
def test_strangers_are_refused(relay: Relay, token: str) -> None:
    for method, path in (("GET", ""), ("POST", ""), ("POST", "/quote")):
        assert Api(relay, token)(method, path, PRICE)[0] == 401


def test_what_does_not_exist_is_told(admin: Api) -> None:
    assert admin("POST", "/quote", {"model": "nowhere", "meters": {}})[0] == 404
    assert admin("POST", "/quote", {"model": "m"})[1]["error"]["param"] == "meters"
    assert admin("GET", "/999999")[0] == 404
    assert admin("PATCH", "/1")[0] == 405
    assert admin("GET", "/other")[0] == 404


def test_exchange_rates_and_groups_are_listed(admin: Api) -> None:
    assert admin("PUT", "/fx", {"currency": "CNY", "rate": "10/73"})[0] == 200
    assert admin("GET", "/fx")[1]["data"][0]["rate"] == "10/73"
    assert admin("PUT", "/fx", {"currency": "USD", "rate": "1"})[1]["error"]["param"] == "currency"
    assert admin("PUT", "/groups", {"group": "vip", "multiplier": "1/3"})[1]["error"]["param"] == "multiplier"
    assert admin("GET", "/groups")[0] == 200
