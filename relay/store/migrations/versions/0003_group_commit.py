"""Holds and settlements of many calls in one statement."""

from relay.store.migrations import apply, define, refuse_downgrade

revision = "0003_group_commit"
down_revision = "0002_ledger_functions"


def upgrade() -> None:
    apply(revision)
    define("ledger_hold")
    define("ledger_settle")


def downgrade() -> None:
    refuse_downgrade()
