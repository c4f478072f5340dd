"""Secrets of an environment: made strong by one command, encrypted at rest with age, never printed.

The file is an age-encrypted YAML mapping of names to values. Roles declare passwords
and keys; the fleet's CA and certificates (deploys.lib.pki) live beside them: ``ca_cert``, ``tls_cert:db1``, …
One entry more says since when each is used, and which is being rotated (deploys.lib.rotation).
"""

from __future__ import annotations

import os
import secrets as random
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import bcrypt
import pyrage
import yaml
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploys.lib import authority, pki, rotation, whole_files
from deploys.lib.errors import DeployError
from deploys.lib.rotation import Unit, Way

KEY_VARIABLE = "RELAY_SECRETS_KEY"
MINIMUM_LENGTH = 20
# What the fleet's authority is called where secrets are named: its own certificate.
AUTHORITY = "ca_cert"


class SecretMissing(DeployError, KeyError):
    """A secret that the environment does not have yet."""

    def __str__(self) -> str:
        return str(self.args[0])


def password() -> str:
    """256 bits, safe in URLs, shells and configuration files."""
    return random.token_hex(32)


def access_key() -> str:
    """An S3 access key: 20 capitals and digits."""
    return "".join(random.choice(string.ascii_uppercase + string.digits) for _ in range(20))


def signing_key() -> str:
    """An ed25519 key as OpenSSH writes it, without a passphrase."""
    form, none = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    return Ed25519PrivateKey.generate().private_bytes(serialization.Encoding.PEM, form, none).decode()


def fernet_key() -> str:
    """A key of Fernet (AES-128-CBC with HMAC-SHA256), base64."""
    return Fernet.generate_key().decode()


@dataclass(frozen=True)
class Secret:
    """A secret that a role declares, and what makes it.

    Where `given`, somebody else makes it, such as the operator of a store; a person puts it into the file.
    `way` says how it is rotated; None only for one that changes along with another.
    """

    name: str
    make: Callable[[], str] = password
    given: Callable[[], bool] = lambda: False
    way: Way | None = None


@dataclass(frozen=True)
class BcryptHash:
    """The bcrypt hash of secret `of`; kept beside it, since every hashing gives another one."""

    name: str
    of: str


