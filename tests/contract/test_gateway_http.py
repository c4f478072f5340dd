"""HTTP as the relay speaks it: raw requests over sockets, from the ordinary to the malformed."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from uuid import UUID

import pytest
import requests

from relay.gateway.answer_memory import LARGE_BYTES
from relay.http_protocol import MAX_DISCARDED_BYTES, MAX_HEAD_BYTES
from tests.contract.conftest import Database
from tests.contract.relay_rig import (
    MODEL,
    Customer,
    Provider,
    Relay,
    Replica,
    asks,
    eventually,
)

ORIGIN = "https://chat.example.com"
MAX_BODY = 100_000
QUESTION = json.dumps({"model": MODEL, "messages": asks()}).encode()
# More than the sockets between two processes take.
LARGE_ANSWER = 16 << 20
STREAM = json.dumps({"model": MODEL, "messages": asks(), "stream": True}).encode()


@pytest.fixture(scope="module")
def relay(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    made = Relay(module_database, tmp_path_factory.mktemp("relay"))
    made.channel(provider.url, f"{MODEL},org/model")
    for model in ("to-be-ended", MODEL, "org/model"):
        made.price(model)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def replica_settings() -> dict[str, str]:
    return {
        "RELAY_MAX_BODY_BYTES": str(MAX_BODY),
        "RELAY_CORS_ORIGINS": f"{ORIGIN},http://localhost:3000",
    }


@pytest.fixture(scope="module")
def customer(relay: Relay, replica: Replica) -> Customer:
    return Customer(relay, replica, "http", "5.00")


@dataclass
class Answer:
    """A response, parsed by the standard library."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        found: dict[str, Any] = json.loads(self.body)["error"]
        assert set(found) >= {"message", "type", "param", "code"}
        assert found["message"]
        return found


class Raw:
    """A connection on which bytes are sent as they are."""

    def __init__(self, replica: Replica) -> None:
        host, _, port = replica.url.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> Raw:
        """Send pieces one after the other, so that they arrive apart."""
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(0.05)
            self.socket.sendall(piece)
        return self

    def answer(self, method: str = "POST") -> Answer:
        """The next response."""
        response = http.client.HTTPResponse(self.socket, method=method)
        response.begin()
        return Answer(response.status, response.headers, response.read())

    def closed(self) -> bool:
        """Whether the relay has closed this side, in order."""
        return self.socket.recv(1) == b""


def request(
    customer: Customer | None,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    *headers: str,
    body: bytes = b"",
    version: str = "1.1",
) -> bytes:
    """An HTTP request; with ``customer``'s key."""
    lines = [f"{method} {path} HTTP/{version}", "Host: relay", *headers]
    lines += [f"Authorization: Bearer {customer.key}"] if customer else []
    if body and not any(line.lower().startswith(("content-length", "transfer-")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def ask(customer: Customer, *pieces: bytes, method: str = "POST") -> Answer:
    """The response to one request on a connection of its own."""
    with Raw(customer.replica) as raw:
        return raw.send(*pieces).answer(method)


JSON = "Content-Type: application/json"

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


# ---------------------------------------------------------------------- browsers


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


# ---------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "content_type",
    [
        *("application/json", "application/json; charset=utf-8", 'APPLICATION/JSON;Charset="UTF-8"'),
        *("application/json;charset=iso-8859-1", "application/vnd.x+json", "", None),
    ],
)
def test_content_types_that_are_json(customer: Customer, content_type: str | None) -> None:
    headers = [] if content_type is None else [f"Content-Type: {content_type}"]
    answer = ask(customer, request(customer, "POST", "/v1/chat/completions", *headers, body=QUESTION))
    assert answer.status == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/x", "json"]
)
def test_content_types_that_are_not(customer: Customer, content_type: str) -> None:
    headers = [f"Content-Type: {content_type}"]
    answer = ask(customer, request(customer, "POST", "/v1/chat/completions", *headers, body=QUESTION))
    assert (answer.status, answer.error()["code"]) == (415, "unsupported_media_type")
    assert content_type in answer.error()["message"]
    assert "application/json" in answer.error()["message"]


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "zstd", "deflate, gzip", "identity, gzip"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/pricing/quote"])
def test_compressed_bodies_get_415_and_are_told_so(customer: Customer, encoding: str, path: str) -> None:
    answer = ask(
        customer, request(customer, "POST", path, JSON, f"Content-Encoding: {encoding}", body=b"\x1f\x8b")
    )
    assert (answer.status, answer.error()["code"]) == (415, "unsupported_content_encoding")
    assert "without compression" in answer.error()["message"]
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["identity", ""])
def test_a_body_that_says_it_is_not_compressed(customer: Customer, encoding: str) -> None:
    headers = [JSON, f"Content-Encoding: {encoding}"]
    assert (
        ask(customer, request(customer, "POST", "/v1/chat/completions", *headers, body=QUESTION)).status
        == 200
    )


