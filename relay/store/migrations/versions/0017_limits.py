"""Limits of accounts, and breakers of keys that spend too much in an hour."""

from relay.store.migrations import apply, define, refuse_downgrade

revision = "0017_limits"
down_revision = "0016_channel_keys"


def upgrade() -> None:
    apply(revision)
    define("spend_breaker_change")
    define("ledger_hold")
    define("ledger_settle")


def downgrade() -> None:
    refuse_downgrade()
