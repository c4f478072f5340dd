"""A hold that is asked again after a lost connection is recognised."""

from relay.store.migrations import define, refuse_downgrade

revision = "0005_hold_retries"
down_revision = "0004_upkeep"


def upgrade() -> None:
    define("ledger_hold")


def downgrade() -> None:
    refuse_downgrade()
