"""The operator's commands on a real database."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from relay.identity.tokens import digest_of
from relay.routing.key_cipher import KeyCipher
from tests.contract.conftest import Database
from tests.contract.relay_rig import PROVIDER_KEY, SEAL_KEY, Relay


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


def test_a_providers_key_is_sealed_at_rest(relay: Relay, database: Database) -> None:
    relay.channel("https://provider.example.com", "m1,fast=m2")
    with psycopg.connect(database.superuser_dsn) as connection:
        (stored,) = connection.execute("select channels::text from channels").fetchone() or ("",)
    assert PROVIDER_KEY not in stored
    (shown,) = relay.command("channel", "list")
    assert (shown["models"], shown["model_map"]) == (["m1", "fast"], {"fast": "m2"})
    assert "api_key" not in str(shown)
    create = ["channel", "create", "--name", "main", "--provider", "openai", "--models", "m1"]
    create += ["--base-url", "https://provider.example.com/v1", "--api-key-stdin"]
    assert relay.run(*create, stdin=PROVIDER_KEY).returncode == 1
    assert relay.command(*create, "--if-missing", stdin=PROVIDER_KEY)["id"] == shown["id"]
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


def test_a_channel_is_changed_field_by_field(relay: Relay, database: Database) -> None:
    relay.channel("https://provider.example.com", "m1,fast=m2")
    (before,) = relay.command("channel", "list")
    assert (before["provider"], before["format"]) == ("openai", "openai")
    changes: dict[str, tuple[list[str], dict[str, object]]] = {
        "provider": (["--provider", "acme"], {"provider": "acme"}),
        "format": (["--format", "openai"], {}),
        "base-url": (
            ["--base-url", "https://other.example.com/v2/"],
            {"base_url": "https://other.example.com/v2"},
        ),
        "models": (["--models", "m3,slow=m4"], {"models": ["m3", "slow"], "model_map": {"slow": "m4"}}),
        "one model": (["--models", "m3"], {"models": ["m3"], "model_map": {}}),
        "priority": (["--priority", "-3"], {"priority": -3}),
        "weight": (["--weight", "0"], {"weight": 0}),
    }
    for options, changed in changes.values():
        after = relay.command("channel", "set", "main", *options)
        assert after == before | changed
        before = after
    assert relay.command("channel", "set", str(before["id"]), "--weight", "7")["weight"] == 7
    nothing = relay.run("channel", "set", "main")
    assert (nothing.returncode, "nothing is to be changed" in nothing.stderr) == (1, True)
    nobody = relay.run("channel", "set", "nobody", "--weight", "1")
    assert (nobody.returncode, "channel list" in nobody.stderr) == (1, True)


def test_a_channels_key_is_changed_and_never_shown(relay: Relay, database: Database) -> None:
    relay.channel("https://provider.example.com", "m1")

    def sealed() -> str:
        with psycopg.connect(database.superuser_dsn) as connection:
            (stored,) = connection.execute("select api_key_sealed from channels").fetchone() or ("",)
        return str(stored)

    before = sealed()
    changed = relay.command("channel", "set", "main", "--api-key-stdin", stdin="another-key\n")
    assert KeyCipher(SEAL_KEY).decrypt(sealed()) == "another-key"
    assert sealed() != before
    assert "another-key" not in str(changed)
    empty = relay.run("channel", "set", "main", "--api-key-stdin")
    assert (empty.returncode, "pipe the provider's API key" in empty.stderr) == (1, True)
    assert KeyCipher(SEAL_KEY).decrypt(sealed()) == "another-key"


def test_one_name_never_means_a_channel_and_another_provider(relay: Relay) -> None:
    relay.channel("https://provider.example.com", "m1", "eu", "--provider", "acme")
    relay.channel("https://provider.example.com", "m1", "acme", "--provider", "acme")
    create = [
        "channel",
        "create",
        "--base-url",
        "https://x.example.com/v1",
        "--api-key-stdin",
        "--models",
        "m",
    ]
    by_name = relay.run(*create, "--name", "acme2", "--provider", "eu", stdin=PROVIDER_KEY)
    assert (by_name.returncode, "'eu' is a channel of provider 'acme'" in by_name.stderr) == (1, True)
    relay.channel("https://provider.example.com", "m1", "us", "--provider", "other")
    named = relay.run(*create, "--name", "other", "--provider", "third", stdin=PROVIDER_KEY)
    assert (named.returncode, "'other' is the provider of channel 'us'" in named.stderr) == (1, True)
    moved = relay.run("channel", "set", "us", "--provider", "eu")
    assert (moved.returncode, "choose another name" in moved.stderr) == (1, True)
