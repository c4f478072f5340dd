"""`python -m relay audit`."""

from relay.command import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add `audit`."""
