"""For pytest's -p: what the relay's connections to the tests' databases send passes a recorder."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.contract.calls.wire import Recorder, recording
from tests.contract.postgres import PostgresServer

# Where the steps go.
INTO = "RELAY_RECORD_CALLS"


@pytest.fixture(scope="session", autouse=True)
def _recorded() -> Iterator[None]:
    recorders: dict[int, Recorder] = {}
    with ExitStack() as stack:

        def dsn(server: PostgresServer, database: str, user: str) -> str:
            if server.port not in recorders:
                recorders[server.port] = stack.enter_context(recording(server.port))
            port = recorders[server.port].port
            return f"host=127.0.0.1 port={port} dbname={database} user={user} connect_timeout=30"

        stack.enter_context(patch.object(PostgresServer, "dsn", dsn))
        yield
    steps = [step for recorder in recorders.values() for step in recorder.steps]
    Path(os.environ[INTO]).write_bytes(pickle.dumps(steps))
