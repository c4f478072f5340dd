"""A replica that goes away in good order loses no call: neither one on a kept connection, nor one on a
connection that has just been made, nor one through the edge while replicas are replaced.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from relay.listener import keep_out
from tests.contract.conftest import Database
from tests.contract.edge_rig import NAME, running_edge
from tests.contract.relay_rig import (
    MODEL,
    START_SECONDS,
    Customer,
    Provider,
    Relay,
    Replica,
    asks,
    eventually,
)

DRAIN_SECONDS = 6
STOP_SECONDS = 60.0  # far below the grace time, and more than a busy machine needs
BODY = {"model": MODEL, "messages": asks()}


@pytest.fixture
def relay(database: Database, provider: Provider, tmp_path: Path) -> Iterator[Relay]:
    provider.control()
    made = Relay(database, tmp_path, {"RELAY_DRAIN_SECONDS": str(DRAIN_SECONDS)})
    made.channel(provider.url, MODEL)
    made.price(MODEL)
    yield made
    made.stop()


@pytest.fixture
def customer(relay: Relay) -> Customer:
    return Customer(relay, relay.replica(), "stopping", "1.00")


class Connection(http.client.HTTPConnection):
    """One connection of a customer to its replica, which is not made anew by itself."""

    auto_open = 0

    def __init__(self, customer: Customer) -> None:
        super().__init__(_address(customer.replica), timeout=60)
        self._headers = {"authorization": f"Bearer {customer.key}", "content-type": "application/json"}
        self.connect()

    def send_call(self, **fields: object) -> None:
        """Send one call."""
        self.request("POST", "/v1/chat/completions", json.dumps(BODY | fields), self._headers)

    def call(self, **fields: object) -> http.client.HTTPResponse:
        """One call, and the head of its answer."""
        self.send_call(**fields)
        return self.getresponse()


def _address(replica: Replica) -> str:
    return replica.url.removeprefix("http://")


def refuses(replica: Replica) -> bool:
    """Whether no new connection is taken."""
    host, _, port = _address(replica).rpartition(":")
    with closing(socket.socket()) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, int(port))) != 0


def stop_listening(replica: Replica) -> None:
    """SIGTERM; returns once the replica takes no more connections."""
    replica.process.signal(signal.SIGTERM)
    eventually(lambda: refuses(replica), every=0.01)


@pytest.mark.parametrize("used", [True, False], ids=["kept", "new"])
def test_a_client_that_was_not_told_is_still_served(customer: Customer, used: bool) -> None:
    with closing(Connection(customer)) as connection:
        if used:
            connection.call().read()
        stop_listening(customer.replica)
        answer = connection.call()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert json.loads(answer.read())["usage"]
    assert customer.replica.process.wait(STOP_SECONDS) == 0


def test_so_is_one_whose_answer_began_before(customer: Customer, provider: Provider) -> None:
    provider.control(chunk_delay_ms=100, completion_tokens=20)
    with closing(Connection(customer)) as connection:
        stream = connection.call(stream=True)
        stream.readline()
        stop_listening(customer.replica)
        assert stream.read().endswith(b"data: [DONE]\n\n")
        assert connection.call().headers["connection"] == "close"
    assert customer.replica.process.wait(STOP_SECONDS) == 0


def test_every_answer_that_begins_later_says_that_its_connection_ends(
    customer: Customer, provider: Provider
) -> None:
    provider.control(latency_ms=300)
    with closing(Connection(customer)) as connection:
        connection.send_call()
        customer.replica.process.signal(signal.SIGTERM)
        assert connection.getresponse().headers["connection"] == "close"


def test_a_client_that_stays_silent_does_not_keep_the_replica(customer: Customer) -> None:
    with closing(Connection(customer)) as connection:
        connection.call().read()
        began = time.monotonic()
        customer.replica.process.signal(signal.SIGTERM)
        assert customer.replica.process.wait(STOP_SECONDS) == 0
        assert time.monotonic() - began >= 2 * DRAIN_SECONDS


def test_no_call_through_the_edge_fails_while_replicas_are_replaced(
    relay: Relay, customer: Customer, tmp_path: Path
) -> None:
    replicas = [customer.replica, relay.replica()]
    upstreams = [_address(replica) for replica in replicas]
    relay.grant(customer.account, "100", "more")
    statuses: list[int] = []
    over = threading.Event()
    with running_edge(
        tmp_path, upstreams, client_rate=10_000, upstream_idle="500ms", fail_timeout="1s", read_timeout="20s"
    ) as edge:
        client = edge.client()

        def call_on() -> None:
            headers = {"host": NAME, "authorization": f"Bearer {customer.key}"}
            while not over.is_set():
                answer = client.request("POST", "/v1/chat/completions", json=BODY, headers=headers)
                statuses.append(answer.status)
                time.sleep(0.01)

        threads = [threading.Thread(target=call_on) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            for replica in replicas * 2:
                replica.process.signal(signal.SIGTERM)
                assert replica.process.wait(STOP_SECONDS) == 0
                replica.process.start()
                eventually(replica.ready, START_SECONDS)
                time.sleep(1.2)  # fail_timeout is over
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert len(statuses) > 200
    assert [status for status in statuses if status != 200] == []


def test_no_connection_begins_on_a_socket_that_is_to_be_closed() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = listener.getsockname()
        with closing(socket.create_connection(address)) as early:
            keep_out(listener.fileno())
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.3)
            accepted, _ = listener.accept()
            early.sendall(b"a call")
            with closing(accepted), suppress(ConnectionError):
                assert accepted.recv(10) == b"a call"
