"""The operator's commands on a real database."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from relay.identity.tokens import digest_of
from tests.contract.conftest import Database
from tests.contract.relay_rig import VENDOR_KEY, Relay


@pytest.fixture
def relay(database: Database, tmp_path: Path) -> Relay:
    return Relay(database, tmp_path)


def test_an_account_is_made_once(relay: Relay) -> None:
    account = relay.account("acme")
    again = relay.run("account", "create", "--name", "acme")
    assert (again.returncode, "--if-missing" in again.stderr) == (1, True)
    assert relay.command("account", "create", "--name", "acme", "--if-missing")["id"] == account
    assert relay.command("account", "show", "acme") == relay.command("account", "show", str(account))
    assert relay.run("account", "show", "nobody").returncode == 1


def test_a_token_is_shown_once_and_stored_as_its_hash(relay: Relay, database: Database) -> None:
    account = relay.account("acme")
    clear = relay.token(account)
    with psycopg.connect(database.superuser_dsn) as connection:
        (row,) = connection.execute("select hash, tokens::text from tokens").fetchall()
    assert row[0] == digest_of(clear.encode())
    assert clear not in row[1]
    assert clear not in str(relay.command("token", "list", "--account", str(account)))
    (traced,) = relay.command("token", "list", "--prefix", clear[:15])
    assert (traced["account_id"], clear.startswith(traced["prefix"])) == (account, True)
    assert relay.command("token", "list", "--prefix", "sk-relay-nobody") == []
    twice = relay.run("token", "create", "--account", str(account), "--name", "key")
    assert (twice.returncode, "cannot be shown again" in twice.stderr) == (1, True)
    nobody = relay.run("token", "create", "--account", "999", "--name", "key")
    assert (nobody.returncode, "account list" in nobody.stderr) == (1, True)


def test_a_vendors_key_is_sealed_at_rest(relay: Relay, database: Database) -> None:
    relay.channel("https://vendor.example.com", "m1,fast=m2")
    with psycopg.connect(database.superuser_dsn) as connection:
        (stored,) = connection.execute("select channels::text from channels").fetchone() or ("",)
    assert VENDOR_KEY not in stored
    (shown,) = relay.command("channel", "list")
    assert (shown["models"], shown["model_map"]) == (["m1", "fast"], {"fast": "m2"})
    assert "api_key" not in str(shown)
    create = ["channel", "create", "--name", "main", "--provider", "openai", "--models", "m1"]
    create += ["--base-url", "https://vendor.example.com/v1", "--api-key-stdin"]
    assert relay.run(*create, stdin=VENDOR_KEY).returncode == 1
    assert relay.command(*create, "--if-missing", stdin=VENDOR_KEY)["id"] == shown["id"]
    create[3] = "other"
    empty = relay.run(*create)
    assert (empty.returncode, "pipe the provider's API key" in empty.stderr) == (1, True)


def test_what_is_missing_is_named(relay: Relay) -> None:
    relay.settings["RELAY_DATABASE_URL"] = ""
    done = relay.run("account", "list")
    assert (done.returncode, "RELAY_DATABASE_URL is not set" in done.stderr) == (1, True)
    relay.settings["RELAY_DATABASE_URL"] = "host=127.0.0.1 port=1 dbname=relay"
    done = relay.run("account", "list")
    assert (done.returncode, "the database refused" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr
