"""What monitoring asks about the ledger."""

from relay.store.migrations import apply, refuse_downgrade

revision = "0006_ledger_health"
down_revision = "0005_hold_retries"


def upgrade() -> None:
    apply(revision)


def downgrade() -> None:
    refuse_downgrade()
