"""No answer of the ledger comes from a primary that was replaced without knowing it."""

from relay.store.migrations import define, refuse_downgrade

revision = "0013_confirmed_answers"
down_revision = "0012_usage_facts"


def upgrade() -> None:
    define("ledger_hold")
    define("ledger_settle")


def downgrade() -> None:
    refuse_downgrade()
