"""Settings, tokens, seals, errors, limits, redaction, metrics."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from uuid import RFC_4122

import pytest
from cryptography.fernet import Fernet

from relay import errors
from relay.asgi import client_address, new_request_id
from relay.identity import tokens
from relay.routing.key_cipher import KeyCipher
from relay.settings import Address, SettingError, Settings
from relay.telemetry.logs import JsonFormatter, redact, redact_data
from relay.telemetry.metrics import Metrics

# ---------------------------------------------------------------------- settings


def test_settings_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "dsn"
    secret.write_text("host=db1 password=x\n")
    read = Settings.read({"RELAY_DATABASE_URL_FILE": str(secret), "RELAY_LISTEN": "[::]:81"})
    assert read.require("database_url") == "host=db1 password=x"
    assert read.listen == Address("::", 81)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RELAY_REPLICAS", "0"),
        ("RELAY_REPLICAS", "three"),
        ("RELAY_PROVIDER_TIMEOUT_SECONDS", "nan"),
        ("RELAY_LISTEN", "8000"),
        ("RELAY_LISTEN", "host:99999"),
        ("RELAY_TRUSTED_PROXIES", "edge1"),
        ("RELAY_SEAL_KEY_FILE", "/nowhere/at/all"),
        ("RELAY_MODEL_MAX_OUTPUT", "gpt-4o=many"),
        ("RELAY_MODEL_MAX_OUTPUT", "gpt-4o=0"),
        ("RELAY_UNKNOWN_FIELDS", "ignore"),
        ("RELAY_CORS_ORIGINS", "chat.example.com"),
        ("RELAY_CORS_ORIGINS", "https://chat.example.com/path"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=name):
        Settings.read({name: value})


def test_a_missing_setting_is_named_with_its_remedy() -> None:
    with pytest.raises(SettingError, match=r"RELAY_SEAL_KEY is not set.*RELAY_SEAL_KEY_FILE"):
        Settings.read({}).require("seal_key")


def test_settings_by_name_have_a_default_for_the_others() -> None:
    read = Settings.read({"RELAY_MODEL_MAX_OUTPUT": "big=16384", "RELAY_UNKNOWN_FIELDS": "drop"})
    assert [read.max_output_of(model) for model in ("big", "small")] == [16384, 4096]
    assert read.unknown_fields == "drop"
    assert Settings.read({}).unknown_fields == "pass"


def test_a_hold_outlives_the_longest_call() -> None:
    read = Settings.read({})
    assert read.hold_seconds > read.hold_wait_seconds + read.provider_timeout_seconds + read.settle_seconds


# ---------------------------------------------------------------------- tokens and seals


def test_tokens_have_256_random_bits_behind_a_public_prefix() -> None:
    first, second = tokens.mint(), tokens.mint()
    assert first.clear != second.clear
    assert len(first.clear) == len(tokens.PREFIX) + 43
    assert first.digest == tokens.digest_of(first.clear.encode())
    assert len(first.digest) == 32
    assert first.clear.startswith(first.prefix)
    assert len(first.prefix) < len(tokens.PREFIX) + 8


def test_seal_rotates_keys() -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    sealed = KeyCipher(old).encrypt("provider key")
    assert "provider key" not in sealed
    assert KeyCipher(f"{new},{old}").decrypt(sealed) == "provider key"
    with pytest.raises(SettingError, match="does not decrypt"):
        KeyCipher(new).decrypt(sealed)
    with pytest.raises(SettingError, match="not a Fernet key"):
        KeyCipher("changeme")


def test_what_an_older_key_sealed_is_sealed_anew_once() -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    both, sealed = KeyCipher(f"{new},{old}"), KeyCipher(old).encrypt("provider key")
    again = both.renewed(sealed)
    assert again is not None
    assert both.renewed(again) is None
    assert KeyCipher(new).decrypt(again) == "provider key"
    assert (KeyCipher(old).opens(again), KeyCipher(new).opens(again)) == (False, True)
    assert (both.has(old), both.has(new), KeyCipher(new).has(old)) == (True, True, False)
    with pytest.raises(SettingError, match="does not decrypt"):
        KeyCipher(new).renewed(sealed)


def test_request_ids_are_ordered_uuids_of_version_7() -> None:
    ids = [new_request_id() for _ in range(200)]
    assert {(made.version, made.variant) for made in ids} == {(7, RFC_4122)}
    assert len(set(ids)) == 200
    stamps = [made.int >> 80 for made in ids]
    assert stamps == sorted(stamps)


# ---------------------------------------------------------------------- errors


def test_insufficient_credit_says_the_amount_and_where_to_pay() -> None:
    error = errors.insufficient_credit(1_234_567_890, "https://pay.example.com")
    body = error.body()["error"]
    assert error.status == 402
    assert body["missing_nanodollars"] == 1_234_567_890
    assert body["missing_usd"] == "1.23456789"
    assert body["topup_url"] == "https://pay.example.com"
    assert "https://pay.example.com" in body["message"]


def test_insufficient_credit_names_no_page_where_there_is_none() -> None:
    body = errors.insufficient_credit(1_000_000_000, "").body()["error"]
    assert "topup_url" not in body
    assert body["message"] == (
        "Insufficient credit: $1 more is needed for this call. Ask whoever gave you your key for more credit."
    )


@pytest.mark.parametrize(
    ("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.1, "2"), (59.5, "60")]
)
def test_retry_after_rounds_up(seconds: float, header: str) -> None:
    assert errors.rate_limited("x", seconds, "y").headers["retry-after"] == header


def test_only_trusted_proxies_say_who_the_client_is() -> None:
    trusted = Settings.read({"RELAY_TRUSTED_PROXIES": "192.0.2.0/24"}).trusted_networks
    forwarded = [(b"x-forwarded-for", b"198.51.100.9, 203.0.113.7")]
    scope = {"client": ("192.0.2.11", 5), "headers": forwarded}
    assert client_address(scope, trusted) == "203.0.113.7"
    assert client_address(scope, ()) == "192.0.2.11"
    assert client_address(scope | {"client": ("203.0.113.200", 5)}, trusted) == "203.0.113.200"
    lines = [(b"x-forwarded-for", b"198.51.100.9"), (b"x-forwarded-for", b"203.0.113.7")]
    assert client_address(scope | {"headers": lines}, trusted) == "203.0.113.7"


# ---------------------------------------------------------------------- logs and metrics

CANARIES = [
    "sk-relay-" + "a" * 43,
    "sk-ant-api03-abcdefghijklmnopqrstuv",
    "AIza" + "b" * 35,
    "AKIAABCDEFGHIJKLMNOP",
    "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
]


@pytest.mark.parametrize("secret", CANARIES)
def test_keys_are_redacted(secret: str) -> None:
    assert secret not in redact(f"calling with {secret}, then more")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        ("authorization': 'Basic dXNlcjpwdw=='", "dXNlcjpwdw"),
        ("GET /v1beta/models?key=topsecret&alt=sse", "topsecret"),
        ("postgresql://relay_app:hunter2@db1/relay", "hunter2"),
        ("host=db1 password=hunter2 user=x", "hunter2"),
        ('{"api_key": "hunter2"}', "hunter2"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----", "MIIE"),
    ],
)
def test_named_secrets_are_redacted(text: str, secret: str) -> None:
    assert secret not in redact(text)


@pytest.mark.parametrize("quote", ['{"a": ["key %s!"]}', "key %s", '{"%s": 1}', '{"a": "\\ud83d %s"}'])
def test_a_secret_is_hidden_wherever_it_stands_and_however_it_is_escaped(quote: str) -> None:
    secret = "pa/ss-wörd"
    for written in (
        secret,
        json.dumps(secret)[1:-1],
        secret.replace("/", "\\/") if quote[0] == "{" else secret,
    ):
        if quote[0] == "{" or written == secret:
            hidden = redact_data((quote % written).encode(), lambda text: redact(text, [secret]))
            assert secret not in str(json.loads(hidden) if quote[0] == "{" else hidden.decode())
            assert b"[redacted]" in hidden


@pytest.mark.parametrize(
    "data", [b'{"a": 1, "b":NaN}', b"plain", b"\xff\xfe", b'{"a":"\\ud83d"}', b"[" * 5000]
)
def test_data_without_secrets_is_left_as_it_is(data: bytes) -> None:
    assert redact_data(data, lambda text: redact(text, ["secret-key", ""])) == data


def test_a_short_secret_does_not_eat_words() -> None:
    assert redact("a key", ["a"]) == "a key"


def test_a_log_line_is_written_whatever_it_says() -> None:
    record = logging.LogRecord("relay", logging.INFO, __file__, 1, "half \ud83d", (), None)
    assert json.loads(JsonFormatter().format(record))["message"] == "half ?"


@pytest.mark.parametrize(
    "text",
    ["prompt_tokens=12 completion_tokens=3", "a risk-assessment of the disk-usage", "token 7 of account 3"],
)
def test_plain_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


def test_logs_are_json_of_allowed_fields_only() -> None:
    record = logging.LogRecord("relay", logging.INFO, __file__, 1, "key %s", ("sk-" + "x" * 30,), None)
    record.__dict__ |= {"model": "m", "body": "private prompt"}
    line = json.loads(JsonFormatter().format(record))
    assert line["model"] == "m"
    assert "private" not in json.dumps(line)
    assert "sk-x" not in json.dumps(line)


ALLOWED_LABELS = {"model", "provider", "outcome", "stream", "type", "channel", "class", "reason"}


def test_metrics_have_no_label_beyond_the_allowed_ones() -> None:
    for collector in Metrics().registry._collector_to_names:
        labels = set(getattr(collector, "_labelnames", ()))
        assert labels <= ALLOWED_LABELS, collector
        assert not {"channel", "model"} <= labels
