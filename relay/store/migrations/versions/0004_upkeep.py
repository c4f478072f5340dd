"""Partitions, retention, roll-ups and jobs."""

from alembic import op

from relay.store.migrations import apply, define, refuse_downgrade

revision = "0004_upkeep"
down_revision = "0003_group_commit"


def upgrade() -> None:
    apply(revision)
    define("usage_ensure_partitions")
    define("usage_drop_partitions")
    op.execute("select usage_ensure_partitions(3)")


def downgrade() -> None:
    refuse_downgrade()
