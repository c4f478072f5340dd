"""Accounts, tokens, channels, prices and the ledger's tables."""

from relay.store.migrations import apply, refuse_downgrade

revision = "0001_foundation"
down_revision = None


def upgrade() -> None:
    apply(revision)


def downgrade() -> None:
    refuse_downgrade()
