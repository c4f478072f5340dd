"""The encrypted file of secrets."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from deploys.lib import pki
from deploys.lib.errors import DeployError
from deploys.lib.rotation import STATE
from deploys.lib.secrets import (
    BcryptHash,
    Secret,
    SecretMissing,
    SecretStore,
    create_missing,
    departed,
    forget_departed,
    matches,
    put,
)

# A hash may stand before what it is of.
DECLARED: list[Secret | BcryptHash] = [
    BcryptHash("registry_password_hash", of="registry_password"),
    Secret("registry_password"),
    Secret("redis_password"),
]
SUBJECTS = [pki.host_subject("db1", "example.test", "192.0.2.31")]


@pytest.fixture
def store(tmp_path: Path) -> SecretStore:
    return SecretStore(tmp_path / "secrets.age", tmp_path / "secrets.key")


def test_everything_is_made_once(store: SecretStore) -> None:
    made = create_missing(store, DECLARED, SUBJECTS)
    names = {secret.name for secret in DECLARED}
    assert set(made) == {*names, "ca_cert", "ca_key", "ca_trusted", "tls_cert:db1", "tls_key:db1"}
    before = store.read()
    assert create_missing(store, DECLARED, SUBJECTS) == []
    assert store.read() == before


def test_only_what_is_missing_is_made(store: SecretStore) -> None:
    create_missing(store, DECLARED, SUBJECTS)
    before = store.read()
    store.write({name: value for name, value in before.items() if name != "redis_password"})
    assert create_missing(store, DECLARED, SUBJECTS) == ["redis_password"]
    assert {**store.read(), "redis_password": "", STATE: ""} == {**before, "redis_password": "", STATE: ""}


def test_what_others_make_is_never_made_here(store: SecretStore) -> None:
    declared = [Secret("ours"), Secret("theirs", given=lambda: True)]
    assert "theirs" not in create_missing(store, declared, SUBJECTS)
    with pytest.raises(DeployError, match="--set theirs: its value is empty"):
        put(store, "theirs", " \n")
    put(store, "theirs", "their key\n")
    assert store["theirs"] == "their key"
    assert create_missing(store, declared, SUBJECTS) == []


def test_a_new_host_gets_its_certificate(store: SecretStore) -> None:
    create_missing(store, DECLARED, SUBJECTS)
    more = [*SUBJECTS, pki.host_subject("db2", "example.test", "192.0.2.32")]
    assert create_missing(store, DECLARED, more) == ["tls_cert:db2", "tls_key:db2"]


def test_certificates_of_a_host_that_left_are_named_and_removed(store: SecretStore) -> None:
    more = [*SUBJECTS, pki.host_subject("db2", "example.test", "192.0.2.32")]
    create_missing(store, DECLARED, more)
    before = store.read()
    assert departed(before, more) == forget_departed(store, more) == []
    assert departed(before, SUBJECTS) == ["tls_cert:db2", "tls_key:db2"]
    assert forget_departed(store, SUBJECTS) == ["tls_cert:db2", "tls_key:db2"]
    assert before.items() - store.read().items() == {
        (name, before[name]) for name in ("tls_cert:db2", "tls_key:db2")
    }
    assert create_missing(store, DECLARED, SUBJECTS) == []


def test_renewal_issues_every_certificate_anew(store: SecretStore) -> None:
    create_missing(store, DECLARED, SUBJECTS)
    before = store.read()
    made = create_missing(store, DECLARED, SUBJECTS, renew=True)
    assert set(made) == {"tls_cert:db1", "tls_key:db1", "ca_next_cert", "ca_next_key", "ca_trusted"}
    assert store["ca_cert"] == before["ca_cert"]
    assert store["tls_cert:db1"] != before["tls_cert:db1"]


def test_the_file_is_encrypted_and_private(store: SecretStore) -> None:
    create_missing(store, DECLARED, SUBJECTS)
    content = store.path.read_bytes()
    assert content.startswith(b"age-encryption.org/v1")
    assert store["redis_password"].encode() not in content
    for path in (store.path, store.key_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_missing_secret_names_the_remedy(store: SecretStore) -> None:
    create_missing(store, DECLARED, SUBJECTS)
    with pytest.raises(SecretMissing, match="python -m deploys secrets"):
        store["tls_cert:db9"]


def test_the_wrong_key_is_told(store: SecretStore, tmp_path: Path) -> None:
    create_missing(store, DECLARED, SUBJECTS)
    other = SecretStore(tmp_path / "other.age", tmp_path / "other.key")
    create_missing(other, DECLARED, SUBJECTS)
    with pytest.raises(DeployError, match="cannot be opened with"):
        SecretStore(store.path, other.key_path).read()


def test_the_key_is_never_replaced(store: SecretStore) -> None:
    create_missing(store, DECLARED, SUBJECTS)
    store.key_path.unlink()
    with pytest.raises(DeployError, match="restore the key"):
        store.write({})


def test_the_key_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeployError, match="RELAY_SECRETS_KEY"):
        SecretStore.at(tmp_path, "secrets.age", "")
    monkeypatch.setenv("RELAY_SECRETS_KEY", str(tmp_path / "elsewhere.key"))
    assert SecretStore.at(tmp_path, "secrets.age", "").key_path == tmp_path / "elsewhere.key"


def test_the_registry_gets_a_hash_of_its_password(store: SecretStore) -> None:
    create_missing(store, DECLARED, SUBJECTS)
    assert matches(store["registry_password"], store["registry_password_hash"])
    assert not matches("another", store["registry_password_hash"])
