"""An account's credit row remembers the next event of all its units."""

from alembic import op

from relay.store.migrations import define, refuse_downgrade

revision = "0007_next_event"
down_revision = "0006_ledger_health"


def upgrade() -> None:
    define("ledger_add_grant", callable_by_relay=False)
    define("ledger_roll", callable_by_relay=False)
    op.execute("update balances set next_event_at = null where unit <> 'credit'")
    op.execute("select ledger_roll(account_id) from balances where unit = 'credit'")


def downgrade() -> None:
    refuse_downgrade()