@dataclass(frozen=True)
class SecretStore(Mapping[str, str]):
    """The encrypted file and the identity that opens it."""

    path: Path
    key_path: Path

    @classmethod
    def at(cls, root: Path, secrets_file: str, key_file: str) -> SecretStore:
        """Paths are relative to `root`; an empty `key_file` means the variable RELAY_SECRETS_KEY."""
        if not secrets_file:
            raise DeployError("the setting `secrets_file` is empty: set it in the environment's group_data")
        key = key_file or os.environ.get(KEY_VARIABLE, "")
        if not key:
            raise DeployError(
                f"{secrets_file} needs its key: set {KEY_VARIABLE} to the path of the age identity file"
            )
        return _store(root, secrets_file, os.path.expanduser(key))

    @property
    def remedy(self) -> str:
        """The command that creates what is missing."""
        return "run `python -m deploys secrets ENVIRONMENT`"

    def __getitem__(self, name: str) -> str:
        try:
            return self.read()[name]
        except KeyError:
            raise SecretMissing(f"secret {name!r} is not in {self.path}: {self.remedy}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.read())

    def __len__(self) -> int:
        return len(self.read())

    def read(self) -> dict[str, str]:
        """All secrets; an absent file is an empty mapping."""
        try:
            written = self.path.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return {}
        if not self.key_path.exists():
            raise DeployError(f"{self.path} cannot be opened: its key {self.key_path} does not exist")
        return dict(_decrypt(self.path, self.key_path, written))

    def write(self, values: Mapping[str, str]) -> None:
        """Replaces the file in one step, readable by its owner only; makes the key with the first file."""
        if not self.key_path.exists():
            self._create_key()
        recipient = _identity(self.key_path).to_public()
        plain = yaml.dump(dict(values), Dumper=yaml.CSafeDumper, default_flow_style=False).encode()
        whole_files.write(self.path, pyrage.encrypt(plain, [recipient]), 0o600)

    def _create_key(self) -> None:
        if self.path.exists():
            raise DeployError(f"{self.path} exists but its key {self.key_path} does not: restore the key")
        whole_files.write(self.key_path, f"{pyrage.x25519.Identity.generate()}\n".encode(), 0o600)


@lru_cache(maxsize=4)
def _store(root: Path, secrets_file: str, key: str) -> SecretStore:
    """A role asks for hundreds of secrets, and joining paths takes longer than all else."""
    return SecretStore(root / secrets_file, root / key)


def create_missing(
    store: SecretStore,
    declared: Sequence[Secret | BcryptHash],
    subjects: Iterable[pki.Subject],
    *,
    renew: bool = False,
) -> list[str]:
    """Makes absent secrets and certificates; on `renew` takes the authority one step further and issues all
    certificates anew (see deploys.lib.authority). Returns the names of what it made."""
    before = store.read()
    values = dict(before)
    for secret in declared:
        if isinstance(secret, Secret) and secret.name not in values and not secret.given():
            values[secret.name] = secret.make()
    for secret in declared:
        if isinstance(secret, BcryptHash):
            values |= _hashed(secret, values)
    values = authority.renewed(values, subjects) if renew else authority.completed(values, subjects)
    made = [name for name, value in values.items() if before.get(name) != value]
    values = rotation.dated(values, [secret.name for secret in declared] + [AUTHORITY], made)
    if values != before:
        store.write(values)
    return made


def units(declared: Sequence[Secret | BcryptHash]) -> dict[str, Unit]:
    """What is rotated as one, by name: each secret that says how, with those that change along with it; and
    the authority, with every certificate."""
    by_name = {secret.name: secret for secret in declared}
    result = {}
    for secret in declared:
        if isinstance(secret, Secret) and secret.way is not None:
            names = (secret.name, *secret.way.along)
            result[secret.name] = Unit(
                secret.name, _way(secret, secret.way), {name: _maker(by_name[name]) for name in names}
            )
    result[AUTHORITY] = Unit(AUTHORITY, authority.WAY, {AUTHORITY: lambda values: values[AUTHORITY]})
    return result


def _way(secret: Secret, way: Way) -> Way:
    """The way that is stated, where it is not somebody else who makes the secret."""
    if not secret.given() or way.kind not in rotation.AUTOMATIC:
        return way
    remedy = (
        f"others make it: get another one there, `secrets edit ENV {secret.name}`, apply, "
        "then end the old one there"
    )
    return Way(rotation.BY_HAND, along=way.along, remedy=remedy)


def _maker(secret: Secret | BcryptHash) -> Callable[[Mapping[str, str]], str]:
    if isinstance(secret, Secret):
        return lambda _: secret.make()
    return lambda values: _hash(values[secret.of])


def departed(values: Mapping[str, str], subjects: Iterable[pki.Subject]) -> list[str]:
    """Names of the certificates and keys that are for none of the `subjects`, such as a host that left."""
    wanted = {name for subject in subjects for name in (subject.cert, subject.private_key)}
    return [name for name in values if name.startswith(("tls_cert:", "tls_key:")) and name not in wanted]


def forget_departed(store: SecretStore, subjects: Iterable[pki.Subject]) -> list[str]:
    """Removes certificates and keys that are for none of the `subjects`; returns their names."""
    values = store.read()
    names = departed(values, subjects)
    if names:
        store.write({name: value for name, value in values.items() if name not in names})
    return names


def put(store: SecretStore, name: str, value: str) -> None:
    """Puts a secret that somebody else made into the file; DeployError for an empty one, and for one that is
    being rotated."""
    if not value.strip():
        raise DeployError(f"--set {name}: its value is empty: write it to standard input")
    values = store.read()
    if rotation.record(values, name).step != rotation.STEADY:
        raise DeployError(f"{name} is being rotated: run `python -m deploys secrets rotate ENV {name}` first")
    store.write(rotation.noted(values | {name: value.strip()}, [name], rotation.moment()))


def trust(store: SecretStore, bundle: str) -> int:
    """Lets hosts trust the authorities of a PEM text, too; returns how many they trust then."""
    found = pki.split(bundle)
    if not found:
        raise DeployError("the file holds no certificate (a block BEGIN CERTIFICATE)")
    values = store.read()
    trusted = list(dict.fromkeys([*pki.split(values.get("ca_trusted", "")), *found]))
    store.write({"ca_cert": found[0], **values, "ca_trusted": "".join(trusted)})
    return len(trusted)


def matches(password: str, password_hash: str) -> bool:
    """Whether a bcrypt hash is that of a password."""
    try:
        return bcrypt.checkpw(password.encode(), password_hash.encode())
    except ValueError:
        return False


def _hashed(secret: BcryptHash, values: Mapping[str, str]) -> dict[str, str]:
    plain = values[secret.of]
    if matches(plain, values.get(secret.name, "")):
        return {}
    return {secret.name: _hash(plain)}


def _hash(plain: str) -> str:
    return bcrypt.hashpw(plain.encode(), bcrypt.gensalt(10)).decode()


def _identity(key_path: Path) -> pyrage.x25519.Identity:
    lines = [line.strip() for line in key_path.read_text().splitlines()]
    text = next((line for line in lines if line.startswith("AGE-SECRET-KEY-")), None)
    if text is None:
        raise DeployError(f"{key_path} holds no age identity (a line AGE-SECRET-KEY-…)")
    return pyrage.x25519.Identity.from_str(text)


@lru_cache(maxsize=4)
def _decrypt(path: Path, key_path: Path, _mtime_ns: int) -> dict[str, str]:
    try:
        plain = pyrage.decrypt(path.read_bytes(), [_identity(key_path)])
    except pyrage.DecryptError as error:
        raise DeployError(f"{path} cannot be opened with {key_path}: {error}") from None
    values = yaml.load(plain, Loader=yaml.CSafeLoader) or {}
    return {str(name): str(value) for name, value in values.items()}
