"""Bearer tokens: 256 random bits behind a public prefix; only their SHA-256 is kept.

A plain hash suffices because the secret is random: guessing takes 2**255 tries.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

PREFIX = "sk-relay-"
SHOWN = len(PREFIX) + 6
_CLEAR = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43,86}}")


class BadToken(Exception):
    """What was given is no token; the message says what one looks like, never what was given."""


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
    return adopt(PREFIX + secrets.token_urlsafe(32))


def adopt(clear: str) -> NewToken:
    """A token that somebody else made as `mint` does. Raises BadToken."""
    if not _CLEAR.fullmatch(clear):
        raise BadToken(f"write {PREFIX} and at least 43 random letters, digits, - or _ (256 bits)")
    return NewToken(clear, digest_of(clear.encode()), clear[:SHOWN])
