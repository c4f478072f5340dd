"""The operator's commands on a real database."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from cryptography.fernet import Fernet

from relay.identity.tokens import digest_of, mint
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("account", "show", "acme", "--json"),
        ("account", "show", "acme"),
        ("account", "show", "nobody"),
        ("account", "show"),
        ("account", "create", "--help"),
    ],
    ids=" ".join,
)
def test_a_process_says_what_the_commands_of_the_tests_say(relay: Relay, arguments: tuple[str, ...]) -> None:
    """Most tests give commands in their own process: it must be what an operator gets."""
    relay.account("acme")
    own, here = relay.process(*arguments), relay.run(*arguments)
    assert (own.returncode, own.stdout, own.stderr) == (here.returncode, here.stdout, here.stderr)


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


def test_limits_are_set_and_taken_away(relay: Relay) -> None:
    account = relay.account("acme")
    relay.token(account, "key", "--rpm", "60", "--tpm", "100000")
    (token,) = relay.command("token", "list", "--account", str(account))
    assert (token["rpm"], token["tpm"], token["concurrency"]) == (60, 100_000, None)
    for noun, number in (("token", token["id"]), ("account", account)):
        limit = (noun, "limit", str(number))
        relay.command(*limit, "--rpm", "7", "--tpm", "100000", "--concurrency", "2")
        changed = relay.command(*limit, "--rpm", "none", "--tpm", "5")
        assert changed == {"id": number, "rpm": None, "tpm": 5, "concurrency": 2, "model_limits": None}
        relay.command(*limit, "--model", "m:1", "--rpm", "3", "--tpm", "4")
        relay.command(*limit, "--model", "m2", "--concurrency", "1")
        changed = relay.command(*limit, "--model", "m:1", "--rpm", "none", "--tpm", "8")
        assert changed["model_limits"] == {"m:1": {"tpm": 8}, "m2": {"concurrency": 1}}
        relay.command(*limit, "--model", "m2", "--concurrency", "none")
        assert relay.command(*limit, "--model", "m:1", "--tpm", "none")["model_limits"] is None
        assert relay.run(noun, "limit", "999", "--model", "m", "--rpm", "1").returncode == 1
        nobody = relay.run(noun, "limit", "999", "--rpm", "1")
        assert (nobody.returncode, f"{noun} 999 does not exist" in nobody.stderr) == (1, True)
    nothing = relay.run("account", "limit", str(account))
    assert (nothing.returncode, "give --rpm, --tpm or --concurrency" in nothing.stderr) == (1, True)
    shown = relay.command("account", "show", str(account))
    assert (shown["rpm"], shown["tpm"], shown["concurrency"]) == (None, 5, 2)


def test_a_token_that_somebody_else_made_is_taken(relay: Relay) -> None:
    account = relay.account("acme")
    clear = mint().clear
    create = ["token", "create", "--account", str(account), "--token-stdin", "--name"]
    made = relay.command(*create, "given", stdin=f"{clear}\n")
    assert (made["token"], made["prefix"]) == (clear, clear[:15])
    again = relay.run(*create, "again", stdin=clear)
    assert (again.returncode, "this token exists" in again.stderr) == (1, True)
    same_name = relay.run(*create, "given", stdin=mint().clear)
    assert (same_name.returncode, "--name" in same_name.stderr) == (1, True)
    for wrong in ("", "sk-relay-short", f"sk-other-{clear[9:]}", f"{clear} x", "sk-relay-" + "x" * 42):
        refused = relay.run(*create, "wrong", stdin=wrong)
        assert (refused.returncode, "--token-stdin: write sk-relay-" in refused.stderr) == (1, True), wrong
        assert not wrong or wrong not in refused.stderr


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
        "limits": (["--rpm", "60", "--concurrency", "4"], {"rpm": 60, "concurrency": 4}),
        "one limit": (["--rpm", "none"], {"rpm": None}),
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


def test_a_channel_has_several_keys_sealed_at_rest_and_never_shown(relay: Relay, database: Database) -> None:
    relay.channel("https://provider.example.com", "m1")
    add = ("channel", "key", "add", "main", "--api-key-stdin", "--name")

    def names(shown: list[dict[str, str]]) -> list[str]:
        return [key["name"] for key in shown]

    def stored() -> dict[str, str]:
        """The keys in clear, by their names, as the relay finds them."""
        with psycopg.connect(database.superuser_dsn) as connection:
            rows = connection.execute(
                "select key_name, api_key_sealed from channels union all"
                " select name, api_key_sealed from channel_keys"
            ).fetchall()
        assert not [sealed for _, sealed in rows if "key-" in sealed or PROVIDER_KEY in sealed]
        return {name: KeyCipher(SEAL_KEY).decrypt(sealed) for name, sealed in rows}

    assert names(relay.command(*add, "b", stdin="key-b\n")) == ["first", "b"]
    shown = relay.command(*add, "c", stdin="key-c\n")
    assert names(shown) == names(relay.command("channel", "key", "list", "main")) == ["first", "b", "c"]
    assert "key-" not in str(shown)
    (listed,) = relay.command("channel", "list")
    assert listed["keys"] == ["first", "b", "c"]
    assert "sealed" not in str(listed)
    assert stored() == {"first": PROVIDER_KEY, "b": "key-b", "c": "key-c"}
    # The first one goes: the oldest of the others takes its place.
    assert names(relay.command("channel", "key", "remove", "main", "first")) == ["b", "c"]
    assert names(relay.command(*add, "first", stdin="key-d\n")) == ["b", "c", "first"]
    assert names(relay.command("channel", "key", "remove", "main", "c")) == ["b", "first"]
    assert stored() == {"b": "key-b", "first": "key-d"}
    relay.command("channel", "set", "main", "--api-key-stdin", stdin="key-e\n")
    assert stored() == {"b": "key-e", "first": "key-d"}


def test_a_key_that_cannot_be_added_or_removed_is_named_with_the_remedy(relay: Relay) -> None:
    relay.channel("https://provider.example.com", "m1")
    relay.channel("https://provider.example.com", "m1", "other")
    add = ("channel", "key", "add", "main", "--api-key-stdin", "--name")
    relay.command(*add, "b", stdin="key-b")
    for command, stdin, said in (
        ((*add, "b"), "key-x", "--name: channel 'main' has a key 'b'; choose another name"),
        ((*add, "first"), "key-x", "--name: channel 'main' has a key 'first'; choose another name"),
        ((*add, "c"), "key-b", "--api-key-stdin: the channel has this key already, as 'b'"),
        ((*add, "c"), PROVIDER_KEY, "--api-key-stdin: the channel has this key already, as 'first'"),
        ((*add, "c"), "", "--api-key-stdin: standard input is empty; pipe the provider's API key into it"),
        (("channel", "key", "remove", "main", "c"), "", "has no key 'c'; it has first, b"),
        (("channel", "key", "remove", "other", "first"), "", "the only key of channel 'other'; add another"),
        (("channel", "key", "list", "nobody"), "", "channel 'nobody' does not exist; `channel list`"),
    ):
        refused = relay.run(*command, stdin=stdin)
        assert (refused.returncode, said in refused.stderr) == (1, True), (command, refused.stderr)
        assert not stdin or stdin not in refused.stderr
    relay.command("channel", "key", "add", "other", "--api-key-stdin", "--name", "b", stdin="key-b")
    assert [row["keys"] for row in relay.command("channel", "list")] == [["first", "b"], ["first", "b"]]


def test_keys_of_all_channels_are_resealed(relay: Relay, database: Database) -> None:
    relay.channel("https://provider.example.com", "m1")
    relay.command("channel", "key", "add", "main", "--api-key-stdin", "--name", "b", stdin="key-b")
    newer = Fernet.generate_key().decode()
    relay.settings["RELAY_SEAL_KEY"] = f"{newer},{SEAL_KEY}"
    opens = ("channel", "opens", "--seal-key-stdin")
    count = {"channels": 1, "keys": 2}
    assert relay.command(*opens, stdin=newer) == count | {"opened": 0, "known": True}
    assert relay.command("channel", "reseal") == count | {"resealed": 2}
    assert relay.command("channel", "reseal") == count | {"resealed": 0}
    relay.settings["RELAY_SEAL_KEY"] = newer
    assert relay.command(*opens, stdin=newer) == count | {"opened": 2, "known": True}
    assert relay.command(*opens, stdin=SEAL_KEY) == count | {"opened": 0, "known": False}
    with psycopg.connect(database.superuser_dsn) as connection:
        connection.execute("update channel_keys set api_key_sealed = 'nothing'")
    failed = relay.run("channel", "reseal")
    assert failed.returncode == 1
    assert "channel 'main'" in failed.stderr
    assert "`channel key remove main b`" in failed.stderr


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
