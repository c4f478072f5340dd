"""The relay with a channel in each provider format, behind the edge's own nginx and its WAF, on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.edge_rig import running_edge
from tests.contract.postgres import make_database, running_server
from tests.contract.relay_rig import PROVIDER_KEY, Customer, Provider, Relay, running_provider

# Formats of providers: the model that customers call, the provider's own, who it is and where.
MODELS = {
    "openai": ("to-chat", "fake-large", "openai", "/v1"),
    "openai-responses": ("to-responses", "fake-large", "openai", "/v1"),
    "anthropic": ("to-anthropic", "claude-fake", "anthropic", "/v1"),
    "gemini": ("to-gemini", "gemini-fake", "gemini", "/v1beta"),
}


@dataclass
class Platform:
    """Where customers call: ``url`` without a path, and the file of the authority of its certificate."""

    url: str
    ca_file: Path
    provider: Provider
    customer: Customer


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """All of it, from nothing."""
    directory = tmp_path_factory.mktemp("platform")
    with running_server() as server, running_provider(directory) as provider:
        relay = Relay(make_database(server), directory, {"RELAY_PROVIDER_TIMEOUT_SECONDS": "60"})
        for name, (model, theirs, kind, path) in MODELS.items():
            relay.command(
                *("channel", "create", "--name", name, "--provider", kind, "--format", name),
                *("--base-url", f"{provider.url}{path}", "--api-key-stdin", "--models", f"{model}={theirs}"),
                stdin=PROVIDER_KEY,
            )
            relay.price(model)
        replica = relay.replica()
        customer = Customer(relay, replica, "clients", "1000.00")
        (directory / "edge").mkdir()
        upstream = replica.url.removeprefix("http://")
        edge = running_edge(
            directory / "edge", [upstream], names=["localhost"], body_max="16m", read_timeout="60s", waf="on"
        )
        with edge as running:
            port = running.settings.https_listen.rpartition(":")[2]
            yield Platform(f"https://localhost:{port}", running.ca_file, provider, customer)
        relay.stop()
