"""What a request of HTTP may look like: versions, methods, paths, heads and keys."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from relay.http_protocol import MAX_HEAD_BYTES
from tests.contract.raw_http.raw import JSON, QUESTION, STREAM, Raw, ask, request
from tests.contract.relay_rig import MODEL, Customer, asks

# ---------------------------------------------------------------------- upgrades and versions


UPGRADES = [
    ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    ("Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA=="),
    ("Connection: keep-alive, Upgrade", "Upgrade: TLS/1.0, h2c"),
    ("Upgrade: h2c",),
]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("apart", [False, True])
def test_an_upgrade_is_ignored_and_the_call_answered(
    customer: Customer, upgrade: tuple[str, ...], apart: bool
) -> None:
    whole = request(customer, "POST", "/v1/chat/completions", JSON, *upgrade, body=QUESTION)
    head, _, body = whole.partition(b"\r\n\r\n")
    pieces = [head + b"\r\n\r\n", body[:20], body[20:]] if apart else [whole]
    with Raw(customer.replica) as raw:
        answer = raw.send(*pieces).answer()
        assert answer.status == 200
        assert json.loads(answer.body)["choices"]
        # The connection goes on.
        assert raw.send(request(customer, "GET", "/v1/models", *upgrade)).answer("GET").status == 200
        assert raw.send(request(customer, "POST", "/v1/nothing")).answer().status == 404


def test_a_chunked_body_with_an_upgrade_is_read(customer: Customer) -> None:
    head = request(customer, "POST", "/v1/chat/completions", JSON, *UPGRADES[0], "Transfer-Encoding: chunked")
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(QUESTION), QUESTION)
    assert ask(customer, head + chunks).status == 200


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("body", [QUESTION, STREAM])
def test_a_client_of_http_1_0_gets_no_chunks(customer: Customer, keep: bool, body: bytes) -> None:
    headers = [JSON, *(["Connection: keep-alive"] if keep else [])]
    with Raw(customer.replica) as raw:
        raw.send(request(customer, "POST", "/v1/chat/completions", *headers, body=body, version="1.0"))
        answer = raw.answer()
        assert (answer.status, answer.headers["transfer-encoding"]) == (200, None)
        assert answer.headers["connection"] == "close"
        assert raw.closed()
    if body is STREAM:
        assert answer.headers["content-length"] is None
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert b"\r\n" not in answer.body
    else:
        assert len(answer.body) == int(answer.headers["content-length"])
        assert json.loads(answer.body)["choices"]


def test_connect_is_refused(customer: Customer) -> None:
    answer = ask(customer, b"CONNECT relay:443 HTTP/1.1\r\nHost: relay\r\n\r\n", method="CONNECT")
    assert (answer.status, answer.error()["code"]) == (405, "method_not_allowed")


# ---------------------------------------------------------------------- methods and paths


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{MODEL}", "/healthz", "/livez", "/api/pricing"])
def test_head_is_get_without_its_body(customer: Customer, path: str) -> None:
    with Raw(customer.replica) as raw:
        got = raw.send(request(customer, "GET", path)).answer("GET")
        head = raw.send(request(customer, "HEAD", path)).answer("HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.body))
        assert head.headers["content-type"] == got.headers["content-type"]
        assert raw.send(request(customer, "GET", path)).answer("GET").status == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST, OPTIONS"),
        ("HEAD", "/v1/chat/completions", "POST, OPTIONS"),
        ("PUT", "/v1/chat/completions", "POST, OPTIONS"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("DELETE", f"/v1/models/{MODEL}", "GET, HEAD, OPTIONS"),
        ("POST", "/healthz", "GET, HEAD, OPTIONS"),
        ("TRACE", "/livez", "GET, HEAD, OPTIONS"),
        ("PATCH", "/api/pricing", "GET, POST, PUT, DELETE, HEAD, OPTIONS"),
    ],
)
def test_other_methods_get_405_with_allow(customer: Customer, method: str, path: str, allow: str) -> None:
    answer = ask(customer, request(customer, method, path), method=method)
    assert (answer.status, answer.headers["allow"]) == (405, allow)
    if method != "HEAD":
        assert answer.error()["code"] == "method_not_allowed"
        assert allow in answer.error()["message"]


@pytest.mark.parametrize(
    ("path", "allow"), [("/v1/chat/completions", "POST, OPTIONS"), ("*", "GET, HEAD, POST, OPTIONS")]
)
def test_options_needs_no_key(customer: Customer, path: str, allow: str) -> None:
    answer = ask(customer, request(None, "OPTIONS", path), method="OPTIONS")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, allow, b"")
    assert answer.headers["content-length"] is None
    assert answer.headers["access-control-allow-origin"] is None


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/models/", "//v1/models", "/v1//models", "//v1///models//", "/v1/models?limit=1000"),
        *("http://relay/v1/models", "/v1/%6dodels"),
    ],
)
def test_slashes_too_many_are_ignored(customer: Customer, path: str) -> None:
    answer = ask(customer, request(customer, "GET", path), method="GET")
    assert answer.status == 200
    assert {model["id"] for model in json.loads(answer.body)["data"]} >= {MODEL, "org/model"}


@pytest.mark.parametrize("name", ["org/model", "org%2Fmodel", "org/model/"])
def test_a_models_name_may_have_a_slash(customer: Customer, name: str) -> None:
    answer = ask(customer, request(customer, "GET", f"/v1/models/{name}"), method="GET")
    assert json.loads(answer.body)["id"] == "org/model"


def test_a_call_with_slashes_too_many_is_a_call(customer: Customer) -> None:
    assert (
        ask(customer, request(customer, "POST", "//v1/chat//completions/", JSON, body=QUESTION)).status == 200
    )


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/nothing", "/v1/../metrics", "/v1/nothing/x", "/%ff%00", "/" + "x" * 9000],
)
def test_unknown_paths(customer: Customer, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = ask(customer, request(None, method, path), method=method)
        assert (answer.status, answer.error()["code"]) == (404, "unknown_url")
        assert len(answer.body) < 1500


# ---------------------------------------------------------------------- names of calls


def test_every_answer_has_a_request_id(customer: Customer) -> None:
    key = request(customer, "POST", "/v1/chat/completions", JSON, body=QUESTION)
    asked = [
        (key, "POST", 200),
        (request(customer, "POST", "/v1/chat/completions", JSON, body=STREAM), "POST", 200),
        (request(customer, "POST", "/v1/chat/completions", JSON, body=b"{}"), "POST", 400),
        (request(None, "POST", "/v1/chat/completions", JSON, body=QUESTION), "POST", 401),
        (request(customer, "GET", "/v1/models"), "GET", 200),
        (request(customer, "GET", "/v1/models/none"), "GET", 404),
        (request(None, "GET", "/healthz"), "GET", 200),
        (request(None, "HEAD", "/livez"), "HEAD", 200),
        (request(None, "GET", "/nothing"), "GET", 404),
        (request(None, "DELETE", "/v1/models"), "DELETE", 405),
        (request(None, "OPTIONS", "/v1/models"), "OPTIONS", 204),
        (request(customer, "GET", "/api/pricing"), "GET", 200),
        (request(customer, "GET", "/api/pricing/1"), "GET", 403),
        (request(None, "GET", "/api/pricing"), "GET", 401),
        (b"GARBAGE\r\n\r\n", "GET", 400),
        (request(None, "GET", "/healthz", "X: " + "y" * MAX_HEAD_BYTES), "GET", 431),
    ]
    ids = []
    for data, method, status in asked:
        answer = ask(customer, data, method=method)
        assert answer.status == status
        found = answer.headers.get_all("x-request-id")
        assert found is not None
        assert len(found) == 1
        ids.append(UUID(found[0]))
    assert {made.version for made in ids} == {7}
    assert len(set(ids)) == len(asked)


# ---------------------------------------------------------------------- heads


def test_heads_too_large_are_told_so(customer: Customer) -> None:
    long = "x" * MAX_HEAD_BYTES
    for data in (
        request(customer, "GET", f"/v1/models?{long}"),
        request(customer, "GET", "/v1/models", f"X-Long: {long}"),
        request(customer, "GET", "/v1/models", *[f"X-{number}: {'y' * 100}" for number in range(700)]),
    ):
        answer = ask(customer, data, method="GET")
        assert (answer.status, answer.error()["code"]) == (431, "headers_too_large")
        assert str(MAX_HEAD_BYTES) in answer.error()["message"]


def test_a_head_without_end_is_cut(customer: Customer) -> None:
    with Raw(customer.replica) as raw:
        raw.send(b"GET /v1/models HTTP/1.1\r\nX: ", *[b"y" * (MAX_HEAD_BYTES // 4)] * 5)
        assert raw.answer("GET").status == 431
        assert raw.closed()


def test_large_heads_that_are_not_too_large(customer: Customer) -> None:
    data = request(customer, "GET", "/v1/models", "X-Long: " + "x" * (MAX_HEAD_BYTES - 1000))
    assert ask(customer, data[:30_000], data[30_000:], method="GET").status == 200


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\r\n\r\n\x00", "Invalid method"),
        (b"hello\r\n\r\n", "Invalid method"),
        (b"GET  HTTP/1.1\r\n\r\n", "url"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "Invalid method"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI"),
        (b"GET /v1/models HTTP/3.0\r\n\r\n", "version"),
        (b"GET /v1/models HTTP/1.1\r\nA b: c\r\n\r\n", "header"),
        (b"GET /v1/models HTTP/1.1\r\nA: \x00\r\n\r\n", "header value"),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", "url"),
        (b"GET http://relay HTTP/1.1\r\nHost: x\r\n\r\n", "the URL has no path"),
        (b"BREW /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", "Invalid method"),
    ],
)
def test_what_is_not_http_gets_an_error_in_our_shape(customer: Customer, data: bytes, says: str) -> None:
    with Raw(customer.replica) as raw:
        answer = raw.send(data).answer("GET")
        assert (answer.status, answer.error()["code"]) == (400, "invalid_http")
        assert answer.headers["connection"] == "close"
        assert says in answer.error()["message"]
        assert raw.closed()


@pytest.mark.parametrize("garbage", [b"GARBAGE\r\n\r\n", b"\x00", b"POST /v1/models HTTP/1.1\r\n:\r\n"])
@pytest.mark.parametrize("later", [False, True])
def test_garbage_after_a_request_does_not_cost_its_answer(
    customer: Customer, garbage: bytes, later: bool
) -> None:
    slow = json.loads(QUESTION) | {"messages": asks('provider:{"latency_ms": 200}')}
    data = request(customer, "POST", "/v1/chat/completions", JSON, body=json.dumps(slow).encode())
    with Raw(customer.replica) as raw:
        raw.send(*([data, garbage] if later else [data + garbage]))
        answer = raw.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert raw.closed()


# ---------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "headers",
    [
        *(
            ["Authorization: Bearer"],
            ["Authorization: Bearer "],
            ["Authorization:"],
            ["Authorization: Basic eA=="],
        ),
        *(["Authorization: Bearer \xe9"], ["Authorization: " + "x" * 5000]),
    ],
)
def test_keys_that_are_none(customer: Customer, headers: list[str]) -> None:
    answer = ask(customer, request(None, "GET", "/v1/models", *headers), method="GET")
    assert (answer.status, answer.error()["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/api/pricing"])
def test_two_keys_are_refused_and_one_twice_is_one(customer: Customer, path: str) -> None:
    method = "POST" if "chat" in path else "GET"
    for other in ("Bearer sk-relay-other", "Bearer"):
        headers = [JSON, f"Authorization: {other}"]
        answer = ask(customer, request(customer, method, path, *headers, body=QUESTION), method=method)
        assert answer.status == 401
        assert "more than once" in answer.error()["message"]
    headers = [JSON, f"Authorization: Bearer {customer.key}"]
    answer = ask(customer, request(customer, method, path, *headers, body=QUESTION), method=method)
    assert answer.status == 200
