"""The ledger's functions read by their indexes alone, in fewer statements."""

from relay.store.migrations import define, refuse_downgrade

revision = "0020_ledger_plans"
down_revision = "0019_transcript_format"


def upgrade() -> None:
    define("ledger_hold")
    define("ledger_settle")


def downgrade() -> None:
    refuse_downgrade()
