"""No usage is dropped before it was ever rolled up."""

from relay.store.migrations import define, refuse_downgrade

revision = "0008_retention"
down_revision = "0007_next_event"


def upgrade() -> None:
    define("usage_drop_partitions")


def downgrade() -> None:
    refuse_downgrade()
