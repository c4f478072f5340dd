"""One relay for each module, whose provider is the fake one, and its customer."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from threading import Thread

import pytest

from tests.contract.conftest import Database
from tests.contract.raw_http.raw import MAX_BODY
from tests.contract.raw_http.recorder import Recorder
from tests.contract.relay_rig import MODEL, Customer, Provider, Relay, Replica


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
    return {"RELAY_MAX_BODY_BYTES": str(MAX_BODY)}


@pytest.fixture(scope="module")
def customer(relay: Relay, replica: Replica) -> Customer:
    return Customer(relay, replica, "http", "5.00")


@pytest.fixture(scope="module")
def recorder() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def lenient(provider: Provider) -> Iterator[None]:
    """The provider takes fields that OpenAI itself does not know."""
    provider.control(lenient=True)
    yield
    provider.control()
