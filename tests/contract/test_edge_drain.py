"""Nodes and edges that are taken out of service and back, in a real nginx."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploys.run import local_edge
from tests.contract.edge_rig import JSON, NAME, Edge, FakeRelay, running_edge
from tests.contract.relay_rig import eventually

CHAT = "/v1/chat/completions"
CALLS_A_SECOND = 50
# So many at a time are waited for.
CALLS = 75


@pytest.fixture
def relays() -> Iterator[list[FakeRelay]]:
    fakes = [FakeRelay() for _ in range(3)]
    yield fakes
    for fake in fakes:
        fake.close()


@pytest.fixture
def edge(tmp_path: Path, relays: list[FakeRelay]) -> Iterator[Edge]:
    addresses = [relay.address for relay in relays]
    limits = {"client_rate": 1000, "client_burst": 1000}
    with running_edge(tmp_path, addresses, read_timeout="120s", drain_timeout="120s", **limits) as running:
        yield running


def tool(edge: Edge, *words: str) -> subprocess.CompletedProcess[str]:
    return local_edge.edge_tool(edge.directory, *words)


def status(edge: Edge) -> dict[str, object]:
    return dict(json.loads(tool(edge, "status", "--json").stdout))


class Calls:
    """Calls at a steady rate, each with a number of its own, each on a connection of its own: a reload may
    close one that is kept just as it is used again."""

    def __init__(self, edge: Edge) -> None:
        self.edge, self.statuses = edge, {}  # type: Edge, dict[int, int]
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Calls:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            number = 0
            while not self.over.is_set():
                pool.submit(self._call, number)
                number += 1
                time.sleep(max(0, began + number / CALLS_A_SECOND - time.monotonic()))

    def more(self) -> None:
        """Waits until CALLS more have been answered."""
        answered = sum(status > 0 for status in list(self.statuses.values())) + CALLS
        eventually(lambda: sum(status > 0 for status in list(self.statuses.values())) >= answered)

    def _call(self, number: int) -> None:
        self.statuses[number] = 0
        answer = self.edge.client().request(
            "POST", CHAT, body=b'{"n":%d}' % number, headers=JSON | {"Connection": "close"}
        )
        self.statuses[number] = answer.status


def received(relay: FakeRelay) -> Counter[int]:
    return Counter(json.loads(call["body"])["n"] for call in list(relay.calls))


def test_a_node_is_drained_and_returned_under_load(edge: Edge, relays: list[FakeRelay]) -> None:
    """No call fails, none is repeated, none goes to the drained node, and its running stream ends well."""
    away = relays[0]
    for relay in relays[1:]:
        with edge.reloading():
            assert tool(edge, "node-drain", relay.address, "--reason", "test").returncode == 0
    away.behave = "events"
    stream = edge.client().request("POST", CHAT, body=b'{"n":-1}', preload_content=False)
    assert stream.read1() == b"data: first\n\n"
    away.behave = "ok"
    for relay in relays[1:]:
        with edge.reloading():
            assert tool(edge, "node-return", relay.address).returncode == 0
    with Calls(edge) as calls:
        calls.more()
        with edge.reloading():
            assert tool(edge, "node-drain", away.address, "--reason", "test").returncode == 0
        # Workers of the old configuration take no new connection; what they took may still be under way.
        eventually(lambda: status(edge)["drained"][away.address]["open"] == 1)  # type: ignore[index]
        before = len(away.calls)
        calls.more()
        assert len(away.calls) == before
        assert tool(edge, "node-return", away.address).returncode == 0
        eventually(lambda: len(away.calls) > before)
    away.release.set()
    assert stream.read() == b"data: [DONE]\n\n"
    assert set(calls.statuses.values()) == {200}
    assert len(calls.statuses) > 2 * CALLS
    counted = sum((received(relay) for relay in relays), Counter[int]())
    assert counted == Counter(dict.fromkeys([*calls.statuses, -1], 1))


def test_a_drain_outlives_a_deploy_and_a_restart(edge: Edge, relays: list[FakeRelay]) -> None:
    away = relays[0]
    tool(edge, "node-drain", away.address, "--reason", "test", "--name", "app1")
    # What the unit runs before each start and reload, after a deploy has written the nodes anew.
    (edge.directory / "state/nodes.conf").unlink()
    assert tool(edge, "write").returncode == 0
    assert f"server {away.address} max_fails=2 fail_timeout=5s down;" in in_force(edge)
    assert in_force(edge).count(" down;") == 1
    assert status(edge)["drained"][away.address]["name"] == "app1"  # type: ignore[index]


def in_force(edge: Edge) -> str:
    return (edge.directory / "state/nodes.conf").read_text()


def test_the_last_node_and_strangers_are_not_drained(edge: Edge, relays: list[FakeRelay]) -> None:
    for relay in relays[:2]:
        assert tool(edge, "node-drain", relay.address, "--reason", "test").returncode == 0
    for address, why in ((relays[2].address, "last node"), ("127.0.0.1:1", "no node")):
        done = tool(edge, "node-drain", address, "--reason", "test")
        assert (done.returncode, why in done.stderr) == (2, True)
    assert in_force(edge).count(" down;") == 2


def test_a_change_that_nginx_refuses_is_taken_back(edge: Edge, relays: list[FakeRelay]) -> None:
    before = in_force(edge)
    (edge.directory / "relay/limit_zones.conf").write_text("nonsense;\n")
    done = tool(edge, "node-drain", relays[0].address, "--reason", "test")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert in_force(edge) == before
    assert status(edge)["drained"] == {}
    assert edge.client().request("POST", CHAT, body=b'{"n":0}').status == 200


def test_nodes_that_left_take_their_drain_with_them(edge: Edge, relays: list[FakeRelay]) -> None:
    """When a deploy leaves only drained nodes, they serve: no call would be answered otherwise."""
    tool(edge, "node-drain", relays[0].address, "--reason", "test")
    path = edge.directory / "relay/nodes.conf"
    path.write_text(f"server {relays[0].address} max_fails=2 fail_timeout=5s;\n")
    assert tool(edge, "write").returncode == 0
    assert "down" not in in_force(edge)


@pytest.mark.parametrize("name", ["api.edge.test", "anything.test", "192.0.2.1"])
def test_balancers_are_told_serve_and_drain(edge: Edge, name: str) -> None:
    def told() -> tuple[str, str]:
        host, _, port = edge.settings.http_listen.rpartition(":")
        command = [
            "curl",
            "-s",
            "-w",
            " %{http_code}",
            "-H",
            f"Host: {name}",
            f"http://{host}:{port}/edge-health",
        ]
        body, _, code = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition(
            " "
        )
        return code, json.loads(body)["state"]

    assert told() == ("200", "serve")
    assert tool(edge, "drain", "--reason", "new disk").returncode == 0
    assert told() == ("503", "drain")
    answer = edge.client().request("GET", "/edge-health")
    assert (answer.status, answer.data, answer.headers["Cache-Control"]) == (
        503,
        b'{"state":"drain"}\n',
        "no-store",
    )
    # Who comes nevertheless is served.
    assert edge.client().request("POST", CHAT, body=b'{"n":0}').status == 200
    tool(edge, "serve")
    assert told() == ("200", "serve")


def test_there_are_no_session_tickets(edge: Edge) -> None:
    """Several edges would have to share and rotate their key. TLS 1.3 has them by reference only."""
    context = ssl.create_default_context(cafile=str(edge.ca_file))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, _, port = edge.settings.https_listen.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        assert connection.session is not None
        assert not connection.session.has_ticket


def test_a_stranger_learns_nothing_else(edge: Edge) -> None:
    host, _, port = edge.settings.http_listen.rpartition(":")
    done = subprocess.run(["curl", "-s", f"http://{host}:{port}/"], capture_output=True, check=False)
    # Closed without a word: curl calls it an empty answer, or a reset.
    assert done.returncode in (52, 56)
    assert done.stdout == b""
