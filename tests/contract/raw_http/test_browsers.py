"""Which pages of browsers may ask the relay (CORS)."""

from __future__ import annotations

import pytest
import requests

from tests.contract.raw_http.raw import JSON, QUESTION, STREAM, ask, request
from tests.contract.relay_rig import Customer, Relay

ORIGIN = "https://chat.example.com"


@pytest.fixture(scope="module")
def replica_settings() -> dict[str, str]:
    return {"RELAY_CORS_ORIGINS": f"{ORIGIN},http://localhost:3000"}


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
def test_a_preflight_from_a_page_that_may(customer: Customer, origin: str, path: str) -> None:
    wanted = "authorization,content-type,x-stainless-lang"
    headers = [f"Origin: {origin}", "Access-Control-Request-Method: POST"]
    headers.append(f"Access-Control-Request-Headers: {wanted}")
    answer = ask(customer, request(None, "OPTIONS", path, *headers), method="OPTIONS")
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-headers"] == wanted
    assert answer.headers["access-control-allow-methods"] == answer.headers["allow"]
    assert answer.headers["vary"] == "origin"
    assert answer.headers["access-control-allow-credentials"] is None


def test_answers_and_errors_may_be_read_by_the_page(customer: Customer) -> None:
    for body, status in ((QUESTION, 200), (STREAM, 200), (b"{}", 400)):
        headers = [JSON, f"Origin: {ORIGIN}"]
        answer = ask(customer, request(customer, "POST", "/v1/chat/completions", *headers, body=body))
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    for path, status in (("/v1/models", 401), ("/nothing", 404)):
        answer = ask(customer, request(None, "GET", path, f"Origin: {ORIGIN}"), method="GET")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)


@pytest.mark.parametrize("origin", ["https://evil.example.com", "null", f"{ORIGIN}.evil.com", ""])
def test_other_pages_may_not(customer: Customer, origin: str) -> None:
    headers = [f"Origin: {origin}", "Access-Control-Request-Method: POST"]
    answer = ask(customer, request(None, "OPTIONS", "/v1/models", *headers), method="OPTIONS")
    assert answer.status == 204
    assert {name for name in answer.headers if name.startswith("access-control")} == set()
    assert answer.headers["vary"] == "origin"


def test_without_the_setting_no_page_may_and_with_a_star_all_may(relay: Relay) -> None:
    headers = {"origin": ORIGIN, "access-control-request-method": "POST"}
    for setting, allowed in (("", None), ("*", "*")):
        other = relay.replica(RELAY_CORS_ORIGINS=setting)
        try:
            for method in ("OPTIONS", "GET"):
                answer = requests.request(method, f"{other.url}/v1/models", headers=headers, timeout=60)
                assert answer.headers.get("access-control-allow-origin") == allowed
                assert "vary" not in answer.headers
        finally:
            other.process.kill()
