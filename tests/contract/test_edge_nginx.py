"""The edge's configuration in a real nginx: what it passes, refuses, retries, streams and logs."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import urllib3

from deploys.run import local_edge
from relay.identity.tokens import mint
from tests.contract.conftest import free_port
from tests.contract.edge_rig import (
    CONSOLE,
    JSON,
    NAME,
    OWN_NAMES,
    STATUS_PAGE,
    TOOLS,
    DeadHost,
    Edge,
    FakeRelay,
    running_edge,
)
from tests.contract.relay_rig import eventually

CHAT = "/v1/chat/completions"
SECURITY_HEADERS = {
    "Strict-Transport-Security": "max-age=63072000",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


@pytest.fixture
def relay() -> Iterator[FakeRelay]:
    fake = FakeRelay()
    yield fake
    fake.close()


@pytest.fixture
def second_relay() -> Iterator[FakeRelay]:
    fake = FakeRelay()
    yield fake
    fake.close()


@pytest.fixture
def dead_host() -> Iterator[DeadHost]:
    host = DeadHost()
    yield host
    host.close()


@pytest.fixture
def edge(tmp_path: Path, relay: FakeRelay) -> Iterator[Edge]:
    with running_edge(tmp_path, [relay.address]) as running:
        yield running


@pytest.fixture(scope="module")
def standing_relay() -> Iterator[FakeRelay]:
    fake = FakeRelay()
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def standing_edge(tmp_path_factory: pytest.TempPathFactory, standing_relay: FakeRelay) -> Iterator[Edge]:
    """One for all tests that leave nothing behind: each start takes 0.2 s of CPU. It limits nobody's rate."""
    unlimited = {"client_rate": 1000, "client_burst": 1000}
    directory = tmp_path_factory.mktemp("standing-edge")
    with running_edge(directory, [standing_relay.address], **unlimited) as running:
        yield running


@pytest.fixture(scope="module")
def lonely_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """One for all tests that need no relay."""
    with running_edge(tmp_path_factory.mktemp("lonely-edge"), [f"127.0.0.1:{free_port()}"]) as running:
        yield running


def error_of(answer: urllib3.BaseHTTPResponse) -> dict[str, object]:
    assert answer.headers["Content-Type"] == "application/json"
    error = json.loads(answer.data)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def raw_request(listen: str, request: bytes) -> bytes:
    host, _, port = listen.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_replaces_what_a_client_says_about_itself(edge: Edge, relay: FakeRelay) -> None:
    forged = JSON | {"X-Forwarded-For": "203.0.113.9", "X-Request-Id": "forged", "Forwarded": "for=x"}
    answer = edge.client().request("POST", CHAT, body=b"{}", headers=forged)
    assert answer.status == 200
    headers = relay.calls[0]["headers"]
    assert headers["X-Forwarded-For"] == "127.0.0.1"
    assert headers["X-Forwarded-Proto"] == "https"
    assert "Forwarded" not in headers
    assert len(headers["X-Request-Id"]) == 32


def test_a_call_has_the_relays_name_and_without_a_relay_the_edges(edge: Edge) -> None:
    answered = edge.client().request("POST", CHAT, body=b"{}")
    assert answered.headers.getlist("X-Request-Id") == ["the-relay's-own"]
    refused = edge.client().request("POST", "/nothing")
    assert len(refused.headers["X-Request-Id"]) == 32
    logged = [entry["request_id"] for entry in edge.access_log(2)]
    assert logged == ["the-relay's-own", refused.headers["X-Request-Id"]]


def test_customers_may_ask_what_a_call_would_cost(edge: Edge, relay: FakeRelay) -> None:
    edge.client().request("POST", "/api/pricing/quote", body=b"{}")
    assert len(relay.calls) == 1


@pytest.mark.parametrize("path", [CHAT, "/nothing", "/healthz"])
def test_security_headers_are_on_every_answer(standing_edge: Edge, path: str) -> None:
    answer = standing_edge.client().request("GET", path)
    assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert answer.headers["Server"] == "nginx"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/metrics",
        "/v1",
        "/stub_status",
        "/_edge/error",
        "/v1/../metrics",
        "/v1/%2e%2e/metrics",
        "/console",
        "/api/pricing",
        "/api/pricing/quote/1",
    ],
)
def test_other_paths_never_reach_the_relay(standing_edge: Edge, standing_relay: FakeRelay, path: str) -> None:
    before = len(standing_relay.calls)
    host, _, port = standing_edge.settings.https_listen.rpartition(":")
    context = ssl.create_default_context(cafile=str(standing_edge.ca_file))
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404")
    assert b'"code":"not_found"' in answer
    assert len(standing_relay.calls) == before


