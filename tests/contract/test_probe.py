"""The probe: a real relay behind a real edge, with the account that it is given; and edges that misbehave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploys.run import local_edge
from tests.contract.conftest import Database
from tests.contract.edge_rig import NAME, DeadHost, FakeRelay, running_edge
from tests.contract.relay_rig import Relay, eventually, running_provider
from tests.unit.deploys.test_logship import load

PROBE = load("templates/probe/relay_probe.py")
ACCOUNT = load("templates/probe/relay_probe_account.py")
MODEL, KINDS = "probed", ("whole", "stream")
TOKEN, NEXT_TOKEN = f"sk-relay-{'Ab1_' * 11}", f"sk-relay-{'Cd2-' * 11}"


def settings(listen: str, ca_file: Path, token: str = TOKEN, **others: Any) -> Any:
    address, _, port = listen.rpartition(":")
    values = {
        "name": NAME, "console": "", "edges": {"edge1": address}, "port": int(port), "ca_file": str(ca_file),
        "model": MODEL, "token": token, "seconds": 5.0,
    }  # fmt: skip
    return PROBE.Settings(**values | others)


def seen(listen: str, ca_file: Path, **others: Any) -> dict[str, Any]:
    """What each kind of call met."""
    given = settings(listen, ca_file, **others)
    trust = PROBE.trusted(given.ca_file)
    return {kind: PROBE.attempt(given, trust, edge, kind) for edge, kind in given.tries()}


def classes(listen: str, ca_file: Path, **others: Any) -> set[str]:
    return {one.why for one in seen(listen, ca_file, **others).values()}


@pytest.fixture
def relay(database: Database, tmp_path: Path) -> Iterator[Relay]:
    made = Relay(database, tmp_path)
    yield made
    for replica in made.replicas:
        for client in replica.clients:
            client.close()
        replica.process.kill()


@pytest.fixture
def account(relay: Relay) -> Any:
    """The account's settings, its program talking to this relay."""
    command = (sys.executable, "-m", "relay")
    os.environ.update({k: v for k, v in relay.environment().items() if k.startswith("RELAY_")})
    given = ACCOUNT.Settings("probe", "probe", MODEL, TOKEN, 120, command)
    yield given
    for name in [name for name in os.environ if name.startswith("RELAY_")]:
        del os.environ[name]


def test_a_call_as_a_customer_makes_it(relay: Relay, account: Any, tmp_path: Path) -> None:
    """Account, price and token by the program; whole and streaming through nginx, WAF and relay; free."""
    assert ACCOUNT.check(account) == ["the account probe is missing"]
    done = ACCOUNT.apply(account)
    assert done == [f"made {MODEL} free for the group probe", "made the token"]
    assert (ACCOUNT.check(account), ACCOUNT.apply(account)) == ([], [])
    with running_provider(tmp_path) as provider:
        relay.channel(provider.url, MODEL)
        relay.price(MODEL)
        replica = relay.replica()
        upstream = replica.url.removeprefix("http://")
        with running_edge(tmp_path / "edge", [upstream], read_timeout="30s") as edge:
            listen = edge.settings.https_listen
            found = seen(listen, edge.ca_file)
            for one in found.values():
                assert (one.why, one.words) == ("", "")
                assert 0 < one.first_byte <= one.seconds < 30
            probe = relay.command("account", "show", "probe")
            records = relay.command("usage", "list", "--account", str(probe["id"]))
            assert [row["charge"] for row in records] == [0, 0]
            assert (probe["balance_nanodollars"], probe["held_nanodollars"]) == (0, 0)
            # Others pay, and the account's token buys nothing else.
            relay.channel(provider.url, "dear", "other")
            relay.price("dear")
            eventually(lambda: classes(listen, edge.ca_file, model="dear") == {"refused"})
            assert "insufficient" in seen(listen, edge.ca_file, model="dear")["whole"].words
            assert classes(listen, edge.ca_file, token=NEXT_TOKEN) == {"refused"}
            rotate(account, listen, edge.ca_file)
            replica.process.kill()
            assert classes(listen, edge.ca_file, token=NEXT_TOKEN) == {"unavailable"}


def rotate(account: Any, listen: str, ca_file: Path) -> None:
    """A new token takes the old one's place."""
    renewed = ACCOUNT.Settings("probe", "probe", MODEL, NEXT_TOKEN, 120, account.relayctl)
    assert len(ACCOUNT.check(renewed)) == 2
    assert len(ACCOUNT.apply(renewed)) == 2
    assert ACCOUNT.check(renewed) == []
    eventually(lambda: classes(listen, ca_file, token=NEXT_TOKEN) == {""})
    assert classes(listen, ca_file) == {"refused"}


# --- an edge that misbehaves

Handler = Callable[[socket.socket], None]


