"""Partitions, retention, roll-ups and jobs."""

from relay.store.migrations import apply, define, refuse_downgrade

revision = "0004_upkeep"
down_revision = "0003_group_commit"


def upgrade() -> None:
    apply(revision)
    define("usage_drop_partitions")


def downgrade() -> None:
    refuse_downgrade()
