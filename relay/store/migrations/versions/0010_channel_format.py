"""A channel's format is a field of its own, beside its provider."""

from relay.store.migrations import apply, refuse_downgrade

revision = "0010_channel_format"
down_revision = "0009_partition_rights"


def upgrade() -> None:
    apply(revision)


def downgrade() -> None:
    refuse_downgrade()
