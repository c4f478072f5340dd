"""Signatures of OpenSSH (`ssh-keygen -Y`): an ed25519 key, an armoured text beside what it signs.

The namespace keeps a receipt's signature from being used for anything else (OpenSSH's PROTOCOL.sshsig).
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

NAMESPACE = "relay-drill"
IDENTITY = "drill"


class SignatureError(Exception):
    """It cannot be signed, or the signature is not that of the text; the message says why."""


def sign(text: str, key: Path) -> str:
    """The signature of a text by the private key in a file that only its owner may read."""
    command = ["ssh-keygen", "-Y", "sign", "-q", "-n", NAMESPACE, "-f", str(key), "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        raise SignatureError(f"ssh-keygen does not sign with {key}: {done.stderr.strip()}")
    return done.stdout


def verify(text: str, signature: str, public_key: str) -> None:
    """Raises SignatureError unless `signature` is one of `text` by the key of an OpenSSH public key line."""
    with tempfile.TemporaryDirectory(prefix="relay-receipt-") as directory:
        signers, armoured = Path(directory, "signers"), Path(directory, "signature")
        kind_and_key = " ".join(public_key.split()[:2])
        signers.write_text(f'{IDENTITY} namespaces="{NAMESPACE}" {kind_and_key}\n')
        armoured.write_text(signature)
        command = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-I", IDENTITY]
        command += ["-f", str(signers), "-s", str(armoured)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SignatureError(f"the signature is not of this text by this key: {said[-1] if said else ''}")