def test_http_is_redirected_and_keeps_the_method(edge: Edge, relay: FakeRelay) -> None:
    request = f"POST {CHAT} HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answer = raw_request(edge.settings.http_listen, request.encode())
    assert answer.startswith(b"HTTP/1.1 308")
    assert f"Location: https://{NAME}{CHAT}".encode() in answer
    assert relay.calls == []


@pytest.mark.parametrize(
    ("name", "path", "more"),
    [
        (NAME, CHAT, ""),
        (NAME, "/edge-health", ""),
        ("other.test", "/edge-health", ""),
        (NAME, CHAT, "Content-Length: wrong\r\n"),
    ],
)
def test_plain_http_is_never_told_hsts(edge: Edge, name: str, path: str, more: str) -> None:
    """RFC 6797, section 7.2; the other headers are there."""
    request = f"GET {path} HTTP/1.1\r\nHost: {name}\r\n{more}Connection: close\r\n\r\n"
    answer = raw_request(edge.settings.http_listen, request.encode()).lower()
    assert b"x-content-type-options: nosniff" in answer
    assert b"strict-transport-security" not in answer


def test_strangers_names_get_no_certificate_and_no_answer(edge: Edge) -> None:
    context = ssl.create_default_context(cafile=str(edge.ca_file))
    context.check_hostname = False
    host, _, port = edge.settings.https_listen.rpartition(":")
    for name in ("other.test", None):
        with (
            socket.create_connection((host, int(port)), timeout=60) as plain,
            pytest.raises(ssl.SSLError, match="unrecognized name"),
        ):
            context.wrap_socket(plain, server_hostname=name)
    try:
        answer = raw_request(edge.settings.http_listen, b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
    except ConnectionResetError:
        answer = b""
    assert answer == b""


@pytest.mark.parametrize(("version", "accepted"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_tls_versions(standing_edge: Edge, version: str, accepted: bool) -> None:
    connect = ["openssl", "s_client", "-connect", standing_edge.settings.https_listen, "-servername", NAME]
    shown = subprocess.run(
        [*connect, version, "-cipher", "ALL:@SECLEVEL=0"],
        input=b"",
        capture_output=True,
        timeout=10,
        check=False,
    )
    assert (b"Cipher is (NONE)" not in shown.stdout) is accepted


def test_events_leave_as_they_come(edge: Edge, relay: FakeRelay) -> None:
    relay.behave = "events"
    answer = edge.client().request("POST", CHAT, body=b"{}", preload_content=False)
    # The second event is not written before the first has been read here.
    assert answer.read1() == b"data: first\n\n"
    relay.release.set()
    assert answer.read() == b"data: [DONE]\n\n"


@pytest.fixture
def strict_edge(tmp_path: Path, relay: FakeRelay) -> Iterator[Edge]:
    """One call a second after a burst of 20: a slow machine does not reach it by being slow."""
    with running_edge(tmp_path, [relay.address], client_rate=1) as running:
        yield running


def test_a_client_over_its_rate_gets_429_and_others_are_served(strict_edge: Edge) -> None:
    client = strict_edge.client()
    eager = JSON | {"Authorization": "Bearer eager"}
    answers = [client.request("POST", CHAT, body=b"{}", headers=eager) for _ in range(40)]
    refused = [answer for answer in answers if answer.status == 429]
    assert 5 <= len(refused) <= 19
    assert error_of(refused[0])["code"] == "rate_limit_exceeded"
    assert refused[0].headers["Retry-After"] == "1"
    assert refused[0].headers["Strict-Transport-Security"]
    calm = JSON | {"Authorization": "bearer calm"}
    assert client.request("POST", CHAT, body=b"{}", headers=calm).status == 200


def test_without_a_token_the_address_is_the_client(strict_edge: Edge) -> None:
    client = strict_edge.client()
    statuses = [client.request("GET", "/v1/models").status for _ in range(40)]
    assert statuses[0] == 200
    assert 5 <= statuses.count(429) <= 19


def test_many_tokens_do_not_escape_the_limit_of_one_address(tmp_path: Path, relay: FakeRelay) -> None:
    with running_edge(tmp_path, [relay.address], address_rate=1, address_burst=5) as edge:
        client = edge.client()
        statuses = [
            client.request("GET", "/v1/models", headers={"Host": NAME, "Authorization": f"Bearer {n}"}).status
            for n in range(20)
        ]
    assert 4 <= statuses.count(429) <= 14


def test_calls_of_one_address_at_a_time_are_limited_whatever_their_keys(
    tmp_path: Path, relay: FakeRelay
) -> None:
    relay.behave = "silent"
    with running_edge(tmp_path, [relay.address], address_connections=3, read_timeout="20s") as edge:
        with ThreadPoolExecutor(6) as pool:
            calls = [
                pool.submit(
                    edge.client().request, "POST", CHAT, body=b"{}", headers=JSON | {"x-api-key": f"sk-{n}"}
                )
                for n in range(6)
            ]
            ended = (call for call in as_completed(calls, timeout=60) if call.result().status == 429)
            refused = list(islice(ended, 3))
            relay.release.set()
        assert len(refused) == 3
        log = edge.access_log(6)
        assert [entry["refused_by"] for entry in log if entry["status"] == "429"] == ["connections"] * 3


def test_a_body_that_is_too_large_gets_413(edge: Edge, relay: FakeRelay) -> None:
    answer = edge.client().request("POST", CHAT, body=b"x" * (1024 * 1024 + 1))
    assert answer.status == 413
    assert error_of(answer)["code"] == "request_too_large"
    assert relay.calls == []


def test_a_malformed_request_gets_400_in_json(edge: Edge) -> None:
    answer = raw_request(edge.settings.https_listen, f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"code":"bad_request"' in answer


def test_no_relay_is_502(lonely_edge: Edge) -> None:
    answer = lonely_edge.client().request("POST", CHAT, body=b"{}")
    assert (answer.status, error_of(answer)["code"]) == (502, "bad_gateway")


def test_a_silent_relay_is_504_and_not_asked_again(
    tmp_path: Path, relay: FakeRelay, second_relay: FakeRelay
) -> None:
    relay.behave = second_relay.behave = "silent"
    with running_edge(tmp_path, [relay.address, second_relay.address], read_timeout="1s") as edge:
        answer = edge.client().request("POST", CHAT, body=b"{}")
    assert (answer.status, error_of(answer)["code"]) == (504, "gateway_timeout")
    assert len(relay.calls) + len(second_relay.calls) == 1


def test_a_call_that_was_not_sent_goes_to_another_relay(
    tmp_path: Path, relay: FakeRelay, dead_host: DeadHost
) -> None:
    hosts = [dead_host.address, relay.address]
    with running_edge(tmp_path, hosts, client_rate=1000, fail_timeout="60s") as edge:
        client = edge.client()
        started = time.monotonic()
        statuses = [client.request("POST", CHAT, body=b"{}").status for _ in range(30)]
        elapsed = time.monotonic() - started
        assert statuses == [200] * 30
        assert len(relay.calls) == 30
        # Two connections time out after a second each; then the dead host is left alone.
        assert elapsed < 40
        retried = [entry for entry in edge.access_log(30) if "," in entry["upstream"]]
        assert 1 <= len(retried) <= 2


def test_a_call_that_was_sent_is_never_sent_again(
    tmp_path: Path, relay: FakeRelay, second_relay: FakeRelay
) -> None:
    relay.behave = second_relay.behave = "hang_up"
    with running_edge(tmp_path, [relay.address, second_relay.address]) as edge:
        answer = edge.client().request("POST", CHAT, body=b"{}")
    assert (answer.status, error_of(answer)["code"]) == (502, "bad_gateway")
    assert len(relay.calls) + len(second_relay.calls) == 1


def test_no_connection_is_reused_after_three_idle_seconds(edge: Edge, relay: FakeRelay) -> None:
    client = edge.client()
    # Each of nginx's workers keeps connections of its own.
    for _ in range(12):
        client.request("POST", CHAT, body=b"{}")
    time.sleep(3.3)
    client.request("POST", CHAT, body=b"{}")
    ports = [call["port"] for call in relay.calls]
    assert len(set(ports[:-1])) < 12
    assert ports[-1] not in ports[:-1]


def test_logs_hold_no_secret(tmp_path: Path, dead_host: DeadHost) -> None:
    with running_edge(tmp_path, [dead_host.address, f"127.0.0.1:{free_port()}"]) as edge:
        headers = JSON | {"Authorization": "Bearer sk-canary-header"}
        for _ in range(40):
            edge.client().request("POST", CHAT + "?key=sk-canary-query", body=b"canary-body", headers=headers)
        entry = edge.access_log(40)[0]
        logs = edge.log_text()
    assert "canary" not in logs
    assert entry["path"] == CHAT
    assert entry["key_prefix"] == "unknown"
    assert entry["upstream_status"]


def test_the_log_shows_of_a_token_what_the_relay_calls_public(edge: Edge) -> None:
    token = mint()
    headers = JSON | {"Authorization": f"bearer {token.clear}"}
    edge.client().request("POST", CHAT, body=b"{}", headers=headers)
    assert edge.access_log(1)[0]["key_prefix"] == token.prefix
    assert token.clear[len(token.prefix) :] not in edge.log_text()


def test_a_broken_configuration_does_not_pass_the_test(edge: Edge) -> None:
    (edge.directory / "relay/upstream.conf").write_text("upstream relay {}\n")
    tested = subprocess.run(
        [local_edge.nginx_program(), "-t", "-c", str(edge.directory / "nginx.conf")],
        capture_output=True,
        check=False,
    )
    assert tested.returncode != 0
    for path in ("/healthz", "/openapi.json"):
        assert edge.client().request("GET", path).status == 200


def test_counters_for_the_exporter(edge: Edge) -> None:
    answer = urllib3.request("GET", f"http://{edge.settings.status_listen}/stub_status")
    assert b"Active connections" in answer.data


API_PATHS = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "gemini": "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
}


def shape_of(answer: bytes, status: int, request_id: str) -> str:
    """Which API's clients can parse an error; all of them find its status and the request id in it."""
    body = json.loads(answer)
    assert request_id in json.dumps(body)
    assert len(body["error"]["message"]) > 20
    if body.get("type") == "error":
        assert set(body) == {"type", "error", "request_id"}
        assert set(body["error"]) == {"type", "message"}
        return "anthropic"
    if set(body["error"]) == {"message", "type", "param", "code"}:
        return "openai"
    assert set(body["error"]) == {"code", "message", "status", "details"}
    assert body["error"]["code"] == status
    return "gemini"


def split_answer(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


def bad_requests(path: str) -> dict[int, bytes]:
    """Requests that the edge itself answers, by the status that it gives."""
    head = f"HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n"
    typed = f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n"
    join = "&" if "?" in path else "?"
    return {
        400: f"POST {path}{join}x=%3Cscript%3E {typed}\r\n{{}}".encode(),
        403: f"POST {path} {typed}X: ${{jndi:ldap://x}}\r\n\r\n{{}}".encode(),
        413: f"POST {path} {head}Content-Type: application/json\r\nContent-Length: 99999999\r\n\r\n".encode(),
        414: f"GET {path}{join}x={'a' * 20_000} {head}\r\n".encode(),
        415: f"POST {path} {head}Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}".encode(),
        431: f"GET {path} {head}X: {'a' * 20_000}\r\n\r\n".encode(),
    }


@pytest.mark.parametrize("status", [400, 403, 413, 415, 431])
@pytest.mark.parametrize("api", API_PATHS)
def test_errors_have_the_shape_of_the_api(standing_edge: Edge, api: str, status: int) -> None:
    answered, headers, body = split_answer(standing_edge.raw(bad_requests(API_PATHS[api])[status]))
    assert answered == status
    assert headers["content-type"] == "application/json"
    assert headers["strict-transport-security"] == SECURITY_HEADERS["Strict-Transport-Security"]
    assert shape_of(body, status, headers["x-request-id"]) == api
    logged = standing_edge.logged(headers["x-request-id"])
    assert logged["status"] == str(status)
    assert logged["refused_by"] == ("waf" if status in (400, 403, 415) else "")
    assert logged["method"] in ("GET", "POST")


def test_a_path_that_is_too_long_has_an_error_too(edge: Edge) -> None:
    answered, headers, body = split_answer(edge.raw(bad_requests(CHAT)[414]))
    assert answered == 414
    assert shape_of(body, 414, headers["x-request-id"]) == "openai"


@pytest.mark.parametrize("api", API_PATHS)
def test_no_relay_too_many_calls_and_silence_have_the_shape_of_the_api(
    tmp_path: Path, relay: FakeRelay, api: str
) -> None:
    relay.behave = "silent"
    upstreams = [f"127.0.0.1:{free_port()}"]
    with running_edge(tmp_path / "down", upstreams) as edge:
        _shaped(edge, api, 502, retry_after="1")
    with running_edge(
        tmp_path / "slow", [relay.address], read_timeout="1s", client_rate=1, client_burst=1
    ) as edge:
        _shaped(edge, api, 504, retry_after=None)
        edge.client().request("POST", API_PATHS[api], body=b"{}", headers=JSON | {"x-api-key": "a"})
        _shaped(edge, api, 429, retry_after="1", times=9)


def _shaped(edge: Edge, api: str, status: int, retry_after: str | None, times: int = 1) -> None:
    """One of so many calls at once is answered so."""
    with ThreadPoolExecutor(times) as pool:
        answers = list(
            pool.map(lambda _: edge.client().request("POST", API_PATHS[api], body=b"{}"), range(times))
        )
    answer = next(one for one in answers if one.status == status)
    assert shape_of(answer.data, status, answer.headers["X-Request-Id"]) == api
    assert answer.headers.get("Retry-After") == retry_after


@pytest.mark.parametrize(
    ("path", "headers", "api"),
    [
        ("/v1/models", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/v1/models/m:generateContent", {}, "gemini"),
        ("/v1/models/m%3AgenerateContent?key=k", {}, "gemini"),
        ("/v1beta/models/m%3agenerateContent?key=k", {}, "gemini"),
        ("/v1/models", {"x-goog-api-key": "k"}, "gemini"),
        ("/v1/models", {}, "openai"),
        ("/v1/messages/batches", {}, "anthropic"),
        ("/v1/messagesx", {}, "openai"),
        ("/nothing", {}, "openai"),
        ("/v1beta", {}, "gemini"),
        ("/upload/v1beta", {}, "gemini"),
    ],
)
def test_the_api_is_told_by_path_or_header(
    lonely_edge: Edge, path: str, headers: dict[str, str], api: str
) -> None:
    answer = lonely_edge.client().request("GET", path, headers={"Host": NAME} | headers)
    assert answer.status in (404, 502)
    assert shape_of(answer.data, answer.status, answer.headers["X-Request-Id"]) == api


CREDENTIALS: dict[str, Callable[[str], dict[str, Any]]] = {
    "bearer": lambda key: {"headers": JSON | {"Authorization": f"Bearer {key}"}},
    "without_bearer": lambda key: {"headers": JSON | {"Authorization": key}},
    "x_api_key": lambda key: {"headers": JSON | {"x-api-key": key}},
    "x_goog_api_key": lambda key: {"headers": JSON | {"x-goog-api-key": key}},
    "query_key": lambda key: {"fields": {"key": key}},
}


@pytest.mark.parametrize("way", CREDENTIALS)
def test_each_way_to_show_a_key_is_limited_and_none_in_the_log(
    strict_edge: Edge, relay: FakeRelay, way: str
) -> None:
    client = strict_edge.client()
    token = mint()

    def status(key: str, **more: str) -> int:
        options = CREDENTIALS[way](key)
        target = "/v1/models" + (f"?key={options.pop('fields')['key']}" if "fields" in options else "")
        headers = options.get("headers", JSON) | more
        return int(client.request("GET", target, headers=headers).status)

    statuses = [status(token.clear) for _ in range(40)]
    assert 5 <= statuses.count(429) <= 19
    assert status("sk-another") == 200
    # A made-up key beside the real one does not make a new client of it.
    other = "x-api-key" if way != "x_api_key" else "Authorization"
    assert [status(token.clear, **{other: f"made-up-{n}"}) for n in range(20)].count(429) >= 5
    assert token.clear[len(token.prefix) :] not in strict_edge.log_text()
    log = strict_edge.access_log(61)
    assert log[0]["key_prefix"] == token.prefix
    assert {entry["refused_by"] for entry in log if entry["status"] == "429"} == {"rate"}


def test_calls_of_one_key_at_a_time_are_limited(tmp_path: Path, relay: FakeRelay) -> None:
    relay.behave = "silent"
    with running_edge(tmp_path, [relay.address], client_connections=3, read_timeout="20s") as edge:
        with ThreadPoolExecutor(6) as pool:
            headers = JSON | {"x-api-key": "sk-one"}
            calls = [
                pool.submit(edge.client().request, "POST", CHAT, body=b"{}", headers=headers)
                for _ in range(6)
            ]
            ended = (call for call in as_completed(calls, timeout=60) if call.result().status == 429)
            refused = list(islice(ended, 3))
            relay.release.set()
        assert len(refused) == 3
        assert {entry["refused_by"] for entry in edge.access_log(6) if entry["status"] == "429"} == {
            "connections"
        }


@pytest.mark.parametrize(
    ("path", "largest"),
    [
        (CHAT, 1024 * 1024),
        ("/v1/messages", 1024 * 1024),
        ("/v1/responses", 1024 * 1024),
        ("/v1/embeddings", 1024 * 1024),
        ("/v1/images/generations", 1024 * 1024),
        ("/v1beta/models/m:generateContent", 1024 * 1024),
        ("/api/pricing/quote", 64 * 1024),
        ("/v1/audio/transcriptions", 2 * 1024 * 1024),
        ("/v1/audio/translations", 2 * 1024 * 1024),
        ("/v1/images/edits", 2 * 1024 * 1024),
        ("/v1/images/edits/", 2 * 1024 * 1024),
    ],
)
def test_body_sizes_by_path(tmp_path: Path, relay: FakeRelay, path: str, largest: int) -> None:
    sizes = {"body_max": "1m", "upload_max": "2m", "form_max": "64k"}
    quiet = {"waf": "off"}
    with running_edge(tmp_path, [relay.address], **sizes, **quiet) as edge:
        for size, status in ((largest, 200), (largest + 1, 413)):
            assert edge.client().request("POST", path, body=b"x" * size).status == status
    assert len(relay.calls) == 1


FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize("path", ["/v1/files", "/v1/uploads/upload_1/parts", "/upload/v1beta/files?key=k"])
@pytest.mark.parametrize("chunked", [False, True])
def test_what_the_relay_refuses_is_refused_by_it_without_the_file(
    edge: Edge, relay: FakeRelay, path: str, chunked: bool
) -> None:
    relay.behave = "refuse"
    piece = b"x" * 65536
    body: Any = iter([piece] * 48) if chunked else piece * 48
    # What an attack on another path would be.
    headers = JSON | {"Content-Type": FORM, "X-Goog-Upload-Protocol": "resumable"}
    answer = edge.client().request("POST", path, body=body, headers=headers)
    assert (answer.status, answer.data) == (404, b'{"why":"not offered"}')
    (call,) = relay.calls
    assert (call["path"], call["body"]) == (path, b"")
    assert call["headers"]["Content-Length"] == "0"
    assert "Transfer-Encoding" not in call["headers"]
    kept = [file for name in ("client_body", "proxy") for file in (edge.directory / name).rglob("*")]
    assert [file for file in kept if file.is_file()] == []


@pytest.mark.parametrize(
    ("path", "told"), [("/v1/files", '{"why":"not offered"} 404 2'), ("/v1/images/edits", " 413 2")]
)
def test_a_large_file_is_refused_over_http_2(edge: Edge, relay: FakeRelay, path: str, told: str) -> None:
    relay.behave = "refuse"
    host, _, port = edge.settings.https_listen.rpartition(":")
    command = ["curl", "-sS", "--http2", "--cacert", str(edge.ca_file), "--resolve", f"{NAME}:{port}:{host}"]
    file = edge.directory / "file"
    file.write_bytes(b"x" * 27 * 2**20)
    command += ["-w", " %{http_code} %{http_version}", "-F", f"file=@{file}", f"https://{NAME}:{port}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.endswith(told), done.stderr
    if "413" in told:
        assert json.loads(done.stdout.removesuffix(told))["error"]["code"] == "request_too_large"
    assert [call["body"] for call in relay.calls] == [b""] * ("404" in told)


def test_only_trusted_proxies_say_who_the_client_is(tmp_path: Path, relay: FakeRelay) -> None:
    told = JSON | {"X-Forwarded-For": "198.51.100.7, 203.0.113.9"}
    for networks, client in (
        ([], "127.0.0.1"),
        (["127.0.0.0/8"], "203.0.113.9"),
        (["10.0.0.0/8"], "127.0.0.1"),
    ):
        with running_edge(
            tmp_path / client / str(len(networks)), [relay.address], trusted_proxies=networks
        ) as edge:
            edge.client().request("POST", CHAT, body=b"{}", headers=told)
            assert edge.access_log(1)[0]["client"] == client
            assert relay.calls[-1]["headers"]["X-Forwarded-For"] == client
            assert relay.calls[-1]["headers"]["X-Real-IP"] == client


def test_a_relay_does_not_steer_the_edge(edge: Edge, relay: FakeRelay) -> None:
    relay.headers = {
        "X-Accel-Redirect": "/stub_status",
        "X-Edge-Refused": "waf",
        "X-Frame-Options": "ALLOWALL",
    }
    answer = edge.client().request("POST", CHAT, body=b"{}")
    assert (answer.status, answer.data) == (200, b'{"ok":true}')
    assert answer.headers.getlist("X-Frame-Options") == ["DENY"]
    assert not [name for name in answer.headers if name.lower().startswith(("x-edge", "x-accel"))]
    assert edge.access_log(1)[0]["refused_by"] == ""


def served(edge: Edge, name: str, path: str) -> tuple[int, dict[str, str], bytes]:
    return split_answer(
        edge.raw(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode(), name)
    )


def test_each_name_serves_what_is_its_own(tmp_path: Path, relay: FakeRelay, second_relay: FakeRelay) -> None:
    ours = {
        "console_names": [CONSOLE],
        "status_page_names": [STATUS_PAGE],
        "tools_names": [TOOLS],
        "tools": {"wiki": second_relay.address},
        "tools_allowed_from": ["127.0.0.0/8"],
        "security_contact": "mailto:security@edge.test",
    }
    with running_edge(tmp_path, [relay.address], **ours) as edge:
        assert served(edge, CONSOLE, "/console/")[0] == 200
        for path in ("/v1/models", "/api/pricing", "/api/pricing/groups", "//api/pricing", "/api%2Fpricing"):
            assert served(edge, CONSOLE, path)[0] == 404, path
        assert len(relay.calls) == 1
        assert served(edge, TOOLS, "/wiki/d/1")[0] == 200
        assert served(edge, TOOLS, "/other")[0] == 404
        assert [call["path"] for call in second_relay.calls] == ["/d/1"]
        for name in OWN_NAMES:
            status, headers, body = served(edge, name, "/.well-known/security.txt")
            assert status == 200
            assert "strict-transport-security" in headers
            fields = dict(line.split(": ", 1) for line in body.decode().splitlines())
            assert fields["Contact"] == "mailto:security@edge.test"
            ahead = datetime.fromisoformat(fields["Expires"]) - datetime.now(UTC)
            assert timedelta() < ahead < timedelta(days=366)
        _, headers, _ = served(edge, CONSOLE, "/console/")
        assert "'self'" in headers["content-security-policy"]


def test_every_name_has_the_security_headers_on_pages_and_on_errors(tmp_path: Path, relay: FakeRelay) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.html").write_text("<p>It works.</p>")
    ours = {
        "console_names": [CONSOLE],
        "status_page_names": [STATUS_PAGE],
        "status_root": str(pages),
        "tools_names": [TOOLS],
        "tools": {"wiki": relay.address},
        "tools_allowed_from": ["127.0.0.0/8"],
        "security_contact": "mailto:security@edge.test",
    }
    attack = "/%3Cscript%3Ealert(1)%3C/script%3E"
    expected = {
        (NAME, "/v1/models"): 200,
        (NAME, "/edge-health"): 200,
        (NAME, "/.well-known/security.txt"): 200,
        (NAME, "/v1"): 404,
        (NAME, f"/v1{attack}"): 400,
        (CONSOLE, "/console/"): 200,
        (CONSOLE, "/v1/models"): 404,
        (CONSOLE, f"/console/?x={attack}"): 403,
        (STATUS_PAGE, "/"): 200,
        (STATUS_PAGE, "/status.json"): 503,
        (STATUS_PAGE, "/other"): 404,
        (TOOLS, "/wiki/"): 200,
        (TOOLS, "/other"): 404,
    }
    always = {name.lower(): value for name, value in SECURITY_HEADERS.items()}
    policy = always.pop("content-security-policy")
    with running_edge(tmp_path / "edge", [relay.address], **ours) as edge:
        for (name, path), status in expected.items():
            answered, headers, _ = served(edge, name, path)
            assert answered == status, (name, path)
            assert {one: headers.get(one, "").lower() for one in always} == {
                one: value.lower() for one, value in always.items()
            }, (name, path)
            found = headers["content-security-policy"]
            assert "frame-ancestors 'none'" in found, (name, path)
            # A page says what it may load; what nginx answers by itself loads nothing.
            if status != 200:
                assert found == policy, (name, path)


def test_tools_are_not_there_for_others(tmp_path: Path, relay: FakeRelay) -> None:
    ours = {
        "tools_names": [TOOLS],
        "tools": {"wiki": relay.address},
        "tools_allowed_from": ["192.0.2.0/24"],
    }
    with running_edge(tmp_path, [relay.address], **ours) as edge:
        assert served(edge, TOOLS, "/wiki/")[0] == 404
        assert "192.0.2" not in served(edge, TOOLS, "/wiki/")[2].decode()
    assert relay.calls == []


def test_a_strangers_name_on_our_connection_is_421(edge: Edge, relay: FakeRelay) -> None:
    status, headers, body = split_answer(
        edge.raw(b"GET /v1/models HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n")
    )
    assert status == 421
    assert shape_of(body, 421, headers["x-request-id"]) == "openai"
    assert relay.calls == []


@pytest.mark.parametrize("sent", ["", "G", f"POST {CHAT} HTTP/1.1\r\nHost: {NAME}\r\n", "body"])
def test_clients_that_stand_still_are_cut(edge: Edge, sent: str) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
    started = time.monotonic()
    answer = edge.raw((f"{head}\r\n{{" if sent == "body" else sent).encode(), seconds=60)
    assert time.monotonic() - started < 45
    assert answer == b"" or answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 400"))


def test_a_stream_survives_reloads_and_no_call_fails(tmp_path: Path, relay: FakeRelay) -> None:
    patience = {"read_timeout": "120s", "drain_timeout": "120s"}
    with running_edge(tmp_path, [relay.address], client_rate=1000, **patience) as edge:
        _stream_over_reloads(edge, relay)


def _stream_over_reloads(edge: Edge, relay: FakeRelay) -> None:
    relay.behave = "events"
    stream = edge.client().request("POST", CHAT, body=b"{}", preload_content=False)
    assert stream.read1() == b"data: first\n\n"
    relay.behave = "ok"
    statuses: list[int] = []
    over = threading.Event()

    def call_on() -> None:
        while not over.is_set():
            # A new connection each time: one that is kept may be closed by a reload as it is used again.
            headers = JSON | {"Connection": "close"}
            statuses.append(edge.client().request("GET", "/healthz", headers=headers).status)
            time.sleep(0.02)

    caller = threading.Thread(target=call_on)
    caller.start()
    for _ in range(3):
        with edge.reloading():
            edge.process.send_signal(signal.SIGHUP)
        made = len(statuses)
        eventually(lambda: len(statuses) > made + 5)  # noqa: B023 - it has ended when the next one begins
    over.set()
    caller.join()
    relay.release.set()
    assert stream.read() == b"data: [DONE]\n\n"
    assert set(statuses) == {200}
    assert len(statuses) >= 10


SLOW = 300
# What a busy machine may add to a call.
BUSY_SECONDS = 5


def test_three_hundred_slow_connections_are_gone_and_cost_others_nothing(
    tmp_path: Path, relay: FakeRelay
) -> None:
    with running_edge(tmp_path, [relay.address], client_rate=1000, client_burst=1000) as edge:
        client = edge.client()
        usual = slowest_of(client)
        started = time.monotonic()
        slow = [tls_connection(edge) for _ in range(SLOW)]
        try:
            for connection in slow:
                connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: {NAME}\r\nX-Slow: ".encode())
            assert slowest_of(client) < 2 * usual + BUSY_SECONDS
            opened = time.monotonic()
            # A header a few bytes at a time does not restart the clock.
            gone: set[int] = set()
            while len(gone) < SLOW and time.monotonic() < opened + 60:
                time.sleep(1)
                gone |= {n for n, one in enumerate(slow) if n not in gone and is_cut(one)}
            assert len(gone) == SLOW, f"{SLOW - len(gone)} left after {time.monotonic() - started:.0f} s"
            assert slowest_of(client) < 2 * usual + BUSY_SECONDS
        finally:
            for connection in slow:
                connection.close()


def slowest_of(client: urllib3.HTTPSConnectionPool) -> float:
    """The 95th percentile of calls, in seconds."""
    times = []
    for _ in range(40):
        started = time.monotonic()
        assert client.request("POST", CHAT, body=b"{}").status == 200
        times.append(time.monotonic() - started)
    return sorted(times)[-2]


def tls_connection(edge: Edge) -> ssl.SSLSocket:
    host, _, port = edge.settings.https_listen.rpartition(":")
    context = ssl.create_default_context(cafile=str(edge.ca_file))
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=60), server_hostname=NAME)


def is_cut(connection: ssl.SSLSocket) -> bool:
    """Sends one byte more; whether the edge has ended the connection."""
    try:
        connection.sendall(b"a")
        connection.settimeout(0.001)
        return connection.recv(1) == b""
    except (TimeoutError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(5)
