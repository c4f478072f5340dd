"""The functions that hold, settle, grant, lapse and reverse."""

from relay.store.migrations import apply, refuse_downgrade

revision = "0002_ledger_functions"
down_revision = "0001_foundation"


def upgrade() -> None:
    apply(revision)


def downgrade() -> None:
    refuse_downgrade()