@contextmanager
def raw_edge(directory: Path, answer: Handler) -> Iterator[tuple[str, Path]]:
    """A TLS server of the edge's certificate that answers as it likes; address, and its authority."""
    import ssl

    from deploys.lib import pki

    ca_cert, ca_key = pki.new_authority("Test CA")
    certificate, key = pki.issue(pki.Subject("edge", (NAME,)), ca_cert, ca_key)
    for name, text in (("ca.crt", ca_cert), ("edge.crt", certificate), ("edge.key", key)):
        (directory / name).write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "edge.crt", directory / "edge.key")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(plain: socket.socket) -> None:
        try:
            with context.wrap_socket(plain, server_side=True) as connection:
                asked = b""
                # A GET has no body; that of a call ends in a brace.
                while not asked.startswith(b"GET") and not asked.endswith(b"}"):
                    asked += connection.recv(65536)
                answer(connection)
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(plain,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", directory / "ca.crt"
    finally:
        listener.close()


def says(*parts: bytes, pause: float = 0) -> Handler:
    def answer(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)

    return answer


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
CHUNK = b'data: {"choices":[{"delta":{"content":"O"}}]}\n\n'
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
WELL = b'{"choices":[{"message":{"content":"O"}}]}'
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("kind", "handler", "why"),
    [
        ("stream", says(HEAD, b"\r\n", CHUNK, b"data: [DONE]\n\n"), ""),
        ("stream", says(HEAD, b"\r\n", CHUNK), "cut"),
        ("stream", says(HEAD, b"\r\ndata: [DONE]\n\n"), "answer"),
        ("stream", says(HEAD, b'\r\ndata: {"error":{"message":"no"}}\n\n'), "answer"),
        ("stream", says(HEAD, b"\r\n: ping\n\n", CHUNK, pause=3), "timeout"),
        ("stream", says(HEAD, b"\r\ndata: what\n\n"), "answer"),
        ("whole", says(JSON_HEAD % len(WELL), WELL), ""),
        ("whole", says(JSON_HEAD % 99, WELL), "cut"),
        ("whole", says(JSON_HEAD % 14, b'{"choices":[]}'), "answer"),
        ("whole", says(JSON_HEAD % 6, b"<html>"), "answer"),
        ("whole", says(NOT_FOUND), "refused"),
        ("whole", says(BAD_GATEWAY), "unavailable"),
        ("whole", says(b"", pause=8), "timeout"),
        ("whole", says(b"nonsense\r\n\r\n"), "cut"),
        ("whole", says(), "cut"),
    ],
)
def test_each_failure_has_its_class(tmp_path: Path, kind: str, handler: Handler, why: str) -> None:
    with raw_edge(tmp_path, handler) as (listen, ca_file):
        started = time.monotonic()
        given = settings(listen, ca_file, seconds=1.0 if why == "timeout" else 60)
        one = PROBE.attempt(given, PROBE.trusted(given.ca_file), "edge1", kind)
        assert one.why == why, one.words
        assert time.monotonic() - started < 40
        assert bool(one.words) == bool(why)


def test_an_edge_that_is_not_there(tmp_path: Path) -> None:
    gone = f"127.0.0.1:{local_edge.free_port()}"
    with raw_edge(tmp_path, says()) as (listen, ca_file):
        assert classes(gone, ca_file) == {"connect"}
        dead = DeadHost()
        try:
            assert classes(dead.address, ca_file, seconds=1.0) == {"connect"}
        finally:
            dead.close()
        # Another name's certificate, and one of an authority that nobody knows.
        assert classes(listen, ca_file, name="other.edge.test") == {"tls"}
        assert classes(listen, Path("")) == {"tls"}


def test_an_edge_whose_relay_hangs(tmp_path: Path) -> None:
    hanging = FakeRelay("silent")
    try:
        with running_edge(tmp_path, [hanging.address], read_timeout="20s") as edge:
            listen = edge.settings.https_listen
            assert classes(listen, edge.ca_file, seconds=1.0) == {"timeout"}
    finally:
        hanging.close()


def test_what_it_writes_is_of_every_edge_whatever_one_of_them_does(tmp_path: Path) -> None:
    with raw_edge(tmp_path, says(JSON_HEAD % len(WELL), WELL)) as (listen, ca_file):
        port = int(listen.rpartition(":")[2])
        values = {
            "name": NAME, "console": NAME, "edges": {"edge1": "127.0.0.1", "edge2": "127.0.0.2"},
            "port": port, "ca_file": str(ca_file), "model": MODEL, "token": TOKEN, "seconds": 20.0,
        }  # fmt: skip
        (tmp_path / "probe.json").write_text(json.dumps(values))
        program = [sys.executable, "templates/probe/relay_probe.py", f"--settings={tmp_path}/probe.json"]
        done = subprocess.run(
            [*program, f"--figures={tmp_path}/probe.prom"], capture_output=True, text=True, check=True
        )
        shown = subprocess.run([*program, "--json"], capture_output=True, text=True, check=False)
        # As the service runs it: the first round at once, and then it waits.
        environment = os.environ | {"PYTHONPATH": "."}
        with subprocess.Popen(
            [*program, f"--figures={tmp_path}/at.prom", "--at=0"], stderr=subprocess.PIPE, env=environment
        ) as service:
            eventually((tmp_path / "at.prom").exists, 20)
            service.terminate()
            assert service.wait(10) == -signal.SIGTERM
    text = (tmp_path / "probe.prom").read_text()
    assert 'relay_probe_success{edge="edge1",kind="whole"} 1\n' in text
    assert 'relay_probe_success{edge="edge1",kind="console"} 1\n' in text
    assert 'relay_probe_success{edge="edge2",kind="whole"} 0\n' in text
    assert 'relay_probe_failure{edge="edge2",kind="stream",class="connect"} 1\n' in text
    assert "edge2 whole: connect: " in done.stderr
    assert TOKEN not in text + done.stderr + shown.stdout
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert (shown.returncode, len(rows)) == (3, 6)
