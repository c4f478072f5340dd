"""The edge's configuration in a real nginx: what it passes, refuses, retries, streams and logs."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from relay.identity.tokens import mint
from tests.contract.conftest import free_port
from tests.contract.edge_rig import NAME, DeadHost, Edge, FakeRelay, nginx_program, running_edge

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


def error_of(answer: urllib3.BaseHTTPResponse) -> dict[str, object]:
    assert answer.headers["Content-Type"] == "application/json"
    error = json.loads(answer.data)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def raw_request(listen: str, request: bytes) -> bytes:
    host, _, port = listen.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_replaces_what_a_client_says_about_itself(edge: Edge, relay: FakeRelay) -> None:
    forged = {"Host": NAME, "X-Forwarded-For": "203.0.113.9", "X-Request-Id": "forged", "Forwarded": "for=x"}
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
def test_security_headers_are_on_every_answer(edge: Edge, path: str) -> None:
    answer = edge.client().request("GET", path)
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
def test_other_paths_never_reach_the_relay(edge: Edge, relay: FakeRelay, path: str) -> None:
    host, _, port = edge.settings.https_listen.rpartition(":")
    context = ssl.create_default_context(cafile=str(edge.ca_file))
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404")
    assert b'"code":"not_found"' in answer
    assert relay.calls == []


def test_http_is_redirected_and_keeps_the_method(edge: Edge, relay: FakeRelay) -> None:
    request = f"POST {CHAT} HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answer = raw_request(edge.settings.http_listen, request.encode())
    assert answer.startswith(b"HTTP/1.1 308")
    assert f"Location: https://{NAME}{CHAT}".encode() in answer
    assert relay.calls == []


def test_strangers_names_get_no_certificate_and_no_answer(edge: Edge) -> None:
    context = ssl.create_default_context(cafile=str(edge.ca_file))
    host, _, port = edge.settings.https_listen.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        pytest.raises(ssl.SSLError, match="unrecognized name"),
    ):
        context.wrap_socket(plain, server_hostname="other.test")
    try:
        answer = raw_request(edge.settings.http_listen, b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
    except ConnectionResetError:
        answer = b""
    assert answer == b""


@pytest.mark.parametrize(("version", "accepted"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_tls_versions(edge: Edge, version: str, accepted: bool) -> None:
    connect = ["openssl", "s_client", "-connect", edge.settings.https_listen, "-servername", NAME]
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
    eager = {"Host": NAME, "Authorization": "Bearer eager"}
    answers = [client.request("POST", CHAT, body=b"{}", headers=eager) for _ in range(40)]
    refused = [answer for answer in answers if answer.status == 429]
    assert 10 <= len(refused) <= 19
    assert error_of(refused[0])["code"] == "rate_limit_exceeded"
    assert refused[0].headers["Retry-After"] == "1"
    assert refused[0].headers["Strict-Transport-Security"]
    calm = {"Host": NAME, "Authorization": "bearer calm"}
    assert client.request("POST", CHAT, body=b"{}", headers=calm).status == 200


def test_without_a_token_the_address_is_the_client(strict_edge: Edge) -> None:
    client = strict_edge.client()
    statuses = [client.request("GET", "/v1/models").status for _ in range(40)]
    assert statuses[0] == 200
    assert 10 <= statuses.count(429) <= 19


def test_many_tokens_do_not_escape_the_limit_of_one_address(tmp_path: Path, relay: FakeRelay) -> None:
    with running_edge(tmp_path, [relay.address], address_rate=5, address_burst=5) as edge:
        client = edge.client()
        statuses = [
            client.request("GET", "/v1/models", headers={"Host": NAME, "Authorization": f"Bearer {n}"}).status
            for n in range(20)
        ]
    assert statuses.count(429) >= 10


def test_a_body_that_is_too_large_gets_413(edge: Edge, relay: FakeRelay) -> None:
    answer = edge.client().request("POST", CHAT, body=b"x" * (1024 * 1024 + 1))
    assert answer.status == 413
    assert error_of(answer)["code"] == "request_too_large"
    assert relay.calls == []


def test_a_malformed_request_gets_400_in_json(edge: Edge) -> None:
    answer = raw_request(edge.settings.https_listen, f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"code":"bad_request"' in answer


def test_no_relay_is_502(tmp_path: Path) -> None:
    with running_edge(tmp_path, [f"127.0.0.1:{free_port()}"]) as edge:
        answer = edge.client().request("POST", CHAT, body=b"{}")
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
    with running_edge(tmp_path, [dead_host.address, relay.address], client_rate=1000) as edge:
        client = edge.client()
        started = time.monotonic()
        statuses = [client.request("POST", CHAT, body=b"{}").status for _ in range(30)]
        elapsed = time.monotonic() - started
        assert statuses == [200] * 30
        assert len(relay.calls) == 30
        # Two connections time out after a second each; then the dead host is left alone.
        assert elapsed < 8
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
    client.request("POST", CHAT, body=b"{}")
    client.request("POST", CHAT, body=b"{}")
    time.sleep(3.3)
    client.request("POST", CHAT, body=b"{}")
    ports = [call["port"] for call in relay.calls]
    assert ports[0] == ports[1] != ports[2]


def test_logs_hold_no_secret(tmp_path: Path, dead_host: DeadHost) -> None:
    with running_edge(tmp_path, [dead_host.address, f"127.0.0.1:{free_port()}"]) as edge:
        headers = {"Host": NAME, "Authorization": "Bearer sk-canary-header"}
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
    headers = {"Host": NAME, "Authorization": f"bearer {token.clear}"}
    edge.client().request("POST", CHAT, body=b"{}", headers=headers)
    assert edge.access_log(1)[0]["key_prefix"] == token.prefix
    assert token.clear[len(token.prefix) :] not in edge.log_text()


def test_a_broken_configuration_does_not_pass_the_test(edge: Edge) -> None:
    (edge.directory / "relay/upstream.conf").write_text("upstream relay {}\n")
    tested = subprocess.run(
        [nginx_program(), "-t", "-c", str(edge.directory / "nginx.conf")], capture_output=True, check=False
    )
    assert tested.returncode != 0
    assert edge.client().request("GET", "/healthz").status == 200


def test_counters_for_the_exporter(edge: Edge) -> None:
    answer = urllib3.request("GET", f"http://{edge.settings.status_listen}/stub_status")
    assert b"Active connections" in answer.data
