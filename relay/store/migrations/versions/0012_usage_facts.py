"""A usage record keeps what else was known of its call in one JSON column: a new fact needs no new column."""

from alembic import op

from relay.store.migrations import define, refuse_downgrade

revision = "0012_usage_facts"
down_revision = "0011_channel_requests"


def upgrade() -> None:
    op.execute("alter table usage add column facts jsonb")
    op.execute("comment on column usage.facts is 'what else was known of the call, by name'")
    define("ledger_settle")


def downgrade() -> None:
    refuse_downgrade()