def test_a_body_in_chunks(customer: Customer) -> None:
    head = request(customer, "POST", "/v1/chat/completions", JSON, "Transfer-Encoding: chunked")
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (QUESTION[:7], QUESTION[7:])]
    assert ask(customer, head, *chunks, b"0\r\n\r\n").status == 200
    assert ask(customer, head + b"".join(chunks) + b"0\r\nX-Trailer: 1\r\n\r\n").status == 200


def test_expect_continue(customer: Customer) -> None:
    headers = [JSON, "Expect: 100-continue", f"Content-Length: {len(QUESTION)}"]
    with Raw(customer.replica) as raw:
        raw.send(request(customer, "POST", "/v1/chat/completions", *headers))
        assert raw.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert raw.send(QUESTION).answer().status == 200


@pytest.mark.parametrize(("length", "key", "status"), [(MAX_BODY + 1, True, 413), (10, False, 401)])
def test_a_refusal_comes_before_the_body_is_sent(
    customer: Customer, length: int, key: bool, status: int
) -> None:
    headers = [JSON, "Expect: 100-continue", f"Content-Length: {length}"]
    with Raw(customer.replica) as raw:
        raw.send(request(customer if key else None, "POST", "/v1/chat/completions", *headers))
        assert raw.answer().status == status
        assert raw.closed(), "the client will not send its body, so nothing can follow on this connection"


