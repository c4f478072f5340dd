"""The rig itself: a replica is ready when it answers, and not when another does on its port."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.contract.conftest import Database
from tests.contract.relay_rig import Relay, Replica, eventually


class Healthy(BaseHTTPRequestHandler):
    """Says that it is well, whoever it is."""

    def do_GET(self) -> None:
        """Answer 200."""
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_replica_whose_port_is_taken_is_not_ready_and_its_log_is_named(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(database, tmp_path)
    with HTTPServer(("127.0.0.1", 0), Healthy) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        taken = other.server_address[1]
        seen: list[bool] = []
        usual = Replica.ready

        def ready(replica: Replica) -> bool:
            seen.append(usual(replica))
            return seen[-1]

        monkeypatch.setattr("tests.contract.relay_rig.free_port", lambda: taken)
        monkeypatch.setattr(Replica, "ready", ready)
        with pytest.raises(RuntimeError, match=r"(?s)ended with 1; the end of .*relay-0\.log.*in use"):
            relay.replica()
        other.shutdown()
    assert not any(seen)


def test_a_replica_that_was_stopped_is_not_ready(database: Database, tmp_path: Path) -> None:
    relay = Relay(database, tmp_path)
    replica = relay.replica()
    try:
        assert eventually(replica.ready)
        replica.process.kill()
        with pytest.raises(RuntimeError, match="ended with -9"):
            replica.ready()
    finally:
        relay.stop()
