"""`python -m relay quote`."""

from relay.command import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add `quote`."""
