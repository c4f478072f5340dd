"""Whose bill a call is: cost prices by channel, by provider and for all, through a running relay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.postgres import Database
from tests.contract.relay_rig import Customer, Relay, Replica, asks, running_provider

CHANNELS = {"acme-eu": "acme", "acme-us": "acme", "other-1": "other", "third-1": "third"}
# n$ a token of input, by what the price names.
COSTS = {"": 100, "acme": 200, "acme-eu": 300, "other": 400}
EXPECTED = {"acme-eu": 300, "acme-us": 200, "other-1": 400, "third-1": 100}


@pytest.fixture(scope="module")
def relay(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """One model for each channel, so that a test chooses the channel."""
    directory = tmp_path_factory.mktemp("costs")
    with running_provider(directory) as fake:
        relay = Relay(module_database, directory)
        for name, provider in CHANNELS.items():
            relay.channel(fake.url, f"by-{name}=fake-small", name, "--provider", provider)
            relay.price(f"by-{name}")
        for named, nano in COSTS.items():
            kind = "--channel" if named in CHANNELS else "--provider"
            whose = (kind, named) if named else ()
            rates = ("--in-text", f"{nano / 1000}/1M", "--out-text", "0/1M")
            relay.command("price", "publish", "--model", "by-*", "--side", "cost", *whose, *rates)
        yield relay
        relay.stop()


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_bill_is_the_channels_own(relay: Relay, replica: Replica, channel: str) -> None:
    customer = Customer(relay, replica, channel, "1.00")
    model, provider = f"by-{channel}", CHANNELS[channel]
    sample = f'relay_cost_usd_total{{model="{model}",provider="{provider}"}}'
    before = replica.metric(sample)
    customer.sdk.chat.completions.create(model=model, messages=asks(), max_tokens=5)
    customer.balance()
    record = customer.record()
    assert record["cost"] == EXPECTED[channel] * record["meters"]["in_text"]
    assert replica.metric(sample) - before == pytest.approx(record["cost"] / 1e9)
    labels = f'model="{model}",outcome="ok",provider="{provider}",stream="false"'
    assert replica.metric(f"relay_requests_total{{{labels}}}") == 1


def test_a_channel_moved_to_another_provider_gets_its_bills(relay: Relay, replica: Replica) -> None:
    customer = Customer(relay, replica, "moved", "1.00")
    relay.command("channel", "set", "third-1", "--provider", "other")
    try:
        for _ in range(50):
            customer.sdk.chat.completions.create(model="by-third-1", messages=asks(), max_tokens=5)
            customer.balance()
            record = relay.usage(customer.account)[0]
            if record["cost"] == COSTS["other"] * record["meters"]["in_text"]:
                break
        else:
            pytest.fail("the change did not reach the replica")
    finally:
        relay.command("channel", "set", "third-1", "--provider", "third")


def test_a_price_names_a_provider_or_a_channel(relay: Relay) -> None:
    both = ("--side", "cost", "--provider", "acme", "--channel", "acme-eu", "--in-text", "1/1M")
    refused = relay.run("price", "publish", "--model", "m", *both)
    assert (refused.returncode, "write the provider or one of its channels" in refused.stderr) == (1, True)
    sale = relay.run("price", "publish", "--model", "m", "--channel", "acme-eu", "--in-text", "1/1M")
    assert (sale.returncode, "side cost" in sale.stderr) == (1, True)
