"""The functions that hold, settle, grant, lapse and reverse."""

from relay.store.migrations import apply, define, refuse_downgrade

revision = "0002_ledger_functions"
down_revision = "0001_foundation"


def upgrade() -> None:
    apply(revision)
    define("ledger_add_grant", callable_by_relay=False)
    define("ledger_roll", callable_by_relay=False)


def downgrade() -> None:
    refuse_downgrade()