@pytest.mark.parametrize("size", [MAX_BODY + 1, 20_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large_does_not_cost_the_client_its_answer(
    customer: Customer, size: int, chunked: bool
) -> None:
    body = b"x" * size
    headers = [JSON, "Transfer-Encoding: chunked"] if chunked else [JSON]
    sent = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body) if chunked else body
    with Raw(customer.replica) as raw:
        answer = raw.send(request(customer, "POST", "/v1/chat/completions", *headers, body=sent)).answer()
        assert (answer.status, answer.error()["code"]) == (413, "request_too_large")
        assert str(MAX_BODY) in answer.error()["message"]
        assert raw.send(request(customer, "GET", "/v1/models")).answer("GET").status == 200


def test_a_body_without_end_is_cut(customer: Customer) -> None:
    block = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with Raw(customer.replica) as raw:
        raw.send(request(customer, "POST", "/v1/chat/completions", JSON, "Transfer-Encoding: chunked"))
        assert not can_send(raw, block * 16, 2 * MAX_DISCARDED_BYTES)


def can_send(raw: Raw, block: bytes, size: int) -> bool:
    """Whether ``size`` bytes can be sent, before the relay closes the connection."""
    try:
        for _ in range(size // len(block)):
            raw.send(block)
    except ConnectionError:
        return False
    return True


LIES = [
    ("Content-Length: 5", 400),  # the rest of the body is another request, and none
    ("Content-Length: -1", 400),
    ("Content-Length: 5\r\nContent-Length: 6", 400),
    ("Content-Length: ten", 400),
    ("Content-Length: 99999999999999999999999", 400),
    ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
    ("Transfer-Encoding: gzip", 400),
    ("Transfer-Encoding: gzip, chunked", 415),
    ("Content-Length: 0", 400),
]


@pytest.mark.parametrize(("header", "status"), LIES)
def test_lengths_that_lie(customer: Customer, header: str, status: int) -> None:
    data = request(customer, "POST", "/v1/chat/completions", JSON, header)
    with Raw(customer.replica) as raw:
        answer = raw.send(data + (b"5\r\nhello\r\n0\r\n\r\n" if "chunked" in header else QUESTION)).answer()
        assert answer.status == status
        assert answer.error()["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not a valid JSON object"),
        (b"null", "not a valid JSON object"),
        (b'["model"]', "Expected `object`"),
        (b'"text"', "Expected `object`"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (QUESTION.replace(b"call", b"c\xe4ll"), "not UTF-8"),
        (QUESTION.replace(b"call", b"c\x00ll"), "not a valid JSON object"),
        (QUESTION + b"}", "not a valid JSON object"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper"),
        (b"[" * 90_000, "nested deeper"),
        (b'{"model":"m","messages":[],"max_tokens":1e999}', "messages"),
    ],
)
def test_bodies_that_cannot_be_read(customer: Customer, body: bytes, says: str) -> None:
    answer = ask(customer, request(customer, "POST", "/v1/chat/completions", JSON, body=body))
    assert answer.status == 400
    assert says in answer.error()["message"]


@pytest.fixture
def lenient(provider: Provider) -> Iterator[None]:
    """The provider takes fields that OpenAI itself does not know."""
    provider.control(lenient=True)
    yield
    provider.control()


def test_odd_bodies_that_can_be_read_reach_the_provider(customer: Customer, lenient: None) -> None:
    body = json.loads(QUESTION) | {"user": "half \ud83d", "seed": 10**40, "metadata": {"nul": "\0"}, "new": 1}
    body |= {"max_tokens": 5.0, "audio": None, "moderation": {"model": "m"}, "prompt_cache_retention": "24h"}
    answer = ask(customer, request(customer, body=b"\xef\xbb\xbf" + json.dumps(body).encode()))
    assert answer.status == 200
    assert json.loads(answer.body)["usage"]["completion_tokens"] <= 5


# ---------------------------------------------------------------------- what the provider gets


class Recorder(BaseHTTPRequestHandler):
    """A provider that keeps the bodies it gets."""

    got: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        """Answer any call alike, of the model "large" with a long text."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.got.append(asked)
        text = "x" * (LARGE_ANSWER if asked["model"] == "large" else 1)
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = json.dumps({"id": "1", "model": "m", "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def recorder() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_a_channels_settings_reach_its_provider(relay: Relay, recorder: str, customer: Customer) -> None:
    channels: dict[str, tuple[str, ...]] = {
        "plain": ("--provider", "openai"),
        "other": ("--provider", "deepseek"),
        "picky": ("--provider", "openai", "--output-limit-field", "max_tokens", "--unknown-fields", "drop"),
        "strict": ("--provider", "openai", "--unknown-fields", "refuse"),
    }
    for name, options in channels.items():
        relay.price(f"by-{name}")
        relay.command(
            *("channel", "create", "--name", name, "--base-url", recorder, "--api-key-stdin"),
            *("--models", f"by-{name}", *options),
            stdin="key",
        )
    replica = relay.replica(RELAY_MODEL_MAX_OUTPUT="by-picky=77,*=99")

    def sent(name: str, **more: Any) -> dict[str, Any]:
        Recorder.got.clear()
        body = {"model": f"by-{name}", "messages": asks(), **more}
        headers = {"authorization": f"Bearer {customer.key}"}
        answer = requests.post(f"{replica.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        if answer.status_code != 200:
            assert Recorder.got == []
            found: dict[str, Any] = answer.json()["error"]
            return found
        (got,) = Recorder.got
        return {key: value for key, value in got.items() if key not in ("model", "messages")}

    assert sent("plain", brand_new=1, user="u") == {"max_completion_tokens": 99, "brand_new": 1, "user": "u"}
    assert sent("other", brand_new=1, seed=None) == {"max_tokens": 99, "brand_new": 1}
    assert sent("picky", brand_new=1, user="u") == {"max_tokens": 77, "user": "u"}
    assert sent("picky", max_completion_tokens=5) == {"max_completion_tokens": 5}
    refusal = sent("strict", brand_new=1)
    assert (refusal["param"], refusal["code"]) == ("brand_new", "unknown_parameter")
    assert sent("strict", user="u") == {"max_completion_tokens": 99, "user": "u"}
    customer.balance()  # fails while anything is held
    changed = relay.command("channel", "set", "picky", "--unknown-fields", "usual", "--weight", "2")
    assert (changed["unknown_fields"], changed["output_limit_field"]) == ("", "max_tokens")
    eventually(lambda: sent("picky", brand_new=1) == {"max_tokens": 77, "brand_new": 1})


def test_the_sdk_sends_todays_fields(customer: Customer, lenient: None) -> None:
    answer = customer.sdk.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "anna"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "42"},
        ],
        max_tokens=3,
        moderation={"model": "omni-moderation-latest"},
        prompt_cache_options={"mode": "explicit", "ttl": "30m"},
        prompt_cache_retention="24h",
        verbosity="low",
        extra_body={"top_k": 5, "brand_new": {"x": None}, "audio": None},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 3


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


# ---------------------------------------------------------------------- the administrators' API

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
def administered(relay: Relay) -> Replica:
    return relay.replica(RELAY_ADMIN_TOKEN_HASH=hashlib.sha256(ADMIN.encode()).hexdigest())


@pytest.mark.parametrize("administrator", [False, True])
def test_the_pricing_api_refuses_what_it_cannot_take(
    administered: Replica, customer: Customer, administrator: bool
) -> None:
    key = ADMIN if administrator else customer.key
    faults = []
    with requests.Session() as session:
        session.headers["authorization"] = f"Bearer {key}"
        asked: list[tuple[str, str, Any]] = [(*call, body) for call in PRICING_CALLS for body in DOCUMENTS]
        asked += [("GET", "/api/pricing" + path, None) for path in PRICING_READS]
        asked += [("DELETE", "/api/pricing" + path, None) for path in PRICING_READS if path[0] == "/"]
        for method, path, body in asked:
            data = None if body is None else json.dumps(body).encode()
            answer = session.request(method, administered.url + path, data=data, timeout=60)
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


# ---------------------------------------------------------------------- anything at all

ODD_PATHS = [
    *(
        "/v1/chat/completions",
        "/v1/chat/completions/",
        "/v1/models",
        "/v1/models/x%00y",
        "/healthz",
        "/api/pricing",
    ),
    *(
        "/api/pricing/quote",
        "/api/pricing/999999999999999999999",
        "/api/pricing/1/publish",
        "/",
        "*",
        "//",
        "/%",
        "?",
    ),
    *("/v1/models/%2e%2e", "http://[::1/v1", "/v1/chat/completions?x=%ff", "/v1/models/" + "y" * 3000),
]
ODD_HEADERS = [
    *(
        "Connection: close",
        "Connection: upgrade\r\nUpgrade: h2c",
        "Expect: 100-continue",
        "Expect: 200-maybe",
    ),
    *(
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked, chunked",
        "Content-Length: 7",
        "Content-Length: 0",
    ),
    *(
        "Content-Length: +5",
        "Content-Type: text/html",
        "Content-Encoding: gzip",
        "Host: a\r\nHost: b",
        "Host:",
    ),
    *("X-Forwarded-For: not, an, address", "Range: bytes=0-", "Accept: */*;q=x", "Origin: \x7f", "Cookie: a"),
    *(
        "Accept-Encoding: gzip",
        "X: \x80\xff",
        " folded: x",
        "Authorization: Bearer x",
        "TE: trailers",
        ": empty",
    ),
]
ODD_BODIES = [
    *(
        QUESTION,
        STREAM,
        b"",
        b"{}",
        b"[]",
        b"\x00" * 50,
        b"{" * 3000,
        b"5\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffff\r\nx",
    ),
    QUESTION.replace(b'"role"', b'"role":1,"role"'),
    QUESTION.replace(b'"messages"', b'"n":2.0,"stop":null,"new":[1e400],"messages"'),
    json.dumps({"model": MODEL, "messages": [{"role": "user", "content": [{"type": "file"}]}]}).encode(),
    json.dumps({"model": MODEL, "messages": asks(), "tools": [None]}).encode(),
    json.dumps({"model": MODEL, "messages": asks("\ud800"), "stream": True, "n": 3}).encode(),
]


def odd_request(customer: Customer, draw: random.Random) -> bytes:
    """A request with some of the oddities above, and sometimes with damaged bytes."""
    methods = ["POST"] * 12 + ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "CONNECT", "PATCH", "FOO"]
    path = draw.choice(ODD_PATHS) if draw.random() < 0.4 else "/v1/chat/completions"
    headers = draw.sample(ODD_HEADERS, draw.choice([0, 0, 1, 1, 2, 3]))
    version = draw.choice(["1.1"] * 12 + ["1.0", "0.9", "2.0", "x"])
    known = customer if draw.random() < 0.8 else None
    body = draw.choice(ODD_BODIES)
    data = bytearray(request(known, draw.choice(methods), path, *headers, body=body, version=version))
    for _ in range(draw.choice([0, 0, 0, 0, 1, 3])):
        where = draw.randrange(len(data))
        change = draw.choice(["flip", "cut", "repeat", "end"])
        if change == "flip":
            data[where] = draw.randrange(256)
        elif change == "cut":
            del data[where : where + draw.randrange(1, 20)]
        elif change == "repeat":
            data[where:where] = data[where : where + draw.randrange(1, 50)]
        else:
            del data[where + 1 :]
        data = data or bytearray(b"\n")
    return bytes(data)


def outcome(replica: Replica, data: bytes) -> int:
    """The status of the first answer, or 0 for a clean close without any."""
    with Raw(replica) as raw:
        raw.socket.settimeout(1)
        raw.send(data)
        received = b""
        ended = False
        while b"\r\n\r\n" not in received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") or not ended:
            try:
                block = raw.socket.recv(65536)
            except TimeoutError:
                if ended:
                    raise
                # It waits for more of this request, or the answer is complete and the connection kept.
                raw.socket.settimeout(60)
                raw.socket.shutdown(socket.SHUT_WR)
                ended = True
                continue
            received += block
            if not block:
                break
    final = received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    if not final:
        return 0
    assert final.startswith(b"HTTP/1.1 "), final[:100]
    return int(final[9:12])


def test_any_request_gets_an_answer_or_a_clean_close(relay: Relay, customer: Customer) -> None:
    replica = relay.replica(RELAY_MAX_BODY_BYTES=str(MAX_BODY))
    draw = random.Random(20261126)  # noqa: S311
    odd = [odd_request(customer, draw) for _ in range(320)]
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda data: outcome(replica, data), odd))
    told = {status: statuses.count(status) for status in sorted(set(statuses))}
    assert 500 not in told, [data for data, status in zip(odd, statuses, strict=True) if status == 500]
    assert all(status == 0 or 200 <= status <= 503 for status in told), told
    assert told.get(0, 0) < len(odd) / 5, told
    assert min(told.get(status, 0) for status in (200, 400, 401, 404, 405)) >= 3, told
    customer.balance()  # fails while anything is held
    eventually(lambda: replica.metric("relay_inflight_requests") == 0)
    assert replica.ready()
    lines = [json.loads(line) for line in Path(replica.process.log).read_text().splitlines()]
    bad = [line for line in lines if line["level"] not in ("info", "warning")]
    assert bad == [], bad
    warned = [line for line in lines if line["level"] == "warning"]
    assert all("reason" in line for line in warned), warned


def test_large_requests_are_bounded_together(relay: Relay) -> None:
    """Large ones are refused while others fill the memory, and served afterwards; small ones are served."""
    replica = relay.replica(RELAY_BODIES_BYTES=str(1 << 20))
    customer = Customer(relay, replica, "bodies", "5.00")
    text = json.dumps({"model": MODEL, "messages": asks("x" * 300_000)}).encode()
    large = request(customer, "POST", "/v1/chat/completions", JSON, body=text)
    assert ask(customer, large).status == 200
    begun = request(customer, "POST", "/v1/chat/completions", JSON, "Content-Length: 600000") + b" " * 500_000
    with Raw(replica) as first, Raw(replica) as second:
        for raw in (first, second):
            raw.send(begun)
        eventually(lambda: replica.metric("relay_request_body_bytes") == 1_000_000)
        refused = ask(customer, large)
        assert (refused.status, refused.error()["code"]) == (503, "server_busy")
        assert refused.headers["retry-after"] == "2"
        assert ask(customer, request(customer, body=QUESTION)).status == 200
    eventually(lambda: replica.metric("relay_request_body_bytes") == 0)
    assert ask(customer, large).status == 200


def test_large_answers_wait_for_each_other(relay: Relay, recorder: str) -> None:
    """One beyond the memory holds up the next, while its customer reads nothing; small ones pass."""
    relay.price("large")
    create = ("channel", "create", "--name", "large", "--provider", "openai", "--base-url", recorder)
    relay.command(*create, "--api-key-stdin", "--models", "large", stdin="key")
    replica = relay.replica(RELAY_ANSWERS_BYTES=str(1 << 20))
    customer = Customer(relay, replica, "answers", "5.00")
    asked = request(customer, body=json.dumps({"model": "large", "messages": asks()}).encode())

    def held() -> float:
        return replica.metric("relay_answer_body_bytes")

    with Raw(replica) as first, Raw(replica) as second:
        first.send(asked)
        eventually(lambda: held() > LARGE_ANSWER)
        second.send(asked)
        eventually(lambda: held() > LARGE_ANSWER + LARGE_BYTES)
        assert ask(customer, request(customer, body=QUESTION)).status == 200
        assert held() < LARGE_ANSWER + (1 << 20)
        for raw in (first, second):
            answer = raw.answer()
            assert (answer.status, len(answer.body) > LARGE_ANSWER) == (200, True)
    eventually(lambda: held() == 0)
    calls = [row for row in relay.usage(customer.account) if row["model"] == "large"]
    assert [row["outcome"] for row in calls] == ["ok", "ok"]
