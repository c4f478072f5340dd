"""The environment's key that signs receipts and statements, on the operator's machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from backups.host import signatures
from deploys.lib import fleet

SECRET = "drill_signing_key"  # noqa: S105 - a secret's name


def public_key() -> str:
    """The key that verifies, as a line of OpenSSH."""
    key = load_ssh_private_key(fleet.secret(SECRET).encode(), password=None).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def sign(content: str | Path, namespace: str) -> str:
    """The signature of a text or file; the key is on this machine's disk for that moment only."""
    with tempfile.TemporaryDirectory(prefix="relay-signing-") as directory:
        path = Path(directory, "key")
        path.touch(mode=0o600)
        path.write_text(fleet.secret(SECRET))
        return signatures.sign(content, path, namespace)
