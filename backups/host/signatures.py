"""Signatures of OpenSSH (`ssh-keygen -Y`): an ed25519 key, an armoured text beside what it signs.

The namespace keeps a signature of one kind of text from being used for another (OpenSSH's PROTOCOL.sshsig).
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

NAMESPACE = "relay-drill"
IDENTITY = "drill"


class SignatureError(Exception):
    """It cannot be signed, or the signature is not that of the text; the message says why."""


def sign(content: str | Path, key: Path, namespace: str = NAMESPACE) -> str:
    """The signature of a text, or of a file, by the private key in a file that only its owner may read."""
    done = _ssh_keygen(["sign", "-q", "-n", namespace, "-f", str(key), "-"], content)
    if done.returncode or not done.stdout:
        raise SignatureError(f"ssh-keygen does not sign with {key}: {done.stderr.strip()}")
    return done.stdout


def public_key(key: Path) -> str:
    """The public key line of a private key's file."""
    done = subprocess.run(["ssh-keygen", "-y", "-f", str(key)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SignatureError(f"ssh-keygen does not read {key}: {done.stderr.strip()}")
    return done.stdout.strip()


def signers(public_key: str, namespace: str = NAMESPACE) -> str:
    """The line that lets ``ssh-keygen -Y verify`` believe an OpenSSH public key line."""
    return f'{IDENTITY} namespaces="{namespace}" {" ".join(public_key.split()[:2])}\n'


def verify(content: str | Path, signature: str, public_key: str, namespace: str = NAMESPACE) -> None:
    """Raises SignatureError unless `signature` is the content's by the key of an OpenSSH public key line."""
    with tempfile.TemporaryDirectory(prefix="relay-receipt-") as directory:
        believed, armoured = Path(directory, "signers"), Path(directory, "signature")
        believed.write_text(signers(public_key, namespace))
        armoured.write_text(signature)
        options = ["-n", namespace, "-I", IDENTITY, "-f", str(believed), "-s", str(armoured)]
        done = _ssh_keygen(["verify", *options], content)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SignatureError(f"the signature is not of this text by this key: {said[-1] if said else ''}")


def _ssh_keygen(words: Sequence[str], content: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["ssh-keygen", "-Y", *words]
    if isinstance(content, str):
        return subprocess.run(command, input=content, capture_output=True, text=True, check=False)
    with content.open("rb") as stdin:
        return subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)
