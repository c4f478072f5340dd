"""Bearer tokens: 256 random bits behind a public prefix; only their SHA-256 is kept.

A plain hash suffices because the secret is random: guessing takes 2**255 tries.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

PREFIX = "sk-relay-"
SHOWN = len(PREFIX) + 6


@dataclass(frozen=True, slots=True)
class NewToken:
    """``clear`` is shown to its owner once; ``prefix`` may be shown and logged."""

    clear: str
    digest: bytes
    prefix: str


def digest_of(clear: bytes) -> bytes:
    """The 32 bytes under which a token is stored."""
    return hashlib.sha256(clear).digest()


def mint() -> NewToken:
    """A new token."""
    clear = PREFIX + secrets.token_urlsafe(32)
    return NewToken(clear, digest_of(clear.encode()), clear[:SHOWN])
