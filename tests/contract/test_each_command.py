"""What operators say to the relay, each command at least once, on small databases.

With the tests that `tests.contract.calls` names beside it, it has the relay ask all that it can ask of its
database: what a release asks is recorded while these tests run.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from relay.store import maintenance
from relay.store.connection import connected
from tests.contract.conftest import Database
from tests.contract.money.books import play
from tests.contract.relay_rig import MODEL, Customer, Provider, Relay, asks

BY = ("--reason", "a test", "--by", "alice")


@pytest.fixture
def relay(database: Database, tmp_path: Path) -> Relay:
    return Relay(database, tmp_path)


def test_accounts_tokens_and_plans(relay: Relay) -> None:
    account = str(relay.account("acme"))
    plan = relay.command("plan", "create", "--name", "small", "--rpm", "60")
    assert relay.command("plan", "limit", str(plan["id"]), "--tpm", "1000")["tpm"] == 1000
    assert relay.command("plan", "limit", str(plan["id"]), "--model", "m", "--rpm", "6")["model_limits"]
    relay.command("account", "set", account, "--plan", "small")
    (listed,) = relay.command("plan", "list")
    assert (listed["accounts"], relay.run("plan", "remove", "small").returncode) == (1, 1)
    assert relay.command("account", "show", account)["plan"] == "small"
    relay.command("account", "set", account, "--plan", "none")
    relay.command("plan", "remove", "small")
    relay.token(int(account))
    (token,) = relay.command("token", "list", "--account", account)
    number = str(token["id"])
    bounds = ("--models", "m1,m2", "--addresses", "192.0.2.0/24", "--expires", "2999-01-01T00:00:00Z")
    assert relay.command("token", "set", number, *bounds)["models"] == ["m1", "m2"]
    assert relay.command("token", "set", number, "--models", "all")["models"] is None
    for action, noun, status in (
        ("disable", "token", "disabled"),
        ("enable", "token", "active"),
        ("suspend", "account", "suspended"),
        ("activate", "account", "active"),
        ("close", "account", "closed"),
    ):
        assert relay.run(noun, action, number if noun == "token" else account).returncode == 0
        shown = relay.command(noun, "list", *(("--account", account) if noun == "token" else ()))
        assert shown[0]["status"] == status


def test_credit(relay: Relay) -> None:
    account = relay.account("acme", "5")
    relay.token(account)
    (token,) = relay.command("token", "list", "--account", str(account))
    own, of_token = ("--account", str(account)), ("--token", str(token["id"]))
    allowance = ("allowance", "set", *own, "--unit", "images", "--amount", "10", "--source-id", "a1")
    assert relay.command(*allowance, "--reason", "plan")["amount"] == 10
    for scope in (own, of_token, ("--global",)):
        relay.command("budget", "set", *scope, "--period", "month", "--amount-usd", "9")
    assert [line["maximum"] for line in relay.command("budget", "list")] == [9 * 10**9] * 3
    terms = relay.command("ledger", "terms", *own, "--credit-limit-usd", "2", "--overage", "1.5")
    assert terms["credit_limit"] == 2 * 10**9
    (granted,) = (line for line in relay.command("ledger", "grants", *own) if line["unit"] == "credit")
    assert granted["remaining"] == 5 * 10**9
    balances = {line["unit"]: line["balance"] for line in relay.command("ledger", "balance", *own)}
    assert balances["credit"] == 5 * 10**9
    (entry,) = (line for line in relay.command("ledger", "list", *own) if line["unit"] == "credit")
    relay.command("ledger", "reverse", "--entry", str(entry["id"]), "--reason", "a test")
    assert relay.balance(account) == (0, 0)
    relay.command("breaker", "set", *of_token, "--usd-per-hour", "2", *BY)
    assert relay.command("breaker", "list", "--open") == []
    assert relay.run("breaker", "lift", *of_token, *BY).returncode == 1
    (listed,) = relay.command("breaker", "list")
    assert listed["maximum"] == 2 * 10**9
    relay.command("breaker", "clear", *of_token, *BY)
    assert len(relay.command("breaker", "history", *of_token)) == 2


def test_prices(relay: Relay) -> None:
    rates = ("--in-text", "2.50/1M", "--out-text", "10/1M")
    relay.price("m1")
    relay.price("m1", "--in-text", "3/1M", "--out-text", "10/1M")
    relay.command("price", "draft", "--model", "m2", "--side", "cost", "--provider", "acme", *rates)
    assert len(relay.command("price", "list", "--drafts")) == 1
    newest = relay.command("price", "list", "--model", "m1")[0]
    assert relay.command("price", "show", str(newest["id"]))["model"] == "m1"
    relay.command("price", "end", str(newest["id"]))
    relay.command("price", "group", "gold", "--multiplier", "0.8")
    relay.command("price", "group", "gold", "--multiplier", "0.9")
    relay.command("price", "fx", "EUR", "1.1")
    relay.command("price", "fx", "EUR", "1.2")
    assert len(relay.command("price", "groups")) == len(relay.command("price", "rates")) == 2


def test_channels_and_routes(relay: Relay) -> None:
    relay.channel("https://provider.example.com", "m1")
    cost = ("--side", "cost", "--channel", "main")
    relay.price("m1", *cost, "--in-text", "1/1M", "--out-text", "5/1M")
    relay.command("channel", "budget", "set", "main", "--period", "day", "--amount-usd", "3")
    (budget,) = relay.command("channel", "budget", "list")
    assert budget["maximum"] == 3 * 10**9
    relay.command("channel", "budget", "remove", "main", "--period", "day")
    assert relay.command("channel", "budget", "list") == []
    for action, status in (("disable", "disabled"), ("enable", "enabled")):
        assert relay.run("channel", action, "main").returncode == 0
        assert relay.command("channel", "list")[0]["status"] == status
    assert relay.command("route", "set", "m1", "--sticky", "session")["prefer"] == "weight"
    assert relay.command("route", "set", "m1", "--prefer", "latency")["sticky"] == "session"
    assert len(relay.command("route", "list")) == 1
    relay.command("route", "remove", "m1")
    assert relay.command("route", "list") == []


def test_calls_and_what_tells_of_them(relay: Relay, provider: Provider) -> None:
    relay.channel(provider.url, MODEL)
    relay.price(MODEL)
    customer = Customer(relay, relay.replica(), "acme", "5")
    own = ("--account", str(customer.account))
    try:
        assert customer.post({"model": MODEL, "messages": asks()}).status_code == 200
        assert customer.post({"model": MODEL, "messages": asks(), "stream": True}).status_code == 200
        spent = customer.spent()
        records: list[dict[str, Any]] = relay.usage(customer.account)
        assert [record["outcome"] for record in records] == ["ok", "ok"]
        exported = relay.run("usage", "export", *own)
        assert (exported.returncode, exported.stdout.count(str(records[0]["request_id"]))) == (0, 1)
        for audit in ("conserve", "recompute"):
            assert relay.run("audit", audit).returncode == 0
        assert relay.run("ledger", "check", "--sample", "2").returncode == 0
        assert relay.run("ledger", "statement", *own).returncode == 0
        relay.command("ledger", "state")
        relay.command("ledger", "sums")
        relay.command("ledger", "sums", "--by-account")
        relay.command("ledger", "reverse", "--request", records[0]["request_id"], "--reason", "a test")
        assert customer.spent() == spent - records[0]["charge"]
    finally:
        relay.stop()


def test_a_job_that_failed_is_due_again(database: Database) -> None:
    async def story() -> list[dict[str, Any]]:
        async with connected(database.app_dsn) as connection:
            assert await maintenance.claim(connection, "sweep", timedelta(minutes=5))
            await maintenance.fail(connection, "sweep", timedelta(minutes=5))
            return await maintenance.list_jobs(connection)

    (job,) = play(story())
    assert job["last_failure_at"] is not None
    assert job["last_success_at"] is None
